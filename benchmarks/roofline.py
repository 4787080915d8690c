"""What this machine can do: its rate of matrix products at a model's own shapes, and of reading memory.

A stage's least time is its useful work at these rates: products of real tokens, none padded or computed twice, and
attention left out; or the bytes that it must read. `compare` divides it by the time that the stage took.
"""

import functools
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch

from sdd_utils.base import precision
from sdd_utils.engine import packed_linear
from sdd_utils.models import architecture, store
from sdd_utils.models.architecture import Shape

ROWS = (512, 2048)  # tokens of a product: a group of prompts that is read, and a step of training
READ_BYTES = 2**30  # more than any processor's caches hold
REPEATS = 5


def product_rate(model: str) -> float:
    """FLOP/s of the linear maps of all decoder layers, one after the other, in the precision that is set.

    The best of torch's own products and packed ones, and of the numbers of `ROWS`; each is a median of `REPEATS`.
    """
    return _product_rate(model, precision.dtype_name())


@functools.cache
def _product_rate(model: str, _dtype: str) -> float:
    loaded, _ = store.load_model(model)
    maps = [layer for layer in architecture.decoder_layers(loaded).modules() if isinstance(layer, torch.nn.Linear)]
    parameters, rates = sum(layer.weight.numel() for layer in maps), []
    for packed in (nullcontext, packed_linear.packed_linears):
        with packed(loaded), torch.inference_mode():
            for rows in ROWS:
                inputs = {width: _random(rows, width, loaded.dtype) for width in {layer.in_features for layer in maps}}
                seconds = _seconds(lambda inputs=inputs: [layer(inputs[layer.in_features]) for layer in maps])
                rates.append(2 * parameters * rows / statistics.median(seconds))
    return max(rates)


def _random(rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(rows, width, dtype=dtype)


@functools.cache
def read_rate() -> float:
    """Bytes/s at which all cores read 1 GiB of float32 that they add up, the best of `REPEATS`."""
    numbers = torch.ones(READ_BYTES // 4)
    return numbers.nbytes / min(_seconds(numbers.sum))


def _seconds(work: Callable[[], object]) -> list[float]:
    """How long each of `REPEATS` turns of some work takes, after one that is not counted."""
    work()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


@functools.cache
def shape(model: str, *, rank: int = 16) -> Shape:
    """The counts of a model, with a LoRA adapter of this rank on all linear maps."""
    return architecture.shape_of(store.load_config(model), block_size=0, rank=rank, targets="all-linear")


def _head(counts: Shape) -> int:
    return counts.vocabulary * counts.hidden


def forward_flops(counts: Shape, *, tokens: int, predicted: int) -> int:
    """Operations that read so many tokens and give the logits behind `predicted` of them."""
    return 2 * ((counts.matmul - _head(counts)) * tokens + _head(counts) * predicted)


def training_flops(counts: Shape, *, tokens: int, trained: int) -> int:
    """Operations of a LoRA training on so many tokens, `trained` of them with loss.

    Frozen weights multiply forwards and backwards (4 per parameter and token), LoRA's own once more for their
    gradients (6), and the LM head the positions with loss only (4).
    """
    frozen = counts.matmul - _head(counts)
    return (4 * frozen + 6 * counts.adapter) * tokens + 4 * _head(counts) * trained


def step_bytes(counts: Shape, *, cached: int, width: int) -> int:
    """Bytes that a joint step must read: all weights once, and the keys and values of so many tokens.

    Args:
        width: bytes of a number.
    """
    return width * (counts.matmul + counts.kv_width * cached)
