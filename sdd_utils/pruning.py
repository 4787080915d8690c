"""Remove a block of decoder layers, and account for the parameters and FLOPs that go with it.

Convention: 0-based, half-open. Block (start, n) is layers [start, start + n); embeddings, final norm and LM head
stay (arXiv 2410.09982).
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from sdd_utils.models import decoder_layers


def check_block(*, start: int, block_size: int, depth: int) -> None:
    """Raise ValueError, in one sentence, unless [start, start + block_size) leaves some of `depth` layers."""
    if not 0 <= block_size < depth:
        raise ValueError(f"block size {block_size} is impossible: a model of {depth} layers allows 0..{depth - 1}")
    if not 0 <= start <= depth - block_size:
        raise ValueError(
            f"block start {start} is impossible: {block_size} of {depth} layers can start at 0..{depth - block_size}"
        )


def kept_layers(*, start: int, block_size: int, depth: int) -> list[int]:
    """Indices, in the original model, of the layers that stay."""
    return [*range(start), *range(start + block_size, depth)]


def pruned_config(config: PretrainedConfig, *, start: int, block_size: int) -> PretrainedConfig:
    """A copy of a model's configuration for its pruned form: every per-layer list sliced, the depth rewritten."""
    pruned = copy.deepcopy(config)
    text = pruned.get_text_config()
    depth = text.num_hidden_layers
    check_block(start=start, block_size=block_size, depth=depth)
    kept = kept_layers(start=start, block_size=block_size, depth=depth)
    for name, value in vars(text).items():
        if isinstance(value, list | tuple) and len(value) == depth:
            setattr(text, name, type(value)(value[i] for i in kept))
    text.num_hidden_layers = len(kept)
    return pruned


def remove_block(model, *, start: int, block_size: int):
    """Remove layers [start, start + block_size) from a model, in place.

    `layer_idx` is re-numbered in every kept layer, as the KV cache is addressed by it. The configuration object
    is edited in place too, because layers hold references to it.

    Returns:
        the same model; block size 0 leaves it as it is.
    """
    layers, text = decoder_layers(model), model.config.get_text_config()
    pruned = pruned_config(model.config, start=start, block_size=block_size).get_text_config()
    text.__dict__.update(pruned.__dict__)
    del layers[start : start + block_size]
    for index, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    return model


@dataclass(frozen=True)
class Accounting:
    """Size of a model: `parameters` counts shared tensors once; `matmul` counts the weights that multiply
    a token (linear layers and LM head, no input embedding). FLOPs per token are 2x either, attention scores apart."""

    layers: int
    parameters: int
    matmul: int


def account(config: PretrainedConfig) -> Accounting:
    """Count a model's parameters from its configuration, on the meta device: no weights are loaded."""
    return account_of(without_weights(config))


def without_weights(config: PretrainedConfig):
    """The model that a configuration describes, on the meta device: shapes only."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config))


def account_of(model) -> Accounting:
    """Count the parameters of a model, which may be on the meta device."""
    matmul = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    depth = model.config.get_text_config().num_hidden_layers
    return Accounting(layers=depth, parameters=sum(p.numel() for p in model.parameters()), matmul=matmul)


def accounting_table(config: PretrainedConfig, block_sizes: list[int]) -> list[dict]:
    """One row per block size: layers, parameters, and the cut in both countings (shares of the original, 0..1).

    The paper's "FLOPs saved" of 16.30 % at n = 6 is the share of parameters; the share of matrix products
    that a token needs is larger. Both are given.
    """
    whole = account(config)
    rows = []
    for n in block_sizes:
        part = account(pruned_config(config, start=0, block_size=n))
        rows.append(
            {
                "block_size": n,
                "layers": part.layers,
                "parameters": part.parameters,
                "flops_per_token_2p": 2 * part.parameters,
                "flops_per_token_matmul": 2 * part.matmul,
                "cut_parameters": 1 - part.parameters / whole.parameters,
                "cut_matmul": 1 - part.matmul / whole.matmul,
            }
        )
    return rows
