"""Marks exported models on the test split: greedy decoding by transformers, exact match of the final answer.

    python evaluate.py small large                          # tables per family and per held-out part
    python evaluate.py large --show 5                       # and up to five wrong answers of every family
    python evaluate.py small --file ../examples/prompts.jsonl
"""

import argparse
import json
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from text import final_answer
from world import EASY, FAMILIES, TEST_PER_FAMILY, fixed_split


@dataclass
class Question:
    family: str
    part: str
    messages: list[dict[str, str]]
    expect: str


def test_split(per_family: int) -> list[Question]:
    return [Question(i.family, i.part, i.messages, i.expect) for i in fixed_split("test", per_family)]


def from_file(path: Path) -> list[Question]:
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [Question(x["family"], "file", x["body"]["messages"], x["expect"]) for x in lines]


class Model:
    def __init__(self, folder: Path):
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)

    @torch.no_grad()
    def answers(self, questions: list[Question], batch: int = 50) -> list[tuple[str, int, int]]:
        """(text, prompt tokens, answer tokens) of each question."""
        prompts = [self.tokenizer.apply_chat_template(q.messages, add_generation_prompt=True, tokenize=False) for q in questions]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        out: list[tuple[str, int, int]] = [("", 0, 0)] * len(prompts)
        for at in range(0, len(order), batch):
            rows = order[at : at + batch]
            x = self.tokenizer([prompts[i] for i in rows], return_tensors="pt", padding=True, add_special_tokens=False)
            y = self.model.generate(input_ids=x["input_ids"], attention_mask=x["attention_mask"], do_sample=False, max_new_tokens=192)
            for i, ids, mask in zip(rows, y[:, x["input_ids"].shape[1] :].tolist(), x["attention_mask"]):
                ids = ids[: ids.index(self.tokenizer.eos_token_id)] if self.tokenizer.eos_token_id in ids else ids
                out[i] = (self.tokenizer.decode(ids), int(mask.sum()), len(ids) + 1)
        return out


def evaluate(folder: Path, questions: list[Question], show: int) -> dict:
    began = time.monotonic()
    answers = Model(folder).answers(questions)
    right, parts, tokens, shown = defaultdict(list), defaultdict(list), defaultdict(list), defaultdict(int)
    for q, (text, prompt_tokens, answer_tokens) in zip(questions, answers):
        ok = final_answer(text) == q.expect
        right[q.family].append(ok)
        parts[q.part].append(ok)
        tokens[q.family].append((prompt_tokens, answer_tokens))
        if not ok and shown[q.family] < show:
            shown[q.family] += 1
            print(f"{q.family} ({q.part}): {q.messages[-1]['content']!r}\n    want {q.expect!r}\n    got  {text.strip()!r}")
    mark = {f: round(100 * sum(v) / len(v), 1) for f, v in right.items()}

    def mean(families: list[str]) -> float:
        return round(sum(mark[f] for f in families) / max(1, len(families)), 1)

    return {
        "families": mark,
        "easy": mean([f for f in mark if f in EASY]),
        "hard": mean([f for f in mark if f not in EASY]),
        "parts": {p: round(100 * sum(v) / len(v), 1) for p, v in parts.items()},
        "part_items": {p: len(v) for p, v in parts.items()},
        "prompt_tokens": {f: round(sum(t[0] for t in v) / len(v), 1) for f, v in tokens.items()},
        "answer_tokens": {f: round(sum(t[1] for t in v) / len(v), 1) for f, v in tokens.items()},
        "items": len(questions),
        "seconds": round(time.monotonic() - began),
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="+", type=Path)
    p.add_argument("--per-family", type=int, default=TEST_PER_FAMILY)
    p.add_argument("--file", type=Path, help="lines as in examples/, instead of the test split")
    p.add_argument("--show", type=int, default=0)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--json", type=Path, help="also write the marks here")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    questions = from_file(args.file) if args.file else test_split(args.per_family)
    marks = {folder.name: evaluate(folder, questions, args.show) for folder in args.models}
    names = list(marks)
    print(f"{'family':12}" + "".join(f"{n:>9}" for n in names) + "   answer tokens")
    families = [f for f in FAMILIES if f in marks[names[0]]["families"]]
    for f in families:
        print(f"{f:12}" + "".join(f"{marks[n]['families'][f]:9.1f}" for n in names) + "   " + " / ".join(str(marks[n]["answer_tokens"][f]) for n in names))
    for row in ("easy", "hard"):
        print(f"{row:12}" + "".join(f"{marks[n][row]:9.1f}" for n in names))
    for part, items in marks[names[0]]["part_items"].items():
        print(f"{part:12}" + "".join(f"{marks[n]['parts'][part]:9.1f}" for n in names) + f"   ({items} items)")
    if args.json:
        args.json.write_text(json.dumps(marks, indent=1) + "\n")


if __name__ == "__main__":
    main()
