"""Writes marked prompts for calibrating and judging the router: OpenAI batch lines with "expect" and "family".

    python calibration.py --out validation.jsonl              # seen phrasings and names, new items: to fit on
    python calibration.py --split test --out test.jsonl       # the test split: to judge on, never to fit on

The confidence weights in router/ are then made by two commands (see README.md):

    promptyard run validation.jsonl --labels labels.jsonl --set router.threshold=1 --set worker.escalate_below=0
    promptyard router calibrate --from labels.jsonl --out router/confidence.json
"""

import argparse
import json
from pathlib import Path

from world import FAMILIES, TEST_PER_FAMILY, Dice, Item, batch_line, fixed_split, sample

SEED = 777_000  # apart from the seeds of the checkpoints' own validation items
PER_FAMILY = 300


def validation(per_family: int, seed: int) -> list[Item]:
    """Items of the validation split, all different; none was trained on and none is in the test split."""
    items: list[Item] = []
    for n, family in enumerate(FAMILIES):
        dice, seen = Dice(seed + n), set()
        while len(seen) < per_family:
            item = sample(family, "validation", dice)
            if item.fingerprint not in seen:
                seen.add(item.fingerprint)
                items.append(item)
    return items


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--split", choices=["validation", "test"], default="validation")
    p.add_argument("--per-family", type=int)
    p.add_argument("--seed", type=int, default=SEED)
    p.add_argument("--out", type=Path, required=True)
    args = p.parse_args()
    if args.split == "test":
        items = fixed_split("test", args.per_family or TEST_PER_FAMILY)
    else:
        items = validation(args.per_family or PER_FAMILY, args.seed)
    with open(args.out, "w", encoding="utf-8") as f:
        for n, item in enumerate(items):
            f.write(json.dumps(batch_line(n, item), ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
