"""Asserts that llama.cpp computes the same model as transformers from the files made for each.

    LLAMA_CPP_LIB_PATH=… python compare_models.py FOLDER

A wrong order of rows or a wrong name would leave the speed as it is, and compare two different models.
"""

import sys
from pathlib import Path

import llama_cpp
import numpy as np
import torch
from transformers import AutoModelForCausalLM

# Correlation of all logits of one prompt with those in f32; rows of q and k in the other order fall below.
CORRELATION_MIN = {"bf16": 0.999, "q8_0": 0.995}
PROMPT_TOKENS = 48


def logits_of_transformers(checkpoint: Path, tokens: list[int]) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0].numpy()


def logits_of_llama(path: Path, tokens: list[int]) -> np.ndarray:
    model = llama_cpp.Llama(str(path), n_ctx=256, n_threads=2, logits_all=True, verbose=False)
    model.eval(tokens)
    return np.array(model.scores[: len(tokens)])


def main() -> None:
    folder = Path(sys.argv[1])
    tokens = np.random.default_rng(0).integers(3, 49_000, PROMPT_TOKENS).tolist()
    expected = logits_of_transformers(folder / "hf", tokens)
    for kind, least in CORRELATION_MIN.items():
        found = logits_of_llama(folder / f"{kind}.gguf", tokens)
        correlation = float(np.corrcoef(expected.ravel(), found.ravel())[0, 1])
        print(f"{kind}: correlation {correlation:.5f} with transformers' f32 logits")
        assert correlation > least, f"llama.cpp computes another model from {kind}.gguf"


if __name__ == "__main__":
    main()
