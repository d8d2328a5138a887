"""Writes a support desk's traffic with context, for `promptyard bench tokens`.

    python context.py --out desk.jsonl              # what is asked as a desk's system would send it
    python context.py --bare --out bare.jsonl       # the same questions with the facts alone

Questions about orders come with the customer's file: the orders, one in four times as the HTML of a web form, and
excerpts of the help pages. Files are asked about more than once. The second half repeats questions of the first, word for
word or, in the family faq, in other words. Items are of the test split; lines say what is right in "expect".
"""

import argparse
import json
from pathlib import Path

from world import FAMILIES, FAQ, MARK, SYSTEMS, Dice, batch_line, faq, fixed_split, split_of

SEED = 555_000
# Parts of the second half: repeated word for word, about files of the first half, other questions of the faq.
REPEATED, FOLLOWING, REPHRASED = 0.30, 0.25, 0.20
# Parts of the first half: about files, of the faq. The rest are the other families, as support_mix.txt has them.
ABOUT_FILES, OF_FAQ = 0.45, 0.25
OTHERS = {"intent": 10, "sentiment": 5, "extract": 10, "rewrite": 5, "arithmetic": 1, "total": 4, "sort": 1, "count": 1, "dates": 2}
EXCERPTS, SENTENCES = 3, 4
LIMIT = {"status": 48, "record": 160}


def line(family: str, content: str, expect: str, answer_tokens: int) -> dict:
    assert MARK not in expect
    messages = [{"role": "system", "content": SYSTEMS[2]}, {"role": "user", "content": content}]
    body = {"messages": messages, "temperature": 0, "max_completion_tokens": answer_tokens}
    return {"custom_id": "", "method": "POST", "url": "/v1/chat/completions", "body": body, "expect": expect, "family": family}


def excerpts(d: Dice) -> str:
    answers = [answer for _, _, answer in FAQ]
    return "\n\n".join(" ".join(d.sample(answers, SENTENCES)) for _ in range(EXCERPTS))


def html(facts: str) -> str:
    items = "\n".join(f'  <li class="order">{fact.removeprefix("- ")}</li>' for fact in facts.split("\n"))
    return f'<ul class="orders" id="customer">\n{items}\n</ul>'


def customer_file(d: Dice, bare: bool) -> list[tuple[str, str, str]]:
    """Questions about one customer's orders: (family, message, answer)."""
    family = "status" if d.random() < 0.88 else "record"
    while True:
        d.start()
        draft = FAMILIES[family](d)
        if split_of(draft.key.lower()) == "test" and len(draft.questions) > 1:
            break
    facts, pages, from_form = draft.context, excerpts(d), d.random() < 0.25
    asked = []
    for question, _, answer in draft.questions:
        # What follows another question in a conversation cannot stand by itself.
        order = answer.split()[0] if family == "status" else question.rsplit(" ", 1)[-1].rstrip("?")
        question = f"what is the status of order {order}?" if family == "status" and len(question.split()) < 4 else question
        question = question if question.endswith("?") else f"{question}?"
        shown = facts if bare else f"{html(facts) if from_form else facts}\n\n{pages}"
        asked.append((family, f"{shown}\nQuestion: {question}" if bare else f"{shown}\n\nQuestion: {question}", answer))
    return asked


def traffic(count: int, seed: int, bare: bool) -> list[dict]:
    d = Dice(seed, test=True)
    others = [item for item in fixed_split("test", 200) if item.family in OTHERS and len(item.messages) == 1]
    d.shuffle(others)
    by_family = {family: [item for item in others if item.family == family] for family in OTHERS}
    names, weights = zip(*OTHERS.items())
    half = count // 2

    def other() -> dict:
        return batch_line(0, by_family[d.choices(names, weights)[0]].pop())

    def of_faq() -> dict:
        d.start()
        question, _, answer = faq(d).questions[0]
        return line("faq", question, answer, 48)

    def about(asked: tuple[str, str, str]) -> dict:
        family, message, answer = asked
        return line(family, message, answer, LIMIT[family])

    first, later = [], []
    while len(first) < half * ABOUT_FILES:
        now, *rest = customer_file(d, bare)
        if len(rest) > 1:
            first += [about(asked) for asked in (now, rest.pop(0))]
        else:
            first.append(about(now))
        later += rest
    while len(first) < half * (ABOUT_FILES + OF_FAQ):
        first.append(of_faq())
    first += [other() for _ in range(len(first), half)]
    d.shuffle(first)

    second: list[dict] = []
    for again in d.sample(first, int(half * REPEATED)):
        second.append(dict(again))
    for asked in d.sample(later, min(len(later), int(half * FOLLOWING))):
        second.append(about(asked))
    second += [of_faq() for _ in range(int(half * REPHRASED))]
    second += [other() for _ in range(len(second), half)]
    d.shuffle(second)
    asked = first + second
    for n, one in enumerate(asked):
        one["custom_id"] = f"{one['family']}-{n:04d}"
    return asked


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--count", type=int, default=600)
    p.add_argument("--seed", type=int, default=SEED)
    p.add_argument("--bare", action="store_true", help="without excerpts and HTML")
    p.add_argument("--out", type=Path, required=True)
    args = p.parse_args()
    with open(args.out, "w", encoding="utf-8") as f:
        for asked in traffic(args.count, args.seed, args.bare):
            f.write(json.dumps(asked, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
