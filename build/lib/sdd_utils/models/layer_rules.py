"""What a configuration says of single layers, rewritten for the layers that stay.

Architectures say it in four ways: a list with a value per layer, a list of layers' numbers, a count from the front or
the back, and a period or scale that is computed from a layer's number. `renumber` knows those below. What it does not
know is not guessed: `store.save_model` refuses a checkpoint that is, read back, another model.
"""

import math
import re

# Lists of layers' numbers, from 0.
_NUMBERS = (
    "mlp_only_layers",
    "moe_layers",
    "attn_layer_indices",
    "full_attn_idxs",
    "cross_attention_layers",
    "hybrid_layer_ids",
    "local_layer_ids",
)
# Lists with a value per layer: those of this length whose name speaks of layers, and these.
_OF_LAYERS = re.compile(r"layer|^(indexer_types|intermediate_size|activation_sparsity_pattern|num_experts|moe_topk)$")
_COUNTS_FROM_FRONT = ("first_k_dense_replace", "num_dense_layers")
_COUNTS_FROM_BACK = ("num_kv_shared_layers",)
_DEPTHS = ("num_hidden_layers", "num_blocks")  # the second name is xLSTM's


def renumber(text, kept: list[int]) -> None:
    """Rewrite a text configuration, in place, for the layers that stay.

    Args:
        kept: their numbers in the configuration as it is, from 0, rising.
    """
    depth = text.num_hidden_layers
    _convert_periods(text, kept)
    for name, value in [*vars(text).items()]:
        if name in _NUMBERS:
            setattr(text, name, value and [new for new, old in enumerate(kept) if old in value])
        elif isinstance(value, list | tuple) and len(value) == depth and _OF_LAYERS.search(name):
            setattr(text, name, type(value)(value[old] for old in kept))
        elif name in _COUNTS_FROM_FRONT and value is not None:
            setattr(text, name, sum(old < value for old in kept))
        elif name in _COUNTS_FROM_BACK and value is not None:
            setattr(text, name, sum(old >= depth - value for old in kept))
        elif name in _DEPTHS and value == depth:
            setattr(text, name, len(kept))
    text.num_hidden_layers = len(kept)  # some configurations keep it under another name


def _convert_periods(text, kept: list[int]) -> None:
    """Say by lists what was said by a period, or by a scale over the depth."""
    depth = text.num_hidden_layers
    if (step := getattr(text, "decoder_sparse_step", None)) and step > 1:  # Qwen's: every step-th layer has experts
        dense = [old for old in range(depth) if (old + 1) % step]
        text.mlp_only_layers = sorted({*(text.mlp_only_layers or []), *dense})
        text.decoder_sparse_step = 1
    if text.model_type == "recurrent_gemma":  # its pattern is repeated up to the depth
        text.block_types = [(list(text.block_types) * depth)[old] for old in kept]
    if text.model_type == "gpt_neo":  # its list of layers is made from this one when it is read
        text.attention_types = [[[text.attention_layers[old]], 1] for old in kept]
    if text.model_type == "minicpm3":  # residuals are scaled by scale_depth / sqrt(depth)
        text.scale_depth *= math.sqrt(len(kept) / depth)
