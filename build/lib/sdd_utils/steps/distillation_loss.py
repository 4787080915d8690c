"""What the arms minimise: cross-entropy, or a divergence from the unpruned model's distribution of the next token.

Each function takes the student's logits at trained positions and returns the sum over them, in nats; a training
divides by the tokens with loss of a step, whatever the loss. The student's distribution is q, the teacher's p:

    forward KL    sum p log(p / q) over k tokens and "the rest" as one outcome (Hinton et al. 1503.02531)
    reverse KL    sum q log(q / p) over the whole vocabulary (Gu et al. 2306.08543, Agarwal et al. 2306.13649)

Joining outcomes cannot increase a divergence. So the coarse forward KL is a lower bound of the full one, is never
negative, and is 0 exactly where p and q agree on the k tokens, and so on the rest's mass. Its gradient in the logits
is q - p on the k tokens. On the others it is q (1 - P / Q), with P and Q the rest's mass under p and q: the student's
own shape of the tail stays, and only its mass moves.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

TILE = 1024  # positions whose logits are held in float32 at once, where there are more
NEVER = -1e4  # in place of the logarithm of 0, which has no gradient


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log q of each label, summed.

    Args:
        logits: (positions, vocabulary).
        labels: (positions,).
    """
    return functional.cross_entropy(logits.float(), labels, reduction="sum")


def forward_kl(logits: Tensor, ids: Tensor, log_probs: Tensor) -> Tensor:
    """Coarse KL(p || q), summed over positions.

    Args:
        logits: (positions, vocabulary).
        ids: (positions, k) different tokens of each position, int64.
        log_probs: (positions, k + 1) float32, of p at these tokens and, last, of the rest's mass; they sum to 1.
    """
    return _by_tiles(_ForwardKL.apply, logits, ids, log_probs)


class _ForwardKL(torch.autograd.Function):
    """`forward_kl` with the gradient written out: autograd's would pass over all logits several times more."""

    @staticmethod
    def forward(ctx, logits: Tensor, ids: Tensor, log_probs: Tensor) -> Tensor:
        top = logits.gather(-1, ids).float()
        tail = logits.to(torch.float32, copy=True).scatter_(-1, ids, -torch.inf)  # becomes exp(logit - largest)
        largest = tail.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
        mass = tail.sub_(largest).exp_().sum(dim=-1, keepdim=True)
        found = torch.cat([top, largest + mass.log()], dim=-1)
        found = (found - found.amax(dim=-1, keepdim=True)).clamp(min=NEVER)
        student, teacher = found.log_softmax(dim=-1), log_probs.clamp(min=NEVER)
        ctx.save_for_backward(tail, mass, ids, student.exp() - teacher.exp())
        ctx.dtype = logits.dtype
        return functional.kl_div(student, teacher, log_target=True, reduction="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        tail, mass, ids, moved = ctx.saved_tensors
        moved = moved * grad
        share = moved[:, -1:] / mass.clamp(min=1)  # 0 where all tokens are among the k, else exp(0) and more
        return (tail * share).scatter_(-1, ids, moved[:, :-1]).to(ctx.dtype), None, None


def coarse(log_probs: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k likeliest tokens of each position and their logarithms, with that of the rest's mass behind them.

    Args:
        log_probs: (positions, vocabulary).

    Returns:
        ids (positions, k), log_probs (positions, k + 1).
    """
    top, ids = log_probs.topk(min(k, log_probs.shape[-1]), dim=-1)
    rest = log_probs.scatter(-1, ids, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return ids, torch.cat([top, rest], dim=-1)


def reverse_kl(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(q || p) over the whole vocabulary, summed over positions.

    Args:
        logits, teacher_logits: (positions, vocabulary); no gradient flows into the teacher's.
    """
    return _by_tiles(_reverse_kl, logits, teacher_logits)


def _reverse_kl(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    student, teacher = (each.float().log_softmax(dim=-1) for each in (logits, teacher_logits))
    return functional.kl_div(teacher, student, log_target=True, reduction="sum")


def _by_tiles(loss: Callable[..., Tensor], logits: Tensor, *others: Tensor) -> Tensor:
    """A loss over many positions, whose float32 tensors are made anew in the backward pass, a tile at a time."""
    if len(logits) <= TILE:
        return loss(logits, *others)
    tiles = zip(*(tensor.split(TILE) for tensor in (logits, *others)), strict=True)
    return torch.stack([checkpoint(loss, *tile, use_reentrant=False) for tile in tiles]).sum()
