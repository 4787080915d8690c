"""SLERP or LERP of two checkpoints of one shape, streamed: no more than a few pieces of a tensor are in memory.

SLERP walks the great circle between two weight tensors instead of the chord (Shoemake 1985); as in mergekit,
tensors that are nearly parallel fall back to linear interpolation (LERP). Fine-tunes of one parent are nearly
parallel almost everywhere, so the angle of every tensor and the share that fell back are part of the result. What a
merge is measured against besides its parents, training on both sets at once, takes its rows from `mixture`.
"""

import hashlib
import math
import shutil
from collections.abc import Iterable, Iterator
from itertools import cycle
from pathlib import Path

import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor

from sdd_utils.base.files import whole_folder
from sdd_utils.engine import tensor_stream
from sdd_utils.engine.tensor_stream import TensorLocation, buffers, header, read_chunks, shard_writer, tensor_index
from sdd_utils.models import store
from sdd_utils.models.store import write_manifest

BLOCK = 2**16  # elements of a piece that are computed at a time
LERP_ABOVE = 0.9995  # |cos| from which sin(angle) is too small to divide by; mergekit's threshold
_CONTEXT_FILES = ("*.json", "*.jinja", "*.model", "*.txt")


Pair = tuple[Tensor, Tensor]  # the same piece of two tensors, flat


def angle(a: Tensor, b: Tensor) -> float:
    """Angle between two tensors seen as vectors, in radians; 0 where one of them is zero.

    |a| |b| sin(angle) is the area that a and b span, and a and d = b - s a span the same, whatever s. Where s makes d
    small, float32 keeps the digits of a small angle, whose cosine is 1 to it below 3e-4.
    """
    return _angle(_pairs(a, b), _block_buffers())


def _pairs(a: Tensor, b: Tensor) -> Iterator[Pair]:
    return zip(a.flatten().split(tensor_stream.CHUNK), b.flatten().split(tensor_stream.CHUNK), strict=True)


def _angle(pairs: Iterable[Pair], spaces: Tensor) -> float:
    s, square_a, inner, square_d = None, 0.0, 0.0, 0.0
    for pair in pairs:
        for blocks in zip(*(piece.split(BLOCK) for piece in pair), strict=True):
            x, d = (space[: len(block)].copy_(block) for space, block in zip(spaces, blocks, strict=True))
            if s is None:
                s = float(x @ d) / (float(x @ x) or 1.0)
            d.sub_(x, alpha=s)
            square_a, inner, square_d = square_a + float(x @ x), inner + float(x @ d), square_d + float(d @ d)
    area = math.sqrt(max(square_a * square_d - inner**2, 0.0))  # in this order NaN stays NaN
    return math.atan2(area, (s or 0.0) * square_a + inner)


def _block_buffers() -> Tensor:
    """(2, BLOCK), where blocks of two tensors lie in float32 while they are computed."""
    return torch.empty(2, BLOCK)


def falls_back(angle: float) -> bool:
    """Whether tensors at this angle (radians) are so nearly parallel that SLERP is LERP."""
    return abs(math.cos(angle)) > LERP_ABOVE


def slerp(a: Tensor, b: Tensor, t: float) -> tuple[Tensor, float]:
    """Interpolate between two tensors, from a (t = 0) to b (t = 1), in a's dtype.

        slerp(a, b; t) = sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b,   w = angle between a and b

    Returns:
        the tensor, and the angle w in radians.
    """
    w, merged = angle(a, b), torch.empty_like(a.flatten())
    for _ in _sums(_pairs(a, b), merged.split(tensor_stream.CHUNK), *slerp_weights("slerp", w, t), _block_buffers()):
        pass
    return merged.reshape(a.shape), w


def slerp_weights(how: str, w: float, t: float) -> tuple[float, float]:
    """The weights of both parents at t, of SLERP between tensors at an angle of w radians, or of LERP."""
    if how == "lerp" or t in (0, 1) or falls_back(w):
        return 1.0 - t, float(t)
    return math.sin((1 - t) * w) / math.sin(w), math.sin(t * w) / math.sin(w)


def _sums(
    pairs: Iterable[Pair], outs: Iterable[Tensor], weight_a: float, weight_b: float, spaces: Tensor
) -> Iterator[Tensor]:
    """weight_a a + weight_b b, written piece by piece into `outs`; not fused, so that exact opposites cancel to 0."""
    for (a, b), out in zip(pairs, outs, strict=False):
        out = out[: len(a)]
        for *blocks, block in zip(a.split(BLOCK), b.split(BLOCK), out.split(BLOCK), strict=True):
            x, y = (space[: len(block)].copy_(part) for space, part in zip(spaces, blocks, strict=True))
            block.copy_(x.mul_(weight_a).add_(y.mul_(weight_b)))
        yield out


def write_parent(checkpoint: Path, adapter: Path, *, out: Path) -> None:
    """Write a fine-tuned model as one checkpoint in float32: its adapter merged into the weights.

    Raises:
        ValueError: see `store.load_merged` and `store.save_model`.
    """
    model, tokenizer, _ = store.load_merged(checkpoint, adapter=adapter)
    store.save_model(model, tokenizer, folder=out, parent=checkpoint.name, recipe={"adapter": adapter.name})


def merge_checkpoints(a: Path, b: Path, *, out: Path, t: float, how: str = "slerp") -> dict:
    """Merge two checkpoints into a third that keeps a's dtype, tied embeddings, tokenizer and chat template.

    The output file has the very header of a's file, so tensors can be written in place as they are made.

    Args:
        how: "slerp" or "lerp".

    Returns:
        {angles: {tensor: radians}, lerp_share: share of tensors where SLERP falls back, 0..1, lerp_above: the |cosine|
        from which it does}. At a share of 1 SLERP and LERP give the same weights.

    Raises:
        ValueError: the checkpoints do not hold the same tensors.
    """
    by_shard = _pairs_by_shard(a, b)
    with whole_folder(out) as scratch:
        _copy_context(a, scratch)
        angles, hashes = {}, {}
        for shard, pairs in by_shard.items():
            shard_angles, hashes[shard] = _merge_shard(pairs, out=scratch / shard, t=t, how=how)
            angles |= shard_angles
        recipe = {"merge": how, "a": a.name, "b": b.name, "t": t}
        write_manifest(scratch, weights=hashes, parent=a.name, recipe=recipe)
    share = sum(map(falls_back, angles.values())) / len(angles)
    return {"angles": angles, "lerp_share": share, "lerp_above": LERP_ABOVE}


def mixture(first: Dataset, second: Dataset) -> Dataset:
    """Training rows of two sets in equal parts, the first ones of each, together as many as the smaller set has.

    A training on it costs what one parent's does. An odd row comes from the first set.
    """
    rows = min(len(first), len(second))
    return concatenate_datasets([first.select(range(rows - rows // 2)), second.select(range(rows // 2))])


def _copy_context(a: Path, out: Path) -> None:
    for pattern in _CONTEXT_FILES:
        for path in a.glob(pattern):
            if path.name != "manifest.json":
                shutil.copy(path, out)


def _pairs_by_shard(a: Path, b: Path) -> dict[str, list[tuple[TensorLocation, TensorLocation]]]:
    """Where both parents' tensors lie, by the file names of the first.

    Raises:
        ValueError: they do not hold the same names and shapes; names the first difference.
    """
    left, right, by_shard = tensor_index(a), tensor_index(b), {}
    differing = sorted(left.keys() ^ right.keys()) or [n for n in left if left[n].shape != right[n].shape]
    if differing:
        raise ValueError(
            f"checkpoints {a.name} and {b.name} differ in tensor {differing[0]!r}: "
            "a merge needs two models pruned by the same block"
        )
    for name, location in left.items():
        by_shard.setdefault(location.shard.name, []).append((location, right[name]))
    return by_shard


def _merge_shard(
    pairs: list[tuple[TensorLocation, TensorLocation]], *, out: Path, t: float, how: str
) -> tuple[dict, str]:
    """Write one shard of the merge, piece by piece in the order of the first parent's; returns the angles and its hash.

    Tensors of more than one piece are read twice, for the angle and for the sum, the second time from the file cache.
    """
    angles, digest, sides, spaces = {}, hashlib.sha256(), buffers(2)[:, None], _block_buffers()
    outs = cycle(buffers(tensor_stream.AHEAD + 2))  # one is being filled, one being written
    with shard_writer(out, digest, header(pairs[0][0].shard)) as write:
        for pair in pairs:
            name, dtype = pair[0].name, pair[0].dtype
            read = [*_read(pair, sides)] if math.prod(pair[0].shape) <= tensor_stream.CHUNK else []
            angles[name] = w = _angle(read or _read(pair, sides), spaces)
            views = (out.view(dtype) for out in outs)
            for piece in _sums(read or _read(pair, sides), views, *slerp_weights(how, w, t), spaces):
                write(piece)
    return angles, digest.hexdigest()


def _read(pair: tuple[TensorLocation, TensorLocation], spaces: Tensor) -> Iterator[Pair]:
    """The pieces of two tensors of files, side by side."""
    return zip(*(read_chunks(location, space) for location, space in zip(pair, spaces, strict=True)), strict=True)
