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


Pieces = tuple[Tensor, ...]  # the same piece of two parents' tensors, flat, and of their base's where there is one


def angle(a: Tensor, b: Tensor) -> float:
    """Angle between two tensors seen as vectors, in radians; 0 where one of them is zero.

    |a| |b| sin(angle) is the area that a and b span, and a and d = b - s a span the same, whatever s. Where s makes d
    small, float32 keeps the digits of a small angle, whose cosine is 1 to it below 3e-4.
    """
    return _angle(_pairs(a, b), _block_buffers())


def _pairs(a: Tensor, b: Tensor) -> Iterator[Pieces]:
    return zip(a.flatten().split(tensor_stream.CHUNK), b.flatten().split(tensor_stream.CHUNK), strict=True)


def _angle(pairs: Iterable[Pieces], spaces: Tensor) -> float:
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
    for _ in _sums(_pairs(a, b), merged.split(tensor_stream.CHUNK), _weights("slerp", w, t), _block_buffers()):
        pass
    return merged.reshape(a.shape), w


def _weights(how: str, w: float, t: float) -> tuple[float, float, float]:
    """Those of both parents and of their base: differences from a base c are merged as c + x (a - c) + y (b - c)."""
    x, y = 1.0 - t, float(t)
    if how != "lerp" and t not in (0, 1) and not falls_back(w):
        x, y = math.sin((1 - t) * w) / math.sin(w), math.sin(t * w) / math.sin(w)
    return x, y, 1.0 - x - y


def _sums(
    pieces: Iterable[Pieces], outs: Iterable[Tensor], weights: tuple[float, ...], spaces: Tensor
) -> Iterator[Tensor]:
    """The weighted sum, written piece by piece into `outs`; not fused, so that exact opposites cancel to 0."""
    for parts, out in zip(pieces, outs, strict=False):
        out = out[: len(parts[0])]
        for *blocks, block in zip(*(part.split(BLOCK) for part in parts), out.split(BLOCK), strict=True):
            total, term = (space[: len(block)] for space in spaces)
            total.copy_(blocks[0]).mul_(weights[0])
            for part, weight in zip(blocks[1:], weights[1:], strict=False):
                total.add_(term.copy_(part).mul_(weight))
            block.copy_(total)
        yield out


def write_parent(checkpoint: Path, adapter: Path, *, out: Path) -> None:
    """Write a fine-tuned model as one checkpoint in float32: its adapter merged into the weights.

    Raises:
        ValueError: see `store.load_merged` and `store.save_model`.
    """
    model, tokenizer, _ = store.load_merged(checkpoint, adapter=adapter)
    store.save_model(model, tokenizer, folder=out, parent=checkpoint.name, recipe={"adapter": adapter.name})


def merge_checkpoints(a: Path, b: Path, *, out: Path, t: float, how: str = "slerp", base: Path | None = None) -> dict:
    """Merge two checkpoints into a third that keeps a's dtype, tied embeddings, tokenizer and chat template.

    The output file has the very header of a's file, so tensors can be written in place as they are made.

    Args:
        how: "slerp" or "lerp".
        base: the checkpoint that both were fine-tuned from. Merged are then their task vectors (arXiv 2212.04089),
            their differences from it, and the merge is added to it.

    Returns:
        {angles: {tensor: radians}, lerp_share: share of tensors where SLERP falls back, 0..1, lerp_above: the |cosine|
        from which it does}. At a share of 1 SLERP and LERP give the same weights. With a base, tensors that were not
        trained have no angle and count in no share.

    Raises:
        ValueError: the checkpoints do not hold the same tensors.
    """
    by_shard = _tensors_by_shard(a, b, *([base] if base else []))
    with whole_folder(out) as scratch:
        _copy_context(a, scratch)
        angles, hashes = {}, {}
        for shard, tensors in by_shard.items():
            shard_angles, hashes[shard] = _merge_shard(tensors, out=scratch / shard, t=t, how=how)
            angles |= shard_angles
        recipe = {"merge": how, "a": a.name, "b": b.name, "t": t} | ({"base": base.name} if base else {})
        write_manifest(scratch, weights=hashes, parent=a.name, recipe=recipe)
    share = sum(map(falls_back, angles.values())) / max(len(angles), 1)
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


def _tensors_by_shard(a: Path, *others: Path) -> dict[str, list[tuple[TensorLocation, ...]]]:
    """Where both parents' tensors, and their base's, lie, by the file names of the first.

    Raises:
        ValueError: they do not hold the same names and shapes; names the first difference.
    """
    left, rights, by_shard = tensor_index(a), [tensor_index(other) for other in others], {}
    for other, right in zip(others, rights, strict=True):
        differing = sorted(left.keys() ^ right.keys()) or [n for n in left if left[n].shape != right[n].shape]
        if differing:
            raise ValueError(
                f"checkpoints {a.name} and {other.name} differ in tensor {differing[0]!r}: "
                "a merge needs models pruned by the same block"
            )
    for name, location in left.items():
        by_shard.setdefault(location.shard.name, []).append((location, *(right[name] for right in rights)))
    return by_shard


def _merge_shard(tensors: list[tuple[TensorLocation, ...]], *, out: Path, t: float, how: str) -> tuple[dict, str]:
    """Write one shard of the merge, piece by piece in the order of the first parent's; returns the angles and its hash.

    Tensors of more than one piece are read twice, for the angle and for the sum, the second time from the file cache.
    """
    angles, digest, sides, spaces = {}, hashlib.sha256(), buffers(3)[:, None], _block_buffers()
    outs = cycle(buffers(tensor_stream.AHEAD + 2))  # one is being filled, one being written
    with shard_writer(out, digest, header(tensors[0][0].shard)) as write:
        for places in tensors:
            name, dtype = places[0].name, places[0].dtype
            read = [*_read(places, sides)] if math.prod(places[0].shape) <= tensor_stream.CHUNK else []
            w = _angle(_compared(read or _read(places, sides)), spaces)
            if w or len(places) == 2:
                angles[name] = w
            views = (out.view(dtype) for out in outs)
            for piece in _sums(read or _read(places, sides), views, _weights(how, w, t), spaces):
                write(piece)
    return angles, digest.hexdigest()


def _read(places: tuple[TensorLocation, ...], spaces: Tensor) -> Iterator[Pieces]:
    """The pieces of several tensors of files, side by side."""
    return zip(*(read_chunks(place, space) for place, space in zip(places, spaces, strict=False)), strict=True)


def _compared(pieces: Iterable[Pieces]) -> Iterator[Pieces]:
    """Two tensors' pieces whose angle counts: the parents', or their differences from the base."""
    for a, b, *base in pieces:
        yield (a.float() - base[0], b.float() - base[0]) if base else (a, b)
