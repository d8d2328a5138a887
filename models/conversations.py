"""Writes the test split as whole conversations, for `promptyard bench perplexity`.

    python conversations.py --out small.jsonl             # answers as the small model learned them
    python conversations.py --working --out large.jsonl   # and as the large one did, the working first
"""

import argparse
import json
from pathlib import Path

from world import MARK, TEST_PER_FAMILY, Item, fixed_split


def conversation(item: Item, with_working: bool) -> list[dict[str, str]]:
    last = item.turns[-1]
    answer = f"{last.working} {MARK} {last.text}" if last.working and with_working else last.text
    return [*item.messages, {"role": last.role, "content": answer}]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--working", action="store_true")
    p.add_argument("--per-family", type=int, default=TEST_PER_FAMILY)
    p.add_argument("--out", type=Path, required=True)
    args = p.parse_args()
    with open(args.out, "w", encoding="utf-8") as f:
        for item in fixed_split("test", args.per_family):
            f.write(json.dumps({"messages": conversation(item, args.working)}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
