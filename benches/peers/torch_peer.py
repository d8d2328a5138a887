"""Measures transformers on torch: answers each line of JSON on standard input with a figure.

    python torch_peer.py CHECKPOINT THREADS
    python torch_peer.py --versions

Decoding is the loop of `generate` without its bookkeeping: one forward pass a step over a static batch, the cache
grown by each. That flatters transformers by what choosing tokens and testing for the end would cost.
"""

import json
import os
import sys
import time

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoModelForCausalLM, DynamicCache  # noqa: E402


def versions() -> dict:
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "onednn_bf16": torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    }


def prompts(lengths: list[int], vocabulary: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Random prompts, the shorter ones filled up at their left, and the mask of what is no filling."""
    longest = max(lengths)
    tokens = torch.randint(3, vocabulary, (len(lengths), longest))
    if min(lengths) == longest:
        return tokens, None
    mask = torch.zeros_like(tokens)
    for row, length in enumerate(lengths):
        mask[row, longest - length :] = 1
    return tokens, mask


def prefill(model, tokens: int, count: int) -> float:
    """Prompt tokens a second, one prompt after the other."""
    batches = [prompts([tokens], model.config.vocab_size)[0] for _ in range(count + 1)]
    model(batches[0], use_cache=True, logits_to_keep=1)
    begun = time.perf_counter()
    for batch in batches[1:]:
        model(batch, use_cache=True, logits_to_keep=1)
    return count * tokens / (time.perf_counter() - begun)


def decode(model, lengths: list[int], steps: int) -> float:
    """Generated tokens a second, all sequences together."""
    tokens, mask = prompts(lengths, model.config.vocab_size)
    cache = DynamicCache(config=model.config)
    model(tokens, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1)
    one = torch.ones(len(lengths), 1, dtype=torch.long)
    following = torch.randint(3, model.config.vocab_size, (steps, len(lengths), 1))
    begun = time.perf_counter()
    for token in following:
        if mask is not None:
            mask = torch.cat([mask, one], dim=1)
        model(token, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return len(lengths) * steps / (time.perf_counter() - begun)


def answer(model, asked: dict) -> float:
    tokens, sequences = asked["prompt_tokens"], asked["sequences"]
    if not sequences:
        return prefill(model, tokens, asked["prompts"])
    lengths = [tokens] * sequences
    if asked["padded"]:
        # From half the length to one and a half times it, so that the mean stays.
        lengths = [tokens // 2 + tokens * row // (sequences - 1) for row in range(sequences)]
    return decode(model, lengths, asked["output_tokens"])


def main() -> None:
    if sys.argv[1] == "--versions":
        print(json.dumps(versions()))
        return
    torch.set_num_threads(int(sys.argv[2]))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    with torch.inference_mode():
        decode(model, [8], 2)
        for line in sys.stdin:
            print(json.dumps({"tokens_per_second": answer(model, json.loads(line))}), flush=True)


if __name__ == "__main__":
    main()
