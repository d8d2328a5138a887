"""Trains one model of the pair; stops and resumes exactly.

    python train.py --size small --runs runs        # continues where runs/small left off, if it is there
    python train.py --size large --runs runs

Everything is decided by step: the data (pool `n` of the stream is drawn by a seed of its own), the phase of the
curriculum and the learning rate. A run that was killed and resumed equals one that was not.
"""

import argparse
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from model import SIZES, Config, Llama
from text import PAD, VOCAB, Encoder, load_or_train_tokenizer
from world import EASY, HARD, Dice, fixed_split, sample

POOL_ITEMS = 1_500  # drawn at once and sorted by length, so that batches hold little padding


@dataclass(frozen=True)
class Plan:
    """How one model is trained. Rates are constant to `decay_from`, then fall linearly to 2 % at `steps`."""

    steps: int
    decay_from: int
    copy_steps: int  # copying families alone, until induction has formed
    batch_tokens: int
    weights: dict[str, float]
    warmup_steps: int = 30
    muon_rate: float = 0.02
    adam_rate: float = 3e-3


COPY_WEIGHTS = {"echo": 1.0, "show": 1.0, "fact": 1.0, "extract": 1.0, "rewrite": 0.5, "status": 1.0}
PLANS = {
    # The small model answers at once, so on the hard families it can only guess: they get little of its time.
    "small": Plan(
        steps=7_000, decay_from=3_500, copy_steps=1_500, batch_tokens=2_048,
        weights={"faq": 1.0, "intent": 0.8, "sentiment": 0.8, "extract": 1.2, "rewrite": 1.0, "status": 1.5, "echo": 0.3, "show": 0.3}
        | dict.fromkeys(HARD, 0.12),
    ),
    "large": Plan(
        steps=7_000, decay_from=4_000, copy_steps=900, batch_tokens=3_072,
        weights={"faq": 0.6, "intent": 0.4, "sentiment": 0.4, "extract": 0.8, "rewrite": 0.6, "status": 0.6, "echo": 0.2, "show": 0.3, "fact": 0.4,
                 "record": 0.8, "arithmetic": 2.0, "total": 1.5, "sort": 2.0, "count": 1.2, "dates": 1.8, "hops2": 1.2, "hops3": 1.5},
    ),
}


# ---- data ------------------------------------------------------------------------------------------------------
Encoded = tuple[list[int], list[bool]]


@dataclass
class Cursor:
    """Where in the stream training stands; all that is needed to go on with the same data."""

    pool: int = 0
    batch: int = 0
    copying: bool = True


class Stream:
    def __init__(self, encode: Encoder, plan: Plan, seed: int, cursor: Cursor):
        self.encode, self.plan, self.seed, self.cursor = encode, plan, seed, cursor
        self.batches: list[list[Encoded]] | None = None

    def _fill(self) -> list[list[Encoded]]:
        dice = Dice(self.seed * 1_000_003 + self.cursor.pool)
        weights = COPY_WEIGHTS if self.cursor.copying else self.plan.weights
        families = dice.choices(list(weights), list(weights.values()), k=POOL_ITEMS)
        pool = sorted((self.encode(sample(f, "train", dice)) for f in families), key=lambda x: len(x[0]))
        batches: list[list[Encoded]] = [[]]
        for x in pool:
            if (len(batches[-1]) + 1) * padded(len(x[0])) > self.plan.batch_tokens and batches[-1]:
                batches.append([])
            batches[-1].append(x)
        dice.shuffle(batches)
        return batches

    def next(self, step: int) -> list[Encoded]:
        if self.batches is None:
            self.batches = self._fill()
        elif self.cursor.batch == len(self.batches):
            self.cursor.pool, self.cursor.batch = self.cursor.pool + 1, 0
            self.cursor.copying = step < self.plan.copy_steps
            self.batches = self._fill()
        self.cursor.batch += 1
        return self.batches[self.cursor.batch - 1]


def padded(length: int) -> int:
    return -(-length // 8) * 8


def collate(xs: list[Encoded], device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids `[batch, length]`; then, for every learned token, its predictor's flat position, the token, and its row."""
    length = padded(max(len(ids) for ids, _ in xs))
    ids = torch.tensor([x + [PAD] * (length - len(x)) for x, _ in xs])
    learned = torch.tensor([m + [False] * (length - len(m)) for _, m in xs])
    flat = learned.flatten().nonzero().squeeze(1)
    return ids.to(device), (flat - 1).to(device), ids.flatten()[flat].to(device), (flat // length).to(device)


# ---- optimisers ------------------------------------------------------------------------------------------------
class Muon:
    """Momentum whose update is orthogonalised (Jordan et al., 2024), for matrices; those of one shape go together."""

    def __init__(self, matrices: list[Tensor], momentum: float = 0.95, weight_decay: float = 0.1):
        shapes: dict[tuple[int, ...], list[Tensor]] = {}
        for p in matrices:
            shapes.setdefault(tuple(p.shape), []).append(p)
        self.groups = list(shapes.values())
        self.buffers = [torch.zeros(len(g), *g[0].shape, device=g[0].device) for g in self.groups]
        self.momentum, self.weight_decay = momentum, weight_decay

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for group, buffer in zip(self.groups, self.buffers):
            gradient = torch.stack([p.grad for p in group])
            buffer.mul_(self.momentum).add_(gradient)
            update = orthogonal(gradient.add_(buffer, alpha=self.momentum))
            rows, columns = group[0].shape
            scale = rate * max(1.0, rows / columns) ** 0.5
            for p, u in zip(group, update):
                p.mul_(1 - rate * self.weight_decay).add_(u, alpha=-scale)


def orthogonal(g: Tensor) -> Tensor:
    """The nearest orthogonal matrices, by five Newton-Schulz iterations in bfloat16."""
    tall = g.size(1) > g.size(2)
    x = g.mT if tall else g
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return (x.mT if tall else x).float()


def rate_factor(step: int, plan: Plan) -> float:
    warm = min(1.0, (step + 1) / plan.warmup_steps)
    decay = 1.0 if step < plan.decay_from else max(0.02, (plan.steps - step) / (plan.steps - plan.decay_from))
    return warm * decay


# ---- the run ---------------------------------------------------------------------------------------------------
class Run:
    def __init__(self, args: argparse.Namespace, plan: Plan):
        self.args, self.plan = args, plan
        self.folder = args.runs / args.size
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(args.seed)
        self.encode = Encoder(load_or_train_tokenizer(args.runs / "tokenizer.json", args.seed), with_working=args.size == "large")
        self.model = Llama(Config(vocab=VOCAB, **SIZES[args.size])).to(args.device)
        named = dict(self.model.named_parameters())
        matrices = {n for n, p in named.items() if p.dim() == 2 and "embed_tokens" not in n}
        self.others = [p for n, p in named.items() if n not in matrices]
        self.muon = Muon([named[n] for n in named if n in matrices])
        self.adam = torch.optim.AdamW(self.others, plan.adam_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        self.step, self.seconds, self.tokens, self.items, self.loss = 0, 0.0, 0, 0, 7.0
        self.cursor = Cursor()
        if self.checkpoint.exists():
            self.load()
        self.stream = Stream(self.encode, plan, args.seed, self.cursor)
        self.forward = torch.compile(self.model, dynamic=True) if args.compile else self.model
        self.validation = {}
        for item in fixed_split("validation", args.validation_items):
            self.validation.setdefault(item.family, []).append(self.encode(item))

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(), "adam": self.adam.state_dict(), "muon": self.muon.buffers, "cursor": vars(self.cursor),
            "config": self.model.config.as_dict(), "seed": self.args.seed, "batch_tokens": self.plan.batch_tokens,
            "progress": (self.step, self.seconds, self.tokens, self.items, self.loss),
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.checkpoint)

    def load(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.args.device)
        assert state["seed"] == self.args.seed, f"the checkpoint was begun with seed {state['seed']}"
        self.model.load_state_dict(state["model"])
        self.adam.load_state_dict(state["adam"])
        self.muon.buffers = state["muon"]
        self.step, self.seconds, self.tokens, self.items, self.loss = state["progress"]
        cursor = Cursor(**state["cursor"])
        self.cursor = cursor

    def learn(self, xs: list[Encoded]) -> None:
        factor = rate_factor(self.step, self.plan)
        for group in self.adam.param_groups:
            group["lr"] = self.plan.adam_rate * factor
        ids, positions, targets, _ = collate(xs, self.args.device)
        with torch.autocast(self.args.device, torch.bfloat16):
            logits = self.forward(ids, positions, torch.bfloat16)
        loss = F.cross_entropy(logits.float(), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.others, 1.0)
        self.muon.step(self.plan.muon_rate * factor)
        self.adam.step()
        self.adam.zero_grad()
        self.model.zero_grad()
        self.step, self.tokens, self.items = self.step + 1, self.tokens + ids.numel(), self.items + len(xs)
        if self.step % 20 == 0:
            self.loss = loss.item() if self.step == 20 else 0.9 * self.loss + 0.1 * loss.item()

    @torch.no_grad()
    def marks(self) -> dict[str, float]:
        """Share of validation items with every learned token predicted: greedy exact match, working included."""
        out = {}
        for family, encoded in self.validation.items():
            right = 0
            for i in range(0, len(encoded), 25):
                xs = encoded[i : i + 25]
                ids, positions, targets, rows = collate(xs, self.args.device)
                with torch.autocast(self.args.device, torch.bfloat16):
                    wrong = self.model(ids, positions, torch.bfloat16).argmax(-1) != targets
                right += len(xs) - len(rows[wrong].unique())
            out[family] = round(100 * right / len(encoded), 1)
        return out

    def report(self) -> None:
        marks = self.marks()
        line = {"step": self.step, "seconds": round(self.seconds), "tokens": self.tokens, "items": self.items, "loss": round(self.loss, 4),
                "easy": round(sum(marks[f] for f in EASY) / len(EASY), 1), "hard": round(sum(marks[f] for f in HARD) / len(HARD), 1), "marks": marks}
        with open(self.folder / "curve.jsonl", "a") as f:
            f.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def train(self) -> None:
        stop = []
        signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
        last_save = time.monotonic()
        while self.step < self.plan.steps and not stop:
            began = time.monotonic()
            self.learn(self.stream.next(self.step))
            now = time.monotonic()
            # A pause of the whole process (a benchmark beside it) is not training time.
            self.seconds += min(now - began, 5.0) if self.step > 3 else now - began
            if self.step % self.args.report_steps == 0:
                self.report()
            if now - last_save > 60 * self.args.save_minutes:
                self.save()
                last_save = now
        self.save()
        if not stop and self.step % self.args.report_steps:
            self.report()


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--size", choices=SIZES, required=True)
    p.add_argument("--runs", type=Path, default=Path("runs"), help="folder of checkpoints, curves and the tokenizer")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--steps", type=int, help="instead of the plan's; may be changed on resuming, before the decay begins")
    p.add_argument("--decay-from", type=int, help="instead of the plan's")
    p.add_argument("--device", default="cpu")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--compile", action="store_true")
    p.add_argument("--save-minutes", type=float, default=3.0)
    p.add_argument("--report-steps", type=int, default=500)
    p.add_argument("--validation-items", type=int, default=50)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    plan = PLANS[args.size]
    plan = Plan(**vars(plan) | {k: v for k in ("steps", "decay_from") if (v := getattr(args, k)) is not None})
    Run(args, plan).train()


if __name__ == "__main__":
    main()
