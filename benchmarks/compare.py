"""Our way and a peer's to do the same work: timed turn about in one process, peak memory of each in its own process.

A stage is a module with

    NAME                                          what the table calls it
    FULL, SMALL                                   sizes: what `make bench` measures, and what tests and warm-up take
    MEMORY (optional)                             what of FULL to change for memory, where less work has the same peak;
                                                  None: memory is not compared, as a peer works in a process of its own
    prepare(model, *, scratch, **size) -> state   everything that is not measured
    ours(state) -> answer
    PEERS                                         {peer: (peer(state) -> answer, repetitions)}
    same(state, ours, peer) -> (bool | None, note)  whether the answers agree; None where the peer is only a limit
    amount(answer) -> int (optional)              what times are divided by, where a slow peer does a part of the work
    DTYPE (optional)                              both sides compute in this, not in what the hardware does best
"""

import ctypes
import importlib
import multiprocessing
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from unittest import mock

from sdd_utils.base import precision

MODEL = "smollm2-135m-instruct"


def compare(stage: ModuleType, *, size: dict, model: str = MODEL, memory: bool = True) -> list[dict]:
    """One entry per peer: {stage, peer, ratio_time, ratio_memory, equal, n, spread, note}; ratios are peer / ours.

    `ratio_time` is the median over n turns and `spread` the smallest and largest of them. `ratio_memory` compares what
    the work adds to the process's resident memory at its peak; None where a side adds less than a megabyte, or the
    peer takes so long that it has one turn.
    """
    memory = memory and getattr(stage, "MEMORY", {}) is not None
    with tempfile.TemporaryDirectory() as scratch, computing_in(stage):
        dtype = precision.dtype_name()
        state = stage.prepare(model, scratch=Path(scratch), **size)
        ratios, answers = _turns(stage, state)
        same = {name: stage.same(state, answers["ours"], answers[name]) for name in stage.PEERS}
    smaller, peaks = size | (getattr(stage, "MEMORY", {}) or {}), {}
    # A peer that is too slow to repeat is not run again for its memory either.
    repeated = [name for name, (_, repetitions) in stage.PEERS.items() if memory and repetitions > 1]
    for side in [*repeated, "ours"] if repeated else []:
        peaks[side] = peak(stage, side, size=smaller, model=model)
    return [
        {
            "stage": stage.NAME,
            "peer": name,
            "ratio_time": round(statistics.median(ratios[name]), 3),
            "ratio_memory": _ratio(peaks.get(name, 0), peaks.get("ours", 0)),
            "equal": same[name][0],
            "n": len(ratios[name]),
            "spread": [round(min(ratios[name]), 3), round(max(ratios[name]), 3)],
            "note": ", ".join(filter(None, [dtype, same[name][1]])),
        }
        for name in stage.PEERS
    ]


def computing_in(stage: ModuleType):
    """A context in which models compute in the stage's `DTYPE`, if it names one."""
    dtype = getattr(stage, "DTYPE", None)
    return mock.patch.dict(os.environ, SDD_DTYPE=dtype) if dtype else nullcontext()


def _turns(stage: ModuleType, state) -> tuple[dict[str, list[float]], dict]:
    """Time ratios by peer, a turn each of ours and of the peers that have turns left; and each side's last answer."""
    amount = getattr(stage, "amount", lambda answer: 1)
    ratios, answers = {name: [] for name in stage.PEERS}, {}
    for turn in range(max(repetitions for _, repetitions in stage.PEERS.values())):
        sides = {name: peer for name, (peer, repetitions) in stage.PEERS.items() if turn < repetitions}
        sides, seconds = sides | {"ours": stage.ours}, {}
        for side in sorted(sides, reverse=bool(turn % 2)):
            start = time.perf_counter()
            answers[side] = sides[side](state)
            seconds[side] = (time.perf_counter() - start) / amount(answers[side])
        for name in sides.keys() - {"ours"}:
            ratios[name].append(seconds[name] / seconds["ours"])
    return ratios, answers


def _ratio(peer: int, ours: int) -> float | None:
    return round(peer / ours, 2) if min(peer, ours) >= 1e6 else None


def peak(stage: ModuleType, side: str, *, size: dict, model: str = MODEL) -> int:
    """Bytes that one side adds to the resident memory of a fresh process, at its peak."""
    context = multiprocessing.get_context("spawn")  # a forked process would share our pages
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_added, stage.__name__, side, size, model).result()


def _added(module: str, side: str, size: dict, model: str) -> int:
    stage = importlib.import_module(module)
    run = stage.ours if side == "ours" else stage.PEERS[side][0]
    with computing_in(stage):
        return _added_by(run, stage, size, model)


def _added_by(run: Callable, stage: ModuleType, size: dict, model: str) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        run(stage.prepare(model, scratch=Path(scratch), **stage.SMALL))  # imports and thread pools are no one's work
    with tempfile.TemporaryDirectory() as scratch:  # another folder: mergekit remembers what it saw in the first
        state = stage.prepare(model, scratch=Path(scratch), **size)
        ctypes.CDLL(None).malloc_trim(0)  # what `prepare` freed would otherwise be used again, and not count
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = _status("VmRSS")
        run(state)
        return _status("VmHWM") - before


def _status(field: str) -> int:
    """A size of this process in bytes, from Linux's /proc."""
    return int(re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)[1]) * 1024
