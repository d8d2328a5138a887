"""Writes models of SmolLM2's shapes with random weights, for every engine in its own layout.

    python make_models.py 135m FOLDER

FOLDER/hf is a Hugging Face checkpoint in bf16 (transformers and promptyard read it); FOLDER/bf16.gguf and
FOLDER/q8_0.gguf hold the same weights for llama.cpp. Speed does not depend on the values, so none are downloaded.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 49_152
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGE = ("Ġ", "t")
SHAPES = {
    "135m": dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3),
    "360m": dict(hidden_size=960, intermediate_size=2560, num_hidden_layers=32, num_attention_heads=15, num_key_value_heads=5),
}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Names of a layer's tensors: Hugging Face's, llama.cpp's.
LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
KINDS = {
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}


def write_tokenizer(folder: Path) -> None:
    """One token a byte, which is enough to serve text with, and one merge, without which llama.cpp refuses."""
    tokens = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), "".join(MERGE)]
    tokenizer = Tokenizer(models.BPE(vocab={token: at for at, token in enumerate(tokens)}, merges=[MERGE]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder)


def write_checkpoint(shape: str, folder: Path) -> None:
    config = LlamaConfig(
        **SHAPES[shape],
        vocab_size=VOCABULARY,
        max_position_embeddings=8192,
        rope_parameters=dict(rope_type="default", rope_theta=100_000.0),
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=SPECIAL_TOKENS.index("<|im_end|>"),
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    write_tokenizer(folder)


def in_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp turns neighbouring rows of a head by one angle, transformers rows that are half a head apart."""
    half_head = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half_head, -1).swapaxes(1, 2).reshape(weight.shape)


def gguf_tensor(name: str, weight: np.ndarray, config: dict) -> tuple[str, np.ndarray]:
    """A tensor as llama.cpp names and orders it."""
    parts = name.removeprefix("model.").removesuffix(".weight").split(".", 2)
    if parts[0] == "embed_tokens":
        return "token_embd.weight", weight
    if parts[0] == "norm":
        return "output_norm.weight", weight
    _, layer, part = parts
    if part == "self_attn.q_proj":
        weight = in_pairs(weight, config["num_attention_heads"])
    if part == "self_attn.k_proj":
        weight = in_pairs(weight, config["num_key_value_heads"])
    return f"blk.{layer}.{LAYER_NAMES[part]}.weight", weight


def write_gguf(checkpoint: Path, path: Path, kind: str) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    quantization, file_type = KINDS[kind]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(file_type)
    add_tokenizer(writer, checkpoint)
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        name, weight = gguf_tensor(name, tensor.float().numpy(), config)
        if weight.ndim == 1:
            writer.add_tensor(name, weight)
        else:
            writer.add_tensor(name, gguf.quants.quantize(weight, quantization), raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: gguf.GGUFWriter, checkpoint: Path) -> None:
    """The checkpoint's tokens, and placeholders up to the vocabulary, which llama.cpp expects whole."""
    vocabulary = json.loads((checkpoint / "tokenizer.json").read_text())["model"]["vocab"]
    known = sorted(vocabulary, key=vocabulary.get)
    tokens = known + [f"<unused{at}>" for at in range(len(known), VOCABULARY)]
    control, normal, unused = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL, gguf.TokenType.UNUSED
    types = [control] * len(SPECIAL_TOKENS) + [normal] * (len(known) - len(SPECIAL_TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(types + [unused] * (VOCABULARY - len(known)))
    writer.add_token_merges([" ".join(MERGE)])
    writer.add_eos_token_id(SPECIAL_TOKENS.index("<|im_end|>"))
    writer.add_add_bos_token(False)


def main() -> None:
    shape, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint(shape, folder / "hf")
    for kind in KINDS:
        write_gguf(folder / "hf", folder / f"{kind}.gguf", kind)


if __name__ == "__main__":
    main()
