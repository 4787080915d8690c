"""What all stages share: the card's rate, times, memory, equalities, and the arithmetic of a model's products."""

import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch

from benchmarks import roofline
from sdd_utils.base import provenance
from sdd_utils.models import architecture


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a stage starts from.

    Attributes:
        model, pruned: the original, and its folder without a block of layers.
        scratch: an empty folder.
        rate: FLOP per second of the card's matrix products in bfloat16.
        size: how much work each stage does, see `run.FULL`.
    """

    model: str
    pruned: Path
    scratch: Path
    rate: float
    size: dict


def computing_in(dtype: str):
    """A context in which models compute in "float32" or "bfloat16"."""
    return mock.patch.dict(os.environ, SDD_DTYPE=dtype)


def on_card() -> bool:
    return torch.cuda.is_available()


def now() -> float:
    """Seconds, when all that was asked of the card is done."""
    if on_card():
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(work: Callable, *, turns: int) -> tuple[object, list[float]]:
    """The last answer of `work`, and the seconds of each turn; one turn before them is not counted."""
    seconds = []
    for _ in range(turns + 1):
        start = now()
        answer = work()
        seconds.append(now() - start)
    return answer, seconds[1:]


def matrix_rate(width: int) -> float:
    """FLOP per second of the product of two square matrices in bfloat16: median of three turns of ten."""
    left, right = (torch.randn(width, width, device="cuda" if on_card() else "cpu").bfloat16() for _ in range(2))

    def multiply() -> None:
        for _ in range(10):
            torch.mm(left, right)

    _, seconds = timed(multiply, turns=3)
    return 10 * 2 * width**3 / statistics.median(seconds)


def forget_peak() -> None:
    """Let the peak of memory count from here."""
    if on_card():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_mb() -> int:
    """Of the card's memory since `forget_peak`; without a card, of this process's since it began."""
    if on_card():
        return round(torch.cuda.max_memory_allocated() / 2**20)
    return provenance.process_provenance(seed=None)["peak_rss_mb"]


def products(config, *, read: int, predicted: int) -> int:
    """FLOPs of the useful products: `read` tokens go through the layers, `predicted` ones through the LM head as well.

    Attention's products and an adapter's are left out: both are small at these lengths.
    """
    counts = architecture.shape_of(config, block_size=0, rank=1, targets="all-linear")
    return roofline.forward_flops(counts, tokens=read, predicted=predicted)


def entry(stage: str, *, rate: float, tokens: int, flops: int, seconds: list[float], work: str) -> dict:
    """A stage's speed: median over turns, and the share of the card's rate that its useful products reach."""
    middle, speeds = statistics.median(seconds), sorted(tokens / value for value in seconds)
    return {
        "stage": stage,
        "work": work,
        "tokens_per_s": _rounded(tokens / middle),
        "turns": len(seconds),
        "spread": [_rounded(speeds[0]), _rounded(speeds[-1])],
        "share_of_rate": _rounded(flops / middle / rate),
        "equalities": [],
    }


def equality(name: str, difference: float, *, allowed: float, unit: str) -> dict:
    """Whether two ways differ by no more than is allowed; NaN is no equality."""
    known = difference == difference and abs(difference) != float("inf")
    difference = _rounded(difference) if known else None
    return {
        "name": name,
        "equal": bool(known and difference <= allowed),
        "difference": difference,
        "allowed": allowed,
        "unit": unit,
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
