"""A disk that is full in each step: it is told in one sentence, and after space is made the same command goes on."""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sdd_utils.base import disk
from tests.faults import place as places
from tests.faults.place import Place
from tests.faults.series import series

SIZE = "64m"
MOST_LEFT = 22  # up to 2^22 bytes are left: more than a checkpoint of the tiny model


def disk_full(tries: int) -> dict:
    """The repository, the run and Snakemake's own files lie on a small disk, which is filled at random moments."""
    undisturbed = places.reference(places.TINY)
    folder = undisturbed.copy.with_name("disk_full")
    with _small_disk(folder):
        place = places.make(folder, places.TINY)
        return series(place, undisturbed, part="disk_full", tries=tries, disturb=_fill)


@contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    if not folder.is_mount():  # it stays after a kill of this campaign, which then goes on
        told = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], capture_output=True, text=True
        )
        if told.returncode:
            raise PermissionError(f"no small disk could be mounted ({told.stderr.strip()}): run this part as root")
    yield
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill(process: subprocess.Popen, place: Place, draw: random.Random) -> bool:
    """Leave a few bytes, wait for the end, make space again; whether the end was told as it should be."""
    filler = place.copy / "filler"
    left = int(2 ** draw.uniform(0, MOST_LEFT)) if draw.random() < 0.5 else 0
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(place.copy).free - left))
        while not left:
            file.write(bytes(2**12))  # until it is full to the last byte, whatever was freed meanwhile
    status = process.wait()
    filler.unlink()
    last = places.said(place).strip().splitlines()[-1]
    return status == 0 or last == f"error: {disk.FULL}"
