"""A transformers folder of the Llama or Qwen2 kind as a GGUF file for llama.cpp, in its own precision."""

import json
from pathlib import Path

import gguf
import torch
from safetensors import safe_open

from sdd_utils.models import store

KINDS = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}
NORMAL, CONTROL = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL


def write(model: str, path: Path, *, ends: list[int]) -> Path:
    """Write matrices in bfloat16 and vectors in float32, as llama.cpp's own converter does.

    Args:
        ends: the tokens that end a row; the file has names for three.

    Raises:
        ValueError: another kind of model.
    """
    folder, config = store.find_model(model), store.load_config(model)
    if config.model_type not in KINDS:
        raise ValueError(f"a GGUF file is written of {' and '.join(KINDS)} models, not of {config.model_type}")
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, config.model_type)
    _add_shape(writer, config)
    _add_vocabulary(writer, folder, size=config.vocab_size, ends=ends)
    names = gguf.get_tensor_name_map(KINDS[config.model_type], config.num_hidden_layers)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # no dictionary
                tensor = _for_llama_cpp(tensors.get_tensor(name), name, config)
                _add_tensor(writer, names.get_name(name, try_suffixes=(".weight", ".bias")), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return part.rename(path)


def _add_shape(writer: gguf.GGUFWriter, config) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)


def _add_vocabulary(writer: gguf.GGUFWriter, folder: Path, *, size: int, ends: list[int]) -> None:
    """Texts are asked and answered as token ids, so how the file splits words is never used."""
    core = json.loads((folder / "tokenizer.json").read_text())
    tokens, kinds = [f"[UNUSED{id_}]".encode() for id_ in range(size)], [CONTROL] * size
    for token, id_ in core["model"]["vocab"].items():
        tokens[id_], kinds[id_] = token.encode(), NORMAL
    for added in core["added_tokens"]:
        tokens[added["id"]], kinds[added["id"]] = added["content"].encode(), CONTROL
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in core["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    for add, end in zip(
        (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id), ends, strict=False
    ):
        add(end)


def _for_llama_cpp(tensor: torch.Tensor, name: str, config) -> torch.Tensor:
    """Llama's queries and keys in another order: llama.cpp turns neighbouring dimensions, transformers halves."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for projection, count in heads.items():
        if config.model_type == "llama" and projection in name:
            halves = tensor.reshape(count, 2, tensor.shape[0] // count // 2, *tensor.shape[1:])
            return halves.swapaxes(1, 2).reshape(tensor.shape)
    return tensor


def _add_tensor(writer: gguf.GGUFWriter, name: str, tensor: torch.Tensor) -> None:
    if tensor.dim() == 1:
        writer.add_tensor(name, tensor.float().numpy())
    else:
        halves = tensor.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
        writer.add_tensor(name, halves, raw_dtype=gguf.GGMLQuantizationType.BF16)
