"""Installs the peers into a folder of their own and makes the models; what is there already is kept."""

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements.txt"
CMAKE_OPTIONS = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
]
TARGETS = ["llama", "llama-bench", "llama-batched-bench"]


@dataclass(frozen=True)
class Tools:
    """Where the peers' programs and the models lie."""

    python: Path
    llama: Path
    models: Path


def everything(cache: Path, shape: str, say: Callable[[str], None]) -> Tools:
    cache = cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    python, sources, build = cache / "venv/bin/python", cache / "llama-cpp-python", cache / "llama-build"
    if (cache / "requirements.txt").exists() and (cache / "requirements.txt").read_text() != REQUIREMENTS.read_text():
        say("requirements.txt has changed: installing anew")
        for folder in (cache / "venv", sources, build):
            shutil.rmtree(folder, ignore_errors=True)
    if not (cache / "requirements.txt").exists():
        say(f"installing transformers, torch and the tools into {cache}")
        install_packages(python)
        fetch_llama(python, sources)
    if not (build / "bin/llama-batched-bench").exists() or not (build / "bin/llama-bench").exists():
        say("building llama.cpp with this machine's instructions (about ten minutes on two cores)")
        build_llama(python, sources, build)
    if not (cache / "requirements.txt").exists():
        install_binding(python, sources)
        shutil.copy(REQUIREMENTS, cache / "requirements.txt")
    models = cache / "models" / shape
    if not (models / "q8_0.gguf").exists():
        say(f"making models of the {shape} shape")
        part = models.with_name(f"{shape}.part")
        shutil.rmtree(part, ignore_errors=True)
        command([python, HERE / "make_models.py", shape, part])
        say(command([python, HERE / "compare_models.py", part], {"LLAMA_CPP_LIB_PATH": str(build / "bin")}))
        shutil.rmtree(models, ignore_errors=True)
        part.rename(models)
    return Tools(python, build / "bin", models)


def command(words: list[Path | str], environment: dict[str, str] | None = None) -> str:
    """What a command prints, run at the lowest priority; a failure ends the program with its last lines."""
    done = subprocess.run(
        ["nice", "-n", "19", *map(str, words)],
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stdout + done.stderr).splitlines()[-20:]
        sys.exit(f"{' '.join(map(str, words))} failed:\n" + "\n".join(last))
    return done.stdout.strip()


def pinned(package: str) -> str:
    return next(line for line in REQUIREMENTS.read_text().splitlines() if line.startswith(package + "=="))


def install_packages(python: Path) -> None:
    """All but llama.cpp's binding, whose wheel would be built for this machine twice."""
    binding = pinned("llama-cpp-python")
    others = [line for line in REQUIREMENTS.read_text().splitlines() if line and line[0] != "#" and line != binding]
    command([sys.executable, "-m", "venv", python.parents[1]])
    command([python, "-m", "pip", "install", *others])


def fetch_llama(python: Path, sources: Path) -> None:
    """The binding's source distribution; it carries the llama.cpp that it was made for."""
    part = sources.with_name("llama-cpp-python.part")
    shutil.rmtree(part, ignore_errors=True)
    words = ["download", "--no-deps", "--no-build-isolation", "--no-binary", "llama-cpp-python", "--dest", part]
    command([python, "-m", "pip", *words, pinned("llama-cpp-python")], tools_first(python))
    archive = next(part.glob("*.tar.gz"))
    with tarfile.open(archive) as opened:
        opened.extractall(part, filter="data")
    shutil.rmtree(sources, ignore_errors=True)
    next(path for path in part.iterdir() if path.is_dir()).rename(sources)
    shutil.rmtree(part)


def build_llama(python: Path, sources: Path, build: Path) -> None:
    cmake = python.with_name("cmake")
    configure = [cmake, "-G", "Ninja", "-S", sources / "vendor/llama.cpp", "-B", build, *CMAKE_OPTIONS]
    command(configure, tools_first(python))
    command([cmake, "--build", build, "--target", *TARGETS], tools_first(python))


def install_binding(python: Path, sources: Path) -> None:
    """The Python package alone: `LLAMA_CPP_LIB_PATH` shows it the library that was built."""
    words = ["install", "--no-deps", "--no-build-isolation", "--config-settings=cmake.define.LLAMA_BUILD=OFF"]
    command([python, "-m", "pip", *words, sources], tools_first(python))


def tools_first(python: Path) -> dict[str, str]:
    return {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
