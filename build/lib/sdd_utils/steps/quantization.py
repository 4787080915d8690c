"""Weights in fewer bits, by bitsandbytes through transformers: the last thing that is done to a model.

    bf16   as they are
    int8   8-bit integers, a scale per row; features with outliers stay in 16 bits (LLM.int8, arXiv 2208.07339)
    nf4    4-bit NormalFloat, a scale per 64 weights, the scales in 8 bits (QLoRA, arXiv 2305.14314)

Linear layers are quantised. Embedding, norms and LM head keep 16 bits. What is written is a plain `save_pretrained`
folder of safetensors, which transformers loads on CPUs and GPUs.
"""

import logging
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers

from sdd_utils.base.files import whole_folder
from sdd_utils.engine import packed_linear
from sdd_utils.models import store
from sdd_utils.steps import timing

FORMATS = {
    "bf16": None,
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
}
NF4_BLOCK = 64  # weights of one scale
READ = 128  # tokens of a reading pass that is timed


def check_library() -> None:
    """Raise ValueError, in one sentence, unless bitsandbytes is installed."""
    if find_spec("bitsandbytes") is None:
        raise ValueError("study key 'quantization' needs bitsandbytes, which is not installed: run 'make quantization'")


def engine() -> str:
    """The library with its version, for records."""
    return f"bitsandbytes {version('bitsandbytes')}"


def write_merged(checkpoint: Path, adapter: Path, *, folder: Path) -> Path:
    """Write a pruned checkpoint with an adapter merged into its weights, in bfloat16, as a plain folder."""
    merged, tokenizer, _ = store.load_merged(checkpoint, adapter=adapter, dtype=torch.bfloat16)
    recipe = {"merge": adapter.name, "dtype": "bfloat16"}
    return store.save_model(merged, tokenizer, folder=folder, parent=checkpoint.name, recipe=recipe)


def write_quantized(model: str | Path, *, format: str, folder: Path) -> Path:
    """Write a model's weights in one of `FORMATS` as a folder that `store.load_model` reads.

    It is saved before it computes anything: bitsandbytes 0.50 repacks 4-bit weights in a CPU's first pass, and what
    it unpacks of them to save is not what it packed.

    Raises:
        ValueError: nf4 of a model whose layers are no multiple of 64 inputs wide, which CPUs cannot compute with.
    """
    settings = FORMATS[format] and transformers.BitsAndBytesConfig(
        **FORMATS[format], bnb_4bit_compute_dtype=torch.bfloat16
    )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # else it says at each product that it casts to float16
    quantized = transformers.AutoModelForCausalLM.from_pretrained(
        store.find_model(str(model)),
        dtype=torch.bfloat16,
        quantization_config=settings,
        trust_remote_code=False,
        use_safetensors=True,
    )
    if format == "nf4":
        _check_widths(quantized)
    with whole_folder(folder) as scratch:
        store.load_tokenizer(model).save_pretrained(scratch)
        quantized.save_pretrained(scratch)
    return folder


def _check_widths(model) -> None:
    widths = {layer.in_features for layer in model.modules() if type(layer).__name__ == "Linear4bit"}
    if narrow := sorted(width for width in widths if width % NF4_BLOCK):
        raise ValueError(f"nf4 needs layers of a multiple of {NF4_BLOCK} inputs, not {narrow[0]}: use int8 alone")


def bytes_of(folder: Path) -> int:
    """Bytes of the weights in a folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def speed(model) -> dict[str, float]:
    """Median seconds of a pass at batch size 1: `decoding` one token, and `reading` `READ` tokens."""
    with packed_linear.packed_linears(model):
        return timing.pass_seconds({"decoding": (model, 1), "reading": (model, READ)})
