"""Attention by rows and by blocks beside SDPA in float32: values and gradients."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, LlamaConfig

from sdd_utils.engine import attention, kv_slots

HEADS, KEY_HEADS, DIM = 6, 2, 16


class Module(torch.nn.Module):
    """What transformers' SDPA asks of a layer."""

    num_key_value_groups, is_causal = HEADS // KEY_HEADS, True


def states(tokens, dtype, *, rows=1, seed=0):
    """(query, key, value) of random numbers, each (rows, heads, tokens, dim)."""
    random = torch.Generator().manual_seed(seed)
    made = (torch.randn(rows, heads, tokens, DIM, generator=random) for heads in (HEADS, KEY_HEADS, KEY_HEADS))
    return [each.to(dtype).requires_grad_() for each in made]


def run(kind, given, mask, **settings):
    """(rows, tokens, heads, dim) of a registered attention, and the gradients of its squared sum."""
    found, _ = AttentionInterface()[kind](Module(), *given, mask, scaling=DIM**-0.5, dropout=0.0, **settings)
    return found, torch.autograd.grad(found.float().square().sum(), given)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.06), (torch.float32, 1e-5)])
@pytest.mark.parametrize("short", [512, 8])
def test_rows_laid_end_to_end_attend_as_each_does_alone(monkeypatch, dtype, tolerance, short):
    monkeypatch.setattr(attention, "SHORT", short)  # at 8 the longer row goes through SDPA
    given = states(19, dtype)
    rows = attention.row_lengths(torch.tensor([*range(7), *range(12)]))
    found, gradients = run(attention.BY_ROWS, given, None, rows=rows)
    exact = [each.detach().float().requires_grad_() for each in given]
    parts = [
        scaled_dot_product_attention(*(each[:, :, row] for each in exact), is_causal=True, enable_gqa=True)
        for row in (slice(0, 7), slice(7, 19))
    ]
    expected = torch.cat(parts, dim=2).transpose(1, 2)
    reference = torch.autograd.grad(expected.square().sum(), exact)
    torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=0)
    for gradient, other in zip(gradients, reference, strict=True):
        torch.testing.assert_close(gradient.float(), other, atol=tolerance * float(other.abs().max()), rtol=0)


def ragged(starts, counts, dtype) -> dict:
    config = LlamaConfig(num_hidden_layers=1)
    cache = kv_slots.SlotCache(SimpleNamespace(dtype=dtype, config=config), slots=len(starts), capacity=9)
    return cache.ragged(starts, counts)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.06), (torch.float32, 1e-5)])
def test_tokens_of_slots_attend_each_to_its_own_past(dtype, tolerance):
    starts, counts = [7, 3, 4, 1, 2], [2, 1, 2, 1, 1]
    taken = ragged(starts, counts, dtype)
    _, key, value = (each.detach() for each in states(9, dtype, rows=5))
    query = states(sum(counts), dtype)[0].detach()
    settings = {name: taken[name] for name in ("masks", "grid", "read")} | {"scaling": DIM**-0.5, "dropout": 0.0}
    found, _ = AttentionInterface()[attention.BY_BLOCKS](Module(), query, key, value, None, **settings)
    assert found.shape == (1, sum(counts), HEADS, DIM)
    places = [(slot, start + i) for slot, start in enumerate(starts) for i in range(counts[slot])]
    assert taken["position_ids"].tolist() == [[position for _, position in places]]
    for token, (slot, position) in enumerate(places):
        own = (each[slot : slot + 1, :, : position + 1].float() for each in (key, value))
        expected = scaled_dot_product_attention(query[:, :, token : token + 1].float(), *own, enable_gqa=True)
        torch.testing.assert_close(found[0, token].float(), expected[0, :, 0], atol=tolerance, rtol=0)


def test_blocks_of_slots_read_as_far_as_their_longest(monkeypatch):
    monkeypatch.setattr(kv_slots, "BLOCK", 2)
    masks = ragged([7, 3, 4, 1, 2], [2, 1, 2, 1, 1], torch.float32)["masks"](3)
    assert [tuple(mask.shape) for mask in masks] == [(2, 1, 6, 9), (2, 1, 6, 6), (1, 1, 6, 3)]
