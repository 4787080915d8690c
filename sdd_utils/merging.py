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
from collections.abc import Iterator
from pathlib import Path

import torch
from datasets import Dataset, concatenate_datasets
from safetensors import safe_open
from torch import Tensor

from sdd_utils.models import whole_folder, write_manifest

LERP_ABOVE = 0.9995  # |cos| from which sin(angle) is too small to divide by; mergekit's threshold
CHUNK = 2**16  # elements at a time: their copies in float64 stay in the processor's cache, and memory is used again
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


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.flatten().split(CHUNK) for tensor in tensors), strict=True)


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
    if t in (0, 1):
        return (a, b)[int(t)].clone(), w
    weights = [1.0 - t, t] if falls_back(w) else [math.sin(u * w) / math.sin(w) for u in (1.0 - t, t)]
    return _sum(a, b, *weights), w


def lerp(a: Tensor, b: Tensor, t: float) -> tuple[Tensor, float]:
    """(1 - t) a + t b in a's dtype, and the angle between a and b in radians."""
    return _sum(a, b, 1.0 - t, t), angle(a, b)


def _sum(a: Tensor, b: Tensor, weight_a: float, weight_b: float) -> Tensor:
    total = torch.empty(a.shape, dtype=a.dtype)
    for x, y, part in _chunks(a, b, total):
        part.copy_((weight_a * x.float()).add_(weight_b * y.float()))  # not fused: exact opposites cancel to 0
    return total


_HOW = {"slerp": slerp, "lerp": lerp}


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
    """Write one shard of the merge, tensor by tensor in the order of its header; returns the angles and its hash."""
    header, raw = read_header(shard)
    entries = sorted((entry["data_offsets"][0], name) for name, entry in header.items() if name != "__metadata__")
    angles, digest = {}, hashlib.sha256(raw)
    with out.open("wb") as target:
        target.write(raw)
        for _, name in entries:
            merged, angles[name] = _HOW[how](_tensor(shard, name), _tensor(where_in_b[name], name), t)
            values = merged.reshape(-1).view(torch.uint8).numpy().data
            target.write(values)
            digest.update(values)
    return angles, digest.hexdigest()


def _tensor(shard: Path, name: str) -> Tensor:
    """One tensor; the file is opened for it alone, as an open one holds every page that was read in memory."""
    with safe_open(shard, framework="pt") as file:
        return file.get_tensor(name)
