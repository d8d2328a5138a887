"""Tokenizer and chat template of the pair: how a conversation becomes token ids.

Every turn's text follows its role token after one space. To a byte-level tokenizer " Nils" and "Nils" are different
words, and copying a name from question to answer is learned only where both are the same one.
"""

import random
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from world import MARK, TRAINED, Dice, Item, sample

VOCAB = 1_536
SPECIAL = ["<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
PAD, SYSTEM, USER, ASSISTANT, END = range(len(SPECIAL))
ROLE = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|> ' + (message['content'] | trim) }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(seed: int, items: int = 30_000) -> Tokenizer:
    """Byte-level BPE over the training split; every digit is a token of its own, which arithmetic needs.

    A word, a digit or a run of signs takes the space before it along, so that no token is a space alone.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[0-9]| ?\p{L}+| ?[^\s\p{L}0-9]+|\s"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()

    def corpus():
        dice, pick = Dice(seed), random.Random(seed)
        for _ in range(items):
            for turn in sample(pick.choice(list(TRAINED)), "train", dice).turns:
                yield " " + turn.text
                if turn.working:
                    yield f" {turn.working} {MARK}"

    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def load_or_train_tokenizer(path: Path, seed: int) -> Tokenizer:
    if not path.exists():
        train_tokenizer(seed).save(str(path))
    return Tokenizer.from_file(str(path))


class Encoder:
    """Conversations to (ids, learned), where `learned[i]` says whether token `i` carries loss."""

    def __init__(self, tokenizer: Tokenizer, with_working: bool):
        self.tokenizer, self.with_working = tokenizer, with_working

    def __call__(self, item: Item) -> tuple[list[int], list[bool]]:
        texts = []
        for turn in item.turns:
            working = f" {turn.working} {MARK}" if turn.working and self.with_working else ""
            texts.append(f"{working} {turn.text}")
        ids: list[int] = []
        learned: list[bool] = []
        for turn, encoded in zip(item.turns, self.tokenizer.encode_batch_fast(texts)):
            ids += [ROLE[turn.role], *encoded.ids]
            learned += [False] + [turn.learn] * len(encoded.ids)
            if turn.role == "assistant":
                ids.append(END)
                learned.append(turn.learn)
        return ids, learned


def final_answer(text: str) -> str:
    """What is marked: the text after the last `#`, or all of it where there is none."""
    return text.rpartition(MARK)[2].strip()
