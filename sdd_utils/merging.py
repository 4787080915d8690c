"""SLERP or LERP of two checkpoints of one shape, streamed: no more than one tensor of each is in memory.

SLERP walks the great circle between two weight tensors instead of the chord (Shoemake 1985); as in mergekit,
tensors that are nearly parallel fall back to linear interpolation (LERP). Fine-tunes of one parent are nearly
parallel almost everywhere, so the angle of every tensor and the share that fell back are part of the result. What a
merge is measured against besides its parents, training on both sets at once, takes its rows from `mixture`.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor

from sdd_utils.models import whole_folder, write_manifest

LERP_ABOVE = 0.9995  # |cos| from which sin(angle) is too small to divide by; mergekit's threshold
CHUNK = 2**18  # elements at a time: their copies in float64 stay in the processor's cache, and memory is used again
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CONTEXT_FILES = ("*.json", "*.jinja", "*.model", "*.txt")


def angle(a: Tensor, b: Tensor) -> float:
    """Angle between two tensors seen as vectors, in radians; 0 where one of them is zero.

    From products in float64: float32 cannot tell angles below 3e-4 from 0.
    """
    products = torch.zeros(3, dtype=torch.float64)
    for x, y in _chunks(a, b):
        x, y = x.double(), y.double()
        products += torch.stack([x @ y, x @ x, y @ y])
    inner, square_a, square_b = products.tolist()
    norms = math.sqrt(square_a) * math.sqrt(square_b)
    return 0.0 if norms == 0 else math.acos(min(max(inner / norms, -1.0), 1.0))  # in this order NaN stays NaN


def _chunks(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(a.flatten().split(CHUNK), b.flatten().split(CHUNK), strict=True)


def falls_back(angle: float) -> bool:
    """Whether tensors at this angle (radians) are so nearly parallel that SLERP is LERP."""
    return abs(math.cos(angle)) > LERP_ABOVE


def slerp(a: Tensor, b: Tensor, t: float) -> tuple[Tensor, float]:
    """Interpolate between two tensors, from a (t = 0) to b (t = 1), in a's dtype.

        slerp(a, b; t) = sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b,   w = angle between a and b

    Returns:
        the tensor, and the angle w in radians.
    """
    w = angle(a, b)
    return torch.cat(list(_sums(a, b, *_weights("slerp", w, t)))).reshape(a.shape), w


def _weights(how: str, w: float, t: float) -> tuple[float, float]:
    if how == "lerp" or t in (0, 1) or falls_back(w):
        return 1.0 - t, float(t)
    return math.sin((1 - t) * w) / math.sin(w), math.sin(t * w) / math.sin(w)


def _sums(a: Tensor, b: Tensor, weight_a: float, weight_b: float) -> Iterator[Tensor]:
    """weight_a a + weight_b b in a's dtype, flat, piece by piece; not fused, so that exact opposites cancel to 0."""
    for x, y in _chunks(a, b):
        yield (weight_a * x.float()).add_(weight_b * y.float()).to(a.dtype)


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
    """Write one shard of the merge, piece by piece in the order of its header; returns the angles and its hash."""
    header, raw = read_header(shard)
    entries = sorted((entry["data_offsets"][0], name) for name, entry in header.items() if name != "__metadata__")
    reads = _reader(), _reader()
    angles, digest = {}, hashlib.sha256(raw)
    with out.open("wb", buffering=0) as target:
        target.write(raw)
        for _, name in entries:
            a, b = (read(path, name) for read, path in zip(reads, (shard, where_in_b[name]), strict=True))
            angles[name] = angle(a, b)
            for piece in _sums(a, b, *_weights(how, angles[name], t)):
                values = piece.view(torch.uint8).numpy().data  # written and hashed while the cache holds it
                target.write(values)
                digest.update(values)
    return angles, digest.hexdigest()


def _reader() -> Callable[[Path, str], Tensor]:
    """Reads tensors, flat, into memory of its own that the next one takes over.

    Mapped files cost more in page faults than a copy does, and count as memory while they are open.
    """
    space = bytearray()

    def read(shard: Path, name: str) -> Tensor:
        nonlocal space
        header, raw = read_header(shard)
        start, end = header[name]["data_offsets"]
        if len(space) < end - start:
            space = bytearray(end - start)
        with shard.open("rb") as file:
            file.seek(len(raw) + start)
            if file.readinto(memoryview(space)[: end - start]) < end - start:
                raise ValueError(f"checkpoint {shard.parent.name}: {shard.name} ends within {name!r}: make it again")
        return torch.frombuffer(space, dtype=_DTYPES[header[name]["dtype"]], count=math.prod(header[name]["shape"]))

    return read
