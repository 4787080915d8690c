"""SDPA without the products that a mask would hide: by blocks of slots, and by the rows of one long sequence.

Both go through transformers' own SDPA, on slices of the keys and values; results differ by rounding only.
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


def _attend_by_blocks(module, query, key, value, attention_mask, *, reach=(), **settings) -> tuple[Tensor, None]:
    """Block by block, each as far as `reach` says; without it as ever."""
    blocks = [
        sdpa_attention_forward(
            module,
            query[rows],
            key[rows, :, :width],
            value[rows, :, :width],
            attention_mask[rows, ..., :width],
            **settings,
        )[0]
        for rows, width in reach
    ]
    if blocks:
        return torch.cat(blocks), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)


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
