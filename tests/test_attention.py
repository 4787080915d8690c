"""Attention by rows and by blocks beside SDPA in float32: values and gradients."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from sdd_utils import attention

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
    rows = attention.rows_of(torch.tensor([*range(7), *range(12)]))
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


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.06), (torch.float32, 1e-5)])
def test_blocks_attend_as_far_as_they_reach(dtype, tolerance):
    query, key, value = (each.detach() for each in states(9, dtype, rows=5))
    lengths = torch.tensor([9, 4, 6, 2, 3])
    hidden = torch.arange(9) >= lengths[:, None, None, None]
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, torch.finfo(dtype).min)
    blocks = [(slice(0, 2), 9), (slice(2, 4), 6), (slice(4, 5), 3)]
    last = query[:, :, -1:]
    settings = {"scaling": DIM**-0.5, "dropout": 0.0}
    found, _ = AttentionInterface()[attention.BY_BLOCKS](Module(), last, key, value, mask, reach=blocks, **settings)
    for row, length in enumerate(lengths.tolist()):
        own = (each[row : row + 1, :, :length].float() for each in (key, value))
        expected = scaled_dot_product_attention(last[row : row + 1].float(), *own, enable_gqa=True).transpose(1, 2)
        torch.testing.assert_close(found[row : row + 1].float(), expected, atol=tolerance, rtol=0)
