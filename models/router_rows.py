"""Rows that teach the router the support desk: what both models made of the same labelled questions.

    python calibration.py --out validation.jsonl
    promptyard run validation.jsonl --ledger small.db --out small.jsonl --set router.threshold=1 --set worker.escalate_below=0
    promptyard run validation.jsonl --ledger large.db --out large.jsonl --set router.threshold=0
    python router_rows.py validation.jsonl small.jsonl large.jsonl --out support.jsonl
    promptyard router train --from dev.jsonl --from support.jsonl --out router/gain.weights --against length

Conversations of several turns are left out: a row holds one prompt.
"""

import argparse
import json
from pathlib import Path

from text import final_answer


def answers(path: Path) -> dict[str, str]:
    """What a model said to each line of the batch, by the line's own id."""
    out = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        choices = (row["response"] or {}).get("body", {}).get("choices")
        out[row["custom_id"]] = choices[0]["message"]["content"] if choices else ""
    return out


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("questions", type=Path)
    p.add_argument("small", type=Path)
    p.add_argument("large", type=Path)
    p.add_argument("--out", type=Path, required=True)
    args = p.parse_args()
    small, large = answers(args.small), answers(args.large)
    with open(args.out, "w", encoding="utf-8") as f:
        for line in args.questions.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            messages, name = row["body"]["messages"], row["custom_id"]
            if len(messages) == 1:
                right = [float(final_answer(said[name]) == row["expect"]) for said in (small, large)]
                f.write(json.dumps({"prompt": messages[0]["content"], "weak_score": right[0], "strong_score": right[1],
                                    "set": "support", "domain": row["family"]}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
