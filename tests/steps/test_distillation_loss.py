"""Values and gradients of the losses, against autograd on the full distributions, written out."""

import math

import pytest
import torch
from trl.trainer.distillation_trainer import _chunked_divergence_loss

from sdd_utils.steps import distillation_loss
from sdd_utils.steps.distillation_loss import coarse, forward_kl, reverse_kl

WORDS, PLACES = 11, 5


def logits(seed, *, places=PLACES):
    return 3 * torch.randn(places, WORDS, generator=torch.Generator().manual_seed(seed))


def with_gradient(loss, seed=1, **size):
    """A loss of the student's logits, and its gradient by autograd."""
    student = logits(seed, **size).requires_grad_()
    value = loss(student)
    (gradient,) = torch.autograd.grad(value, student)
    return float(value), gradient


def full_kl(first, second):
    """Sum over places of sum p log(p / q), from two (places, outcomes) tensors of probabilities."""
    return (first * (first.log() - second.log())).sum()


def joined(probs, ids):
    """(places, k + 1): the probabilities of these tokens, then that of all others, place by place."""
    rows = []
    for row, kept in zip(probs, ids.tolist(), strict=True):
        others = [word for word in range(WORDS) if word not in kept]
        rows.append(torch.stack([*(row[word] for word in kept), row[others].sum()]))
    return torch.stack(rows)


@pytest.mark.parametrize("k", [1, 4, WORDS - 1])
def test_forward_kl_is_that_of_the_joined_outcomes_and_so_is_its_gradient(k):
    teacher = logits(0).softmax(dim=-1)
    ids, log_probs = coarse(teacher.log(), k)
    assert ids.tolist() == teacher.argsort(dim=-1, descending=True)[:, :k].tolist()
    torch.testing.assert_close(log_probs.exp(), joined(teacher, ids))
    expected = with_gradient(lambda z: full_kl(joined(teacher, ids), joined(z.softmax(dim=-1), ids)))
    found = with_gradient(lambda z: forward_kl(z, ids, log_probs))
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=1e-4)
    # By hand: q - p on the kept tokens, q (1 - P / Q) on the others.
    q = logits(1).softmax(dim=-1)
    mass = log_probs.exp()[:, -1:] / joined(q, ids)[:, -1:]
    by_hand = (q * (1 - mass)).scatter(-1, ids, q.gather(-1, ids) - teacher.gather(-1, ids))
    torch.testing.assert_close(found[1], by_hand, atol=1e-5, rtol=1e-4)


def test_with_all_tokens_kept_it_is_the_full_divergence():
    teacher = logits(0).softmax(dim=-1)
    ids, log_probs = coarse(teacher.log(), 64)  # more than there are
    assert log_probs[:, -1].tolist() == [-math.inf] * PLACES
    expected = with_gradient(lambda z: full_kl(teacher, z.softmax(dim=-1)))
    found = with_gradient(lambda z: forward_kl(z, ids, log_probs))
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=1e-4)


def test_extreme_logits_change_neither_value_nor_gradient():
    ids, log_probs = coarse(logits(0).log_softmax(dim=-1), 4)
    expected, gradient = with_gradient(lambda z: forward_kl(z, ids, log_probs))
    for shift in (-2e4, 2e4):
        value, found = with_gradient(lambda z, shift=shift: forward_kl(z.double() + shift, ids, log_probs))
        assert value == pytest.approx(expected, rel=1e-2)  # float32 holds such logits to two thousandths
        torch.testing.assert_close(found, gradient, atol=5e-3, rtol=1e-2)
    never = log_probs.clone()
    never[:, 0] = -math.inf
    never = never.log_softmax(dim=-1)
    value, found = with_gradient(lambda z: forward_kl(z.scatter(-1, ids[:, :1], -math.inf), ids, never))
    assert math.isfinite(value)
    assert found.isfinite().all()


def test_joining_outcomes_only_lowers_a_divergence_and_never_below_zero():
    teacher, student = logits(0, places=200).softmax(dim=-1), logits(1, places=200)
    values = [float(forward_kl(student, *coarse(teacher.log(), k))) for k in (1, 2, 5, WORDS)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(float(full_kl(teacher, student.softmax(dim=-1))), rel=1e-5)
    each = [float(forward_kl(row[None], *coarse(p[None].log(), 3))) for row, p in zip(student, teacher, strict=True)]
    assert min(each) >= 0


def test_it_is_zero_where_the_joined_distributions_agree_whatever_the_tail():
    student = torch.tensor([[0.5, 0.2, 0.2, 0.1]]).log()
    teacher = torch.tensor([[0.5, 0.2, 0.05, 0.25]]).log()
    ids, log_probs = torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.2, 0.3]]).log()
    assert float(forward_kl(student, ids, log_probs)) == pytest.approx(0, abs=1e-6)
    assert float(forward_kl(teacher, ids, log_probs)) == pytest.approx(0, abs=1e-6)
    assert float(forward_kl(torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log(), ids, log_probs)) > 1e-3


def test_a_teacher_that_is_sure_gives_cross_entropy():
    log_probs = torch.tensor([[0.0, -math.inf, -math.inf]] * PLACES)
    ids = torch.tensor([[2, 5]] * PLACES)
    expected = with_gradient(lambda z: distillation_loss.cross_entropy(z, torch.tensor([2] * PLACES)))
    found = with_gradient(lambda z: forward_kl(z, ids, log_probs))
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=1e-4)


def test_reverse_kl_is_the_full_one_and_that_of_trl():
    teacher = logits(0)
    expected = with_gradient(lambda z: full_kl(z.softmax(dim=-1), teacher.softmax(dim=-1)))
    mask, eye = torch.ones(1, PLACES), torch.eye(WORDS)
    peer = with_gradient(
        lambda z: _chunked_divergence_loss(z[None], teacher[None], eye, eye, mask, beta=1.0, num_items_in_batch=1)[0]
    )
    found = with_gradient(lambda z: reverse_kl(z, teacher))
    for reference in (expected, peer):
        assert found[0] == pytest.approx(reference[0], rel=1e-4)
        torch.testing.assert_close(found[1], reference[1], atol=1e-4, rtol=1e-3)
    assert with_gradient(lambda z: reverse_kl(z, logits(1)))[0] == pytest.approx(0, abs=1e-5)


def test_tiles_give_the_same_values_and_gradients(monkeypatch):
    ids, log_probs = coarse(logits(0).log_softmax(dim=-1), 4)
    losses = (lambda z: forward_kl(z, ids, log_probs)), (lambda z: reverse_kl(z, logits(0)))
    whole = [with_gradient(loss) for loss in losses]
    monkeypatch.setattr(distillation_loss, "TILE", 2)
    for (value, gradient), loss in zip(whole, losses, strict=True):
        found = with_gradient(loss)
        assert found[0] == pytest.approx(value, rel=1e-6)
        torch.testing.assert_close(found[1], gradient)


def test_no_place_is_no_loss():
    nothing = torch.zeros(0, WORDS, requires_grad=True)
    of_none = torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, 3)
    for loss in (forward_kl(nothing, *of_none), reverse_kl(nothing, nothing)):
        assert float(loss) == 0
        loss.backward()
