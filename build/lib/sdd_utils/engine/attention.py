"""SDPA without the products that a mask would hide: by blocks of slots, and by the rows of one long sequence.

Slices of the keys and values go through SDPA, or, in a CPU's training, through plain products; results differ by
rounding only.
"""

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

# Rows of up to so many tokens hold all their scores at once: in bfloat16 on CPUs that takes a third of the time that
# SDPA takes, whose backward pass is slow there.
SHORT = 512
# Keys by which layers see less than everything: GPT-Neo's, Doge's, DeepSeek's, ModernBERT's and Reformer's. The windows
# that transformers' caches know ("sliding_window", "attention_chunk_size") are theirs to tell.
_WINDOW = re.compile(r"(keep_|attention_)?window_size|index_(topk|block_size)|local_attention\w*|\w+_attn_chunk_length")
_CHUNK = re.compile(r"attention_chunk_size|index_block_size|\w+_attn_chunk_length")
BY_BLOCKS, BY_ROWS = "sdpa_by_blocks", "sdpa_by_rows"


def attends_to_all(model) -> bool:
    """Whether, by its configuration, every layer attends to all tokens before: no windows, no states in place of keys.

    A window may be longer than the rows that `probe` tries, so any key that names one counts, used or not.
    """
    config = model.config.get_text_config(decoder=True)
    layers = DynamicCache(config=config).layers
    full = bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
    return full and not any(_WINDOW.fullmatch(key) and value for key, value in config.to_dict().items())


@contextmanager
def by_blocks(model) -> Iterator[None]:
    """Let a model on a CPU that attends by SDPA do so by blocks of slots, where a forward pass gives their `masks`."""
    kind = model.config._attn_implementation
    supported = kind == "sdpa" and model.device.type == "cpu"
    model.set_attn_implementation(BY_BLOCKS if supported else kind)
    try:
        yield
    finally:
        model.set_attn_implementation(kind)


def set_by_rows(model) -> bool:
    """Let a model on a CPU attend within each of the `rows` that a forward pass names, if it may; whether it does.

    Rows that lie end to end in one sequence of T tokens cost T^2 products behind a mask, and the sum of their squares
    so. A model with sliding windows, or without SDPA, keeps its mask.
    """
    may = model.config._attn_implementation == "sdpa" and model.device.type == "cpu" and attends_to_all(model)
    if may:
        model.set_attn_implementation(BY_ROWS)
    return may


@contextmanager
def not_by_rows(model) -> Iterator[None]:
    """Let a model that attends by rows attend by plain SDPA meanwhile, as decoding needs it."""
    by_rows = model.config._attn_implementation == BY_ROWS
    if by_rows:
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if by_rows:
            model.set_attn_implementation(BY_ROWS)


def named_rows(model, positions: Tensor) -> dict[str, list[int]]:
    """{rows} for a forward pass of a model that attends within each of them; see `row_lengths`."""
    return {"rows": row_lengths(positions)} if model.config._attn_implementation == BY_ROWS else {}


def counts_from_start(model) -> bool:
    """Whether a layer's chunks or blocks begin at fixed places of the whole sequence, wherever its rows begin."""
    config = model.config.get_text_config(decoder=True).to_dict()
    return any(_CHUNK.fullmatch(key) and value for key, value in config.items())


def row_lengths(positions: Tensor) -> list[int]:
    """Tokens of each row of a sequence; every row begins at position 0.

    Args:
        positions: (tokens,), of rows laid end to end.
    """
    starts = (positions == 0).nonzero()[:, 0].tolist()
    return [end - start for start, end in zip(starts, [*starts[1:], len(positions)], strict=True)]


def _attend_by_blocks(
    module, query, key, value, mask, *, scaling=None, masks=None, grid=None, read=None, **settings
) -> tuple[Tensor, None]:
    """One sequence of tokens that belong to slots, block by block of slots; without `masks` as ever.

    The query heads that share a key head read it together, as if they were tokens.

    Args:
        query: (1, heads, tokens, dim); key, value: (slots, key heads, width, dim).
        masks: a function from n, the query heads per key head, to the masks of consecutive blocks of slots, each
            (slots of the block, 1, n x most tokens, width of the block).
        grid: (slots, most tokens), where in the sequence a slot's tokens lie.
        read: (slots x most tokens), which places of the grid are not there only to fill it.
    """
    if masks is None:
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **settings)
    query = query[0].transpose(0, 1)[grid].transpose(1, 2)  # (slots, heads, most tokens, dim)
    grouped = query.reshape(len(key), key.shape[1], -1, query.shape[-1])
    parts, first = [], 0
    for mask in masks(query.shape[1] // key.shape[1]):
        slots, width = slice(first, first + len(mask)), mask.shape[-1]
        states = grouped[slots], key[slots, :, :width], value[slots, :, :width]
        parts.append(scaled_dot_product_attention(*states, attn_mask=mask, scale=scaling))
        first = slots.stop
    attended = torch.cat(parts).reshape(*query.shape[:-1], -1).transpose(1, 2)
    return attended.flatten(0, 1)[read][None], None


def _attend_by_rows(module, query, key, value, mask, *, scaling=None, rows=(), **settings) -> tuple[Tensor, None]:
    """Each of the rows, of so many tokens, alone and causally; without them as ever."""
    if not rows:
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **settings)
    multiplies = query.device.type == "cpu" and query.dtype == torch.bfloat16 and not settings.get("dropout")
    parts = []
    # Split, not sliced: the gradient of a slice is a tensor as large as the whole.
    for states in zip(*(state.split(rows, dim=2) for state in (query, key, value)), strict=True):
        if multiplies and states[0].shape[2] <= SHORT:
            parts.append(_attend_causally(*states, scaling))
        else:
            parts.append(sdpa_attention_forward(module, *states, None, scaling=scaling, **settings)[0])
    return torch.cat(parts, dim=1), None


@functools.lru_cache(maxsize=64)  # every layer asks for those of a step's rows
def _future(tokens: int, dtype: torch.dtype) -> Tensor:
    """(tokens, tokens): minus infinity at what comes later, 0 elsewhere."""
    return torch.full((tokens, tokens), -torch.inf, dtype=dtype).triu(1)


def _attend_causally(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """One row of many tokens; scores are rounded to the states' dtype, as in transformers' eager attention.

    Args:
        query: (1, heads, tokens, dim).

    Returns:
        (1, tokens, heads, dim)
    """
    tokens = query.shape[2]
    grouped = (query * scaling).reshape(key.shape[1], -1, query.shape[-1])
    scores = (grouped @ key[0].mT).view(-1, tokens, tokens)
    weights = (scores + _future(tokens, scores.dtype)).softmax(dim=-1)
    attended = weights.view(key.shape[1], -1, tokens) @ value[0]
    return attended.view(-1, tokens, value.shape[-1]).transpose(0, 1)[None]


for _name, _attend in ((BY_BLOCKS, _attend_by_blocks), (BY_ROWS, _attend_by_rows)):
    AttentionInterface.register(_name, _attend)
    AttentionMaskInterface.register(_name, sdpa_mask)
