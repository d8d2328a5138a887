"""Writes a trained checkpoint as a plain Hugging Face folder and checks it against transformers.

    python export.py --runs runs --out .        # runs/{small,large} -> ./small, ./large
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaForCausalLM

from model import SIZES, Config, Llama
from text import CHAT_TEMPLATE, END, PAD, SPECIAL, Encoder
from world import FAMILIES, Dice, sample

LOGIT_TOLERANCE = 1e-3  # f32 arithmetic on equal, bf16-rounded weights


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def export(runs: Path, size: str, out: Path) -> None:
    state = torch.load(runs / size / "checkpoint.pt", map_location="cpu")
    config = Config(**state["config"])
    out.mkdir(parents=True, exist_ok=True)
    ends = {"bos_token_id": None, "eos_token_id": END, "pad_token_id": PAD}
    weights = {name: w.to(torch.bfloat16).contiguous() for name, w in state["model"].items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    write_json(out / "config.json", config.huggingface() | ends | {"torch_dtype": "bfloat16"})
    write_json(out / "generation_config.json", ends | {"do_sample": False, "max_new_tokens": 192})
    shutil.copy(runs / "tokenizer.json", out / "tokenizer.json")
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.context,
            "eos_token": SPECIAL[END],
            "pad_token": SPECIAL[PAD],
            "additional_special_tokens": [t for t in SPECIAL if t not in (SPECIAL[END], SPECIAL[PAD])],
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    verify(config, weights, out, with_working=size == "large")
    total = sum(f.stat().st_size for f in out.iterdir())
    print(f"{size}: {sum(w.numel() for w in weights.values()):,} parameters, {total / 1e6:.2f} MB")


def verify(config: Config, weights: dict[str, torch.Tensor], out: Path, with_working: bool) -> None:
    """Asserts that transformers, given the folder alone, sees the same prompts and computes the same logits."""
    ours = Llama(config)
    ours.load_state_dict({name: w.float() for name, w in weights.items()})
    theirs = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
    their_tokenizer = AutoTokenizer.from_pretrained(out)
    encode = Encoder(Tokenizer.from_file(str(out / "tokenizer.json")), with_working)
    dice, worst = Dice(11, test=True), 0.0
    for family in FAMILIES:
        item = sample(family, "test", dice)
        answered, _ = encode(item)
        prompt = their_tokenizer.apply_chat_template(item.messages, add_generation_prompt=True, return_dict=False)
        plain = their_tokenizer.apply_chat_template([*item.messages, {"role": "assistant", "content": item.expect}], return_dict=False)
        assert answered[: len(prompt)] == prompt or not with_working, (family, their_tokenizer.decode(prompt))
        assert with_working or answered == plain, family
        with torch.no_grad():
            ids = torch.tensor([answered])
            worst = max(worst, (ours(ids) - theirs(ids).logits).abs().max().item())
    assert worst < LOGIT_TOLERANCE, worst
    print(f"largest difference of a logit from transformers: {worst:.1e}")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", type=Path, default=Path("runs"))
    p.add_argument("--out", type=Path, default=Path("."))
    p.add_argument("sizes", nargs="*", default=list(SIZES))
    args = p.parse_args()
    for size in args.sizes:
        export(args.runs, size, args.out / size)


if __name__ == "__main__":
    main()
