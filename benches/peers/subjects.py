"""The engines under comparison, and how each is asked for one figure."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from install import Tools

# Name of a comparison: ours, the peer.
COMPARISONS = {
    "llama-bf16": ("promptyard-bf16", "llama-bf16"),
    "transformers": ("promptyard-bf16", "transformers"),
    "transformers-padded": ("promptyard-bf16", "transformers-padded"),
    "llama-q8_0": ("promptyard-q8", "llama-q8_0"),
}
# A prompt alone takes a tenth of a second, so prefill is measured over this many, one after the other.
PREFILL_PROMPTS = 8
# No figure takes a minute on two cores; what takes longer hangs.
FIGURE_SECONDS_MAX = 600


class Failed(Exception):
    """Why an engine gave no figure."""


@dataclass(frozen=True)
class Case:
    """What is measured: decoding side by side, or prefill where `sequences` is 0."""

    sequences: int
    prompt_tokens: int
    output_tokens: int

    @property
    def name(self) -> str:
        return f"decode {self.sequences}" if self.sequences else f"prefill {self.prompt_tokens}"


@dataclass(frozen=True)
class Plan:
    comparisons: list[str]
    concurrency: list[int]
    prompt_tokens: int
    output_tokens: int

    def cases(self) -> Iterator[Case]:
        for sequences in [0, *self.concurrency]:
            yield Case(sequences, self.prompt_tokens, self.output_tokens)

    def subjects(self, case: Case) -> list[str]:
        """Those that take part, each once; a single prompt has nothing to be padded to."""
        names = [name for name in self.comparisons if case.sequences > 1 or name != "transformers-padded"]
        return list(dict.fromkeys(subject for name in names for subject in COMPARISONS[name]))


class Subjects:
    def __init__(self, tools: Tools, promptyard: Path, threads: int, llama_options: list[str]):
        self.tools, self.promptyard, self.threads, self.llama_options = tools, promptyard, threads, llama_options
        self.torch: TorchPeer | None = None

    def measure(self, subject: str, case: Case) -> float:
        """Tokens a second, of all sequences together."""
        engine, _, kind = subject.partition("-")
        if engine == "promptyard":
            return self.promptyard_figure(kind, case)
        if engine == "llama":
            return self.llama_prefill(kind, case) if not case.sequences else self.llama_decode(kind, case)
        if self.torch is None:
            self.torch = TorchPeer(self.tools, self.threads)
        return self.torch.figure(case, padded=kind == "padded")

    def promptyard_figure(self, kind: str, case: Case) -> float:
        sequences, output = (case.sequences, case.output_tokens) if case.sequences else (PREFILL_PROMPTS, 1)
        words = ["bench", "engine", "--model", self.tools.models / "hf", "--weights", kind, "--rounds", 1, "--json"]
        words += ["--concurrency", sequences, "--prompt-tokens", case.prompt_tokens, "--output-tokens", output]
        told = json.loads(run([self.promptyard, *words], RAYON_NUM_THREADS=self.threads))
        if told["threads"] != self.threads:
            raise Failed(f"computes with {told['threads']} threads; {self.threads} were asked for")
        figure = "decode_tokens_per_second" if case.sequences else "prefill_tokens_per_second"
        return told["cases"][0][figure]

    def llama_decode(self, kind: str, case: Case) -> float:
        # Each sequence has a cache of its own, whose length llama.cpp rounds up to this.
        length = -(-(case.prompt_tokens + case.output_tokens) // 256) * 256
        words = ["-m", self.tools.models / f"{kind}.gguf", "-c", length * case.sequences, "-npl", case.sequences]
        words += ["-npp", case.prompt_tokens, "-ntg", case.output_tokens, "--output-format", "jsonl"]
        words += ["-t", self.threads, "-tb", self.threads, *self.llama_options]
        lines = run([self.tools.llama / "llama-batched-bench", *words]).splitlines()
        told = [json.loads(line) for line in lines if line.startswith("{")]
        expected = case.sequences * (case.prompt_tokens + case.output_tokens)
        if len(told) != 1 or (told[0]["pl"], told[0]["n_kv"]) != (case.sequences, expected):
            raise Failed(f"expected one line on {case.sequences} sequences of {expected} tokens, found {told}")
        return told[0]["speed_tg"]

    def llama_prefill(self, kind: str, case: Case) -> float:
        told = self.llama_bench(kind, case.prompt_tokens, PREFILL_PROMPTS)
        return PREFILL_PROMPTS * case.prompt_tokens / sum(told["samples_ns"]) * 1e9

    def llama_bench(self, kind: str, prompt_tokens: int, prompts: int) -> dict:
        words = ["-m", self.tools.models / f"{kind}.gguf", "-p", prompt_tokens, "-n", 0, "-r", prompts, "-o", "json"]
        (told,) = json.loads(run([self.tools.llama / "llama-bench", *words, "-t", self.threads]))
        return told

    def versions(self) -> dict:
        """Versions, and what each peer says of the instructions and the weights it uses."""
        script = "import llama_cpp as l; print(l.__version__); print(l.llama_print_system_info().decode())"
        binding, system = run([self.tools.python, "-c", script], LLAMA_CPP_LIB_PATH=self.tools.llama).splitlines()[:2]
        library = (self.tools.llama / "libllama.so").resolve().name
        return {
            "promptyard": run([self.promptyard, "--version"]).strip(),
            "promptyard_commit": commit(),
            "llama_cpp_python": binding,
            "llama_cpp_library": library,
            "llama_cpp_instructions": system,
            "llama_cpp_models": [self.llama_bench(kind, 16, 1)["model_type"] for kind in ("bf16", "q8_0")],
            "llama_cpp_options": " ".join(self.llama_options),
            "peers": json.loads(run([self.tools.python, Path(__file__).with_name("torch_peer.py"), "--versions"])),
        }

    def close(self) -> None:
        if self.torch:
            self.torch.close()


class TorchPeer:
    """transformers in a process of its own that stays: its start takes longer than a figure."""

    def __init__(self, tools: Tools, threads: int):
        words = [tools.python, Path(__file__).with_name("torch_peer.py"), tools.models / "hf", threads]
        pipe = subprocess.PIPE
        # Its own session, so that an interruption reaches this process alone.
        self.process = subprocess.Popen(
            list(map(str, words)), stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def figure(self, case: Case, padded: bool) -> float:
        limit = threading.Timer(FIGURE_SECONDS_MAX, self.process.kill)
        limit.start()
        try:
            self.process.stdin.write(json.dumps(vars(case) | {"padded": padded, "prompts": PREFILL_PROMPTS}) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            limit.cancel()
        if not answer:
            self.process.kill()
            raise Failed(last_line(self.process.stderr.read()))
        return json.loads(answer)["tokens_per_second"]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def run(words: list, **environment: object) -> str:
    """What a command prints; raises `Failed` with its last line."""
    more = {name: str(value) for name, value in environment.items()}
    try:
        done = subprocess.run(
            list(map(str, words)),
            env=os.environ | more,
            capture_output=True,
            text=True,
            timeout=FIGURE_SECONDS_MAX,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(str(error)) from error
    if done.returncode:
        raise Failed(f"exit code {done.returncode}: {last_line(done.stderr)}")
    return done.stdout


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it ended without a word"


def commit() -> str:
    """The commit of the checkout that these scripts lie in; the program may be older."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip()
