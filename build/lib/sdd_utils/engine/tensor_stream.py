"""The tensors of a checkpoint's safetensors files, read and written piece by piece."""

import json
import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 2**20  # elements of a piece: its writing is worth a thread
AHEAD = 4  # pieces that may wait to be written
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class TensorLocation(NamedTuple):
    """Where a tensor lies: its file, the byte it starts at, what it is."""

    shard: Path
    start: int
    name: str
    shape: list[int]
    dtype: torch.dtype


def tensor_index(folder: Path) -> dict[str, TensorLocation]:
    """Every tensor of a checkpoint by name, in the order in which they lie.

    Raises:
        FileNotFoundError: there are no safetensors, with the fix.
    """
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise FileNotFoundError(f"checkpoint {folder.name} holds no safetensors: make it with 04_sft_vs_self_distill")
    locations = [location for shard in shards for location in _locations_in(shard)]
    return {location.name: location for location in sorted(locations)}


def _locations_in(shard: Path) -> Iterator[TensorLocation]:
    raw = header(shard)
    for name, entry in json.loads(raw[8:]).items():
        if name != "__metadata__":
            start = len(raw) + entry["data_offsets"][0]
            yield TensorLocation(shard, start, name, entry["shape"], _DTYPES[entry["dtype"]])


def header(shard: Path) -> bytes:
    """What a file begins with: the length of its header, and the header."""
    with shard.open("rb") as file:
        size = file.read(8)
        return size + file.read(int.from_bytes(size, "little"))


def buffers(pieces: int) -> Tensor:
    """(pieces, bytes) of memory for so many pieces, of any dtype; used again and again, as new memory costs time."""
    return torch.empty(pieces, 8 * CHUNK, dtype=torch.uint8)


def read_chunks(location: TensorLocation, spaces: Tensor) -> Iterator[Tensor]:
    """A tensor, flat, piece by piece; each lies in the next of `spaces`, whose memory is used again in turn.

    Mapped files cost more in page faults than copies that stay in the processor's cache, and count as memory.

    Raises:
        ValueError: the file ends too early, with the fix.
    """
    remaining, turns = math.prod(location.shape), cycle(space.view(location.dtype)[:CHUNK] for space in spaces)
    with location.shard.open("rb", buffering=0) as file:
        file.seek(location.start)
        while remaining:
            piece = next(turns)[: min(remaining, CHUNK)]
            if file.readinto(piece.view(torch.uint8).numpy()) < piece.nbytes:
                whose = f"checkpoint {location.shard.parent.name}: {location.shard.name}"
                raise ValueError(f"{whose} ends within {location.name!r}: make it again")
            yield piece
            remaining -= len(piece)


@contextmanager
def shard_writer(path: Path, digest, head: bytes) -> Iterator[Callable[[Tensor], None]]:
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
        for write_job in waiting:
            write_job.result()
