"""Tiny GGUF files of random models, written with llama.cpp's own library, and the models that they hold.

As a script it writes one: `python tests/tiny_gguf.py FILE`.
"""

import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

SIZE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZE |= {"num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.15, "rms_norm_eps": 1e-5}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FAMILIES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}
_MODULES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def vocabulary() -> list[str]:
    """One token per byte, one merge of two, and the special tokens."""
    return [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", *SPECIAL]


def model_of(family: str, *, tied: bool):
    """A random model, whose weights bfloat16 holds exactly."""
    config, model = FAMILIES[family]
    torch.manual_seed(0)
    built = model(config(vocab_size=len(vocabulary()), tie_word_embeddings=tied, rope_theta=1e4, **SIZE))
    for parameter in built.parameters():
        parameter.data = (parameter + 0.1 * torch.randn_like(parameter)).to(torch.bfloat16).float()
    return built.eval()


def tensors_of(model) -> dict[str, np.ndarray]:
    """A model's tensors under llama.cpp's names and in its order; a tied LM head is not among them."""
    named = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    named |= {"lm_head.weight": "output.weight"}
    for layer in range(SIZE["num_hidden_layers"]):
        for own, theirs in _MODULES.items():
            for part in ("weight", "bias"):
                named[f"model.layers.{layer}.{own}.{part}"] = f"blk.{layer}.{theirs}.{part}"
    parameters = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    tensors = {named[name]: values for name, values in parameters.items()}
    if model.config.model_type == "llama":  # llama.cpp turns pairs that stand side by side, transformers halves
        for name in tensors:
            heads = {"attn_q": 4, "attn_k": 2}.get(name.split(".")[-2])
            if heads:
                halves = tensors[name].reshape(heads, 2, -1, tensors[name].shape[1])
                tensors[name] = halves.swapaxes(1, 2).reshape(tensors[name].shape)
    return tensors


def write(
    path: Path, tensors: dict[str, np.ndarray], *, family: str, types: dict[str, str] | None = None, **fields
) -> Path:
    """A GGUF file of these tensors in float32, or in the type named in `types`.

    Args:
        fields: metadata to add or to replace, as text or whole numbers, or to leave out (None), with `__` for a full
            stop.
    """
    writer = gguf.GGUFWriter(path, family)
    numbers = {"block_count": 3, "context_length": 512, "embedding_length": 64, "feed_forward_length": 96}
    numbers |= {"attention.head_count": 4, "attention.head_count_kv": 2, "vocab_size": len(vocabulary())}
    numbers |= {"rope.dimension_count": 16}
    roles = zip(("padding", "bos", "eos"), SPECIAL, strict=True)
    ids = {f"tokenizer.ggml.{role}_token_id": vocabulary().index(token) for role, token in roles}
    texts = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.chat_template": TEMPLATE}
    values = {f"{family}.{key}": value for key, value in numbers.items()} | texts | ids
    values |= {key.replace("__", "."): value for key, value in fields.items()}
    for key, value in values.items():
        if value is None:
            continue
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(key, value)
    writer.add_float32(f"{family}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32(f"{family}.rope.freq_base", 1e4)
    writer.add_token_list(vocabulary())
    writer.add_token_types([3 if token in SPECIAL else 1 for token in vocabulary()])
    writer.add_token_merges(["a b"])
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType[(types or {}).get(name, "F32")]
        writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(tensor), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


if __name__ == "__main__":
    Path(sys.argv[1]).parent.mkdir(parents=True, exist_ok=True)
    write(Path(sys.argv[1]), tensors_of(model_of("qwen2", tied=True)), family="qwen2")
