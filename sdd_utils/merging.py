"""SLERP or LERP of two checkpoints of one shape, streamed: no more than a few pieces of a tensor are in memory.

SLERP walks the great circle between two weight tensors instead of the chord (Shoemake 1985); as in mergekit,
tensors that are nearly parallel fall back to linear interpolation (LERP). Fine-tunes of one parent are nearly
parallel almost everywhere, so the angle of every tensor and the share that fell back are part of the result. What a
merge is measured against besides its parents, training on both sets at once, takes its rows from `mixture`.
"""

import hashlib
import json
import math
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor

from sdd_utils.models import whole_folder, write_manifest

LERP_ABOVE = 0.9995  # |cos| from which sin(angle) is too small to divide by; mergekit's threshold
CHUNK = 2**18  # elements of a piece: its copies in float64 stay in the processor's cache
AHEAD = 8  # merged pieces that may wait to be written
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CONTEXT_FILES = ("*.json", "*.jinja", "*.model", "*.txt")


Pair = tuple[Tensor, Tensor]  # the same piece of two tensors, flat


def angle(a: Tensor, b: Tensor) -> float:
    """Angle between two tensors seen as vectors, in radians; 0 where one of them is zero.

    From products in float64: float32 cannot tell angles below 3e-4 from 0.
    """
    return _angle(_pairs(a, b), _room(2))


def _room(pieces: int) -> Tensor:
    """(pieces, bytes) of memory for so many pieces, of any dtype; used again and again, as new memory costs time."""
    return torch.empty(pieces, 8 * CHUNK, dtype=torch.uint8)


def _pairs(a: Tensor, b: Tensor) -> Iterator[Pair]:
    return zip(a.flatten().split(CHUNK), b.flatten().split(CHUNK), strict=True)


def _angle(pairs: Iterable[Pair], room: Tensor) -> float:
    products, spaces = torch.zeros(3, dtype=torch.float64), room.view(torch.float64)
    for pair in pairs:
        x, y = (space[: len(piece)].copy_(piece) for space, piece in zip(spaces, pair, strict=True))
        products += torch.stack([x @ y, x @ x, y @ y])
    inner, square_a, square_b = products.tolist()
    norms = math.sqrt(square_a) * math.sqrt(square_b)
    return 0.0 if norms == 0 else math.acos(min(max(inner / norms, -1.0), 1.0))  # in this order NaN stays NaN


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
    for _ in _sums(_pairs(a, b), merged.split(CHUNK), *_weights("slerp", w, t), _room(2)):
        pass
    return merged.reshape(a.shape), w


def _weights(how: str, w: float, t: float) -> tuple[float, float]:
    if how == "lerp" or t in (0, 1) or falls_back(w):
        return 1.0 - t, float(t)
    return math.sin((1 - t) * w) / math.sin(w), math.sin(t * w) / math.sin(w)


def _sums(
    pairs: Iterable[Pair], outs: Iterable[Tensor], weight_a: float, weight_b: float, room: Tensor
) -> Iterator[Tensor]:
    """weight_a a + weight_b b, written piece by piece into `outs`; not fused, so that exact opposites cancel to 0."""
    spaces = room.view(torch.float32)
    for (x, y), out in zip(pairs, outs, strict=False):
        left, right = (space[: len(x)] for space in spaces)
        yield out[: len(x)].copy_(left.copy_(x).mul_(weight_a).add_(right.copy_(y).mul_(weight_b)))


def merge(a: Path, b: Path, *, out: Path, t: float, how: str = "slerp") -> dict:
    """Merge two checkpoints into a third that keeps a's dtype, tied embeddings, tokenizer and chat template.

    The output file has the very header of a's file, so tensors can be written in place as they are made.

    Args:
        how: "slerp" or "lerp".

    Returns:
        {angles: {tensor: radians}, lerp_share: share of tensors where SLERP falls back, 0..1}. At a share of 1
        SLERP and LERP give the same weights.

    Raises:
        ValueError: the checkpoints do not hold the same tensors.
    """
    check_same_shape(a, b)
    where_in_b = {name: b / shard for name, (_, shard) in _shapes(b).items()}
    with whole_folder(out) as scratch:
        _copy_context(a, scratch)
        angles, hashes = {}, {}
        for shard in sorted(a.glob("*.safetensors")):
            found, hashes[shard.name] = _merge_shard(shard, where_in_b, out=scratch / shard.name, t=t, how=how)
            angles |= found
        recipe = {"merge": how, "a": a.name, "b": b.name, "t": t}
        write_manifest(scratch, weights=hashes, parent=a.name, recipe=recipe)
    return {"angles": angles, "lerp_share": sum(map(falls_back, angles.values())) / len(angles)}


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


def read_header(shard: Path) -> tuple[dict, bytes]:
    """A safetensors file's header, parsed and as the bytes it starts with (length included)."""
    with shard.open("rb") as file:
        size = file.read(8)
        raw = file.read(int.from_bytes(size, "little"))
    return json.loads(raw), size + raw


def _shapes(folder: Path) -> dict[str, tuple[list[int], str]]:
    """Shape and shard of every tensor in a checkpoint."""
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise FileNotFoundError(f"checkpoint {folder.name} holds no safetensors: make it with 04_sft_vs_self_distill")
    headers = {shard.name: read_header(shard)[0] for shard in shards}
    return {
        name: (entry["shape"], shard)
        for shard, header in headers.items()
        for name, entry in header.items()
        if name != "__metadata__"
    }


def check_same_shape(a: Path, b: Path) -> None:
    """Raise ValueError, naming the first difference, unless two checkpoints hold the same names and shapes."""
    left, right = _shapes(a), _shapes(b)
    differing = sorted(left.keys() ^ right.keys()) or [n for n in left if left[n][0] != right[n][0]]
    if differing:
        raise ValueError(
            f"checkpoints {a.name} and {b.name} differ in tensor {differing[0]!r}: "
            "a merge needs two models pruned by the same block"
        )


def _merge_shard(shard: Path, where_in_b: dict[str, Path], *, out: Path, t: float, how: str) -> tuple[dict, str]:
    """Write one shard of the merge, piece by piece in the order of its header; returns the angles and its hash.

    Parents are read twice, for the angle and for the sum: the second time from the system's memory of files.
    """
    header, raw = read_header(shard)
    entries = sorted((entry["data_offsets"][0], name) for name, entry in header.items() if name != "__metadata__")
    angles, digest, room = {}, hashlib.sha256(), _room(4)
    outs = cycle(_room(AHEAD + 2))  # one is being filled, one being written
    with _written(out, digest, raw) as write:
        for _, name in entries:
            dtype, parents = _DTYPES[header[name]["dtype"]], ((shard, name), (where_in_b[name], name))
            angles[name] = _angle(_read(*parents, room=room[:2]), room[2:])
            weights, pairs = _weights(how, angles[name], t), _read(*parents, room=room[:2])
            for piece in _sums(pairs, (out.view(dtype) for out in outs), *weights, room[2:]):
                write(piece)
    return angles, digest.hexdigest()


def _read(*tensors: tuple[Path, str], room: Tensor) -> Iterator[Pair]:
    """The pieces of two tensors of files, side by side."""
    return zip(*(_pieces(*tensor, space) for tensor, space in zip(tensors, room, strict=True)), strict=True)


def _pieces(shard: Path, name: str, space: Tensor) -> Iterator[Tensor]:
    """A tensor of a file, flat, piece by piece; each piece's memory is used again by the next.

    Mapped files cost more in page faults than copies that stay in the processor's cache, and count as memory.
    """
    header, raw = read_header(shard)
    left, space = math.prod(header[name]["shape"]), space.view(_DTYPES[header[name]["dtype"]])[:CHUNK]
    with shard.open("rb", buffering=0) as file:
        file.seek(len(raw) + header[name]["data_offsets"][0])
        while left:
            piece = space[: min(left, CHUNK)]
            if file.readinto(piece.view(torch.uint8).numpy()) < piece.nbytes:
                raise ValueError(f"checkpoint {shard.parent.name}: {shard.name} ends within {name!r}: make it again")
            yield piece
            left -= len(piece)


@contextmanager
def _written(path: Path, digest, head: bytes) -> Iterator[Callable[[Tensor], None]]:
    """A function that writes pieces into a file after its head, and into its digest, in a thread of its own.

    Meanwhile torch computes in one thread: the helpers of its own would wait for work on the core that writes.
    """
    threads = torch.get_num_threads()
    with path.open("wb") as file, ThreadPoolExecutor(1) as writer:

        def keep(values) -> None:
            file.write(values)
            digest.update(values)

        def write(piece: Tensor) -> None:
            waiting.append(writer.submit(keep, piece.view(torch.uint8).numpy().data))
            if len(waiting) > AHEAD:
                waiting.popleft().result()

        waiting = deque([writer.submit(keep, head)])
        torch.set_num_threads(1)
        try:
            yield write
        finally:
            torch.set_num_threads(threads)
        for last in waiting:
            last.result()
