"""SDPA without the products that a mask would hide: by blocks of slots, and by the rows of one long sequence.

Slices of the keys and values go through transformers' own SDPA, or in float32 on CPUs through two plain products;
results differ by rounding only.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

BY_BLOCKS, BY_ROWS = "sdpa_by_blocks", "sdpa_by_rows"


def attends_to_all(model) -> bool:
    """Whether every layer attends to all tokens before: no sliding windows, no states in place of keys."""
    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


@contextmanager
def by_blocks(model) -> Iterator[None]:
    """Let a model that attends by SDPA do so by blocks of slots, where a forward pass says how far each `reach`es."""
    kind = model.config._attn_implementation
    model.set_attn_implementation(BY_BLOCKS if kind == "sdpa" else kind)
    try:
        yield
    finally:
        model.set_attn_implementation(kind)


def set_by_rows(model) -> bool:
    """Let a model attend within each of the `rows` that a forward pass names, if it can; says whether it can.

    Rows that lie end to end in one sequence of T tokens cost T^2 products behind a mask, and the sum of their squares
    so. A model with sliding windows, or without SDPA, keeps its mask.
    """
    able = model.config._attn_implementation == "sdpa" and attends_to_all(model)
    if able:
        model.set_attn_implementation(BY_ROWS)
    return able


def rows_of(positions: Tensor) -> list[slice]:
    """Where the rows of a sequence lie: each begins at position 0.

    Args:
        positions: (tokens,), of rows laid end to end.
    """
    starts = (positions == 0).nonzero()[:, 0].tolist()
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], len(positions)], strict=True)]


def multiplies_itself(states: Tensor) -> bool:
    """Whether `by_blocks` multiplies keys and values itself: in float32 on CPUs, where SDPA takes half as long again.

    In bfloat16 SDPA is as fast and keeps the scores in float32.
    """
    return states.device.type == "cpu" and states.dtype == torch.float32


def _attend_by_blocks(module, query, key, value, attention_mask, *, reach=(), **settings) -> tuple[Tensor, None]:
    """Block by block, each as far as `reach` says; without it as ever."""
    attend = _attend_with_one if multiplies_itself(query) else sdpa_attention_forward
    blocks = []
    for rows, width in reach:
        states = (query[rows], key[rows, :, :width], value[rows, :, :width])
        blocks.append(attend(module, *states, attention_mask[rows, ..., :width], **settings)[0])
    if blocks:
        return torch.cat(blocks), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)


def _attend_with_one(module, query, key, value, mask, *, scaling: float, **settings) -> tuple[Tensor, None]:
    """One token per row: the query heads that share a key head are multiplied with it together.

    Args:
        query: (rows, heads, 1, dim).

    Returns:
        (rows, 1, heads, dim), and no weights.
    """
    grouped = (query * scaling).reshape(len(key), key.shape[1], -1, query.shape[-1])
    weights = (grouped @ key.mT + mask).softmax(dim=-1)
    return (weights @ value).reshape(len(key), 1, -1, value.shape[-1]), None


def _attend_by_rows(module, query, key, value, attention_mask, *, rows=(), **settings) -> tuple[Tensor, None]:
    """Each of `rows` alone, causally; without them as ever."""
    parts = [
        sdpa_attention_forward(module, query[:, :, row], key[:, :, row], value[:, :, row], None, **settings)[0]
        for row in rows
    ]
    if parts:
        return torch.cat(parts, dim=1), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)


for _name, _attend in ((BY_BLOCKS, _attend_by_blocks), (BY_ROWS, _attend_by_rows)):
    AttentionInterface.register(_name, _attend)
    AttentionMaskInterface.register(_name, sdpa_mask)
