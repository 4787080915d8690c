"""Our way and a peer's to do the same work: timed side by side in one process, peak memory in another.

A stage is a module with

    NAME                                          what the table calls it
    FULL, SMALL                                   sizes: what `make bench` measures, and what tests and warm-up take
    LARGE (optional)                              what of FULL to change for a model of `LARGE_MODEL` parameters or more
    MEMORY (optional)                             what of FULL to change for memory, where less work has the same peak;
                                                  None: memory is not compared, as a peer works in a process of its own
    prepare(model, *, scratch, **size) -> state   everything that is not measured
    ours(state) -> answer
    PEERS                                         {peer: (peer(state) -> answer, repetitions)}
    same(state, ours, peer) -> (bool | None, note)  whether the answers agree; None where the peer is a `LIMIT`
    amount(answer) -> int (optional)              what times are divided by, where a slow peer does a part of the work
    least_seconds(model, state, answer) -> float (optional)  of the useful work at the machine's rates, see `roofline`
    DTYPE (optional)                              both sides compute in this, not in what the hardware does best
    OWN_MODEL (optional)                          what the table calls the model that the stage makes itself
    missing() -> str | None (optional)            why the stage cannot be run here, with the mend
"""

import ctypes
import gc
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
LIMIT = "(the limit)"  # how a peer's name ends that is no way to do the work, but what bounds it


def compare(stage: ModuleType, *, size: dict, model: str = MODEL, memory: bool = True) -> list[dict]:
    """One entry per peer: {stage, model, peer, ratio_time, ratio_memory, roofline_share, equal, n, spread, peak, note}.

    Ratios are peer / ours. `ratio_time` is the median over n turns and `spread` the smallest and largest of them.
    `roofline_share` is the least time of our useful work over our time, None where the stage names none. `ratio_memory`
    compares what the work adds to the process's resident memory at its peak; None where a side adds less than a
    megabyte, or the peer takes so long that it has one turn. `peak` is all that our process holds then, in bytes.
    """
    with tempfile.TemporaryDirectory() as scratch, computing_in(stage):
        dtype = precision.dtype_name()
        state = stage.prepare(model, scratch=Path(scratch), **size)
        ratios, answers, seconds = _turns(stage, state)
        same = {name: stage.same(state, answers["ours"], answers[name]) for name in stage.PEERS}
        share = _share(stage, model, state, answers["ours"], seconds)
    del state
    give_memory_back()  # so that there is room for the processes in which peaks are read
    changed = getattr(stage, "MEMORY", {})
    found = _peaks(stage, size=size | changed, model=model) if memory and changed is not None else {}
    added, whole = ({side: peak[i] for side, peak in found.items()} for i in (0, 1))
    return [
        {
            "stage": stage.NAME,
            "model": getattr(stage, "OWN_MODEL", model_name(model)),
            "peer": name,
            "ratio_time": round(statistics.median(ratios[name]), 3),
            "ratio_memory": _ratio(added.get(name, 0), added.get("ours", 0)),
            "roofline_share": share,
            "equal": same[name][0],
            "n": len(ratios[name]),
            "spread": [round(min(ratios[name]), 3), round(max(ratios[name]), 3)],
            "peak": whole.get("ours"),
            "note": ", ".join(filter(None, [dtype, same[name][1]])),
        }
        for name in stage.PEERS
    ]


def model_name(model: str) -> str:
    """What the table calls a model: the last part of a hub id, folder or GGUF file, without its revision."""
    return re.split(r"[/:]", model.rstrip("/"))[-1].split("@")[0].removesuffix(".gguf")


def computing_in(stage: ModuleType):
    """A context in which models compute in the stage's `DTYPE`, if it names one."""
    dtype = getattr(stage, "DTYPE", None)
    return mock.patch.dict(os.environ, SDD_DTYPE=dtype) if dtype else nullcontext()


def _turns(stage: ModuleType, state) -> tuple[dict[str, list[float]], dict, float]:
    """Time ratios by peer, each side's last answer, and the median of our seconds.

    Ours runs once beside each peer, before or after it by turns, as the machine may slow down meanwhile.
    """
    amount = getattr(stage, "amount", lambda answer: 1)
    ratios, answers, own = {name: [] for name in stage.PEERS}, {}, []

    def seconds(side: str) -> float:
        run, start = stage.ours if side == "ours" else stage.PEERS[side][0], time.perf_counter()
        answers[side] = run(state)
        return time.perf_counter() - start

    for turn in range(max(repetitions for _, repetitions in stage.PEERS.values())):
        for name in [name for name, (_, repetitions) in stage.PEERS.items() if turn < repetitions]:
            taken = {side: seconds(side) for side in ((name, "ours") if turn % 2 else ("ours", name))}
            peer, ours = (taken[side] / amount(answers[side]) for side in (name, "ours"))
            ratios[name].append(peer / ours)
            own.append(taken["ours"])
    return ratios, answers, statistics.median(own)


def _share(stage: ModuleType, model: str, state, answer, seconds: float) -> float | None:
    least = getattr(stage, "least_seconds", None)
    return round(least(model, state, answer) / seconds, 3) if least else None


def _ratio(peer: int, ours: int) -> float | None:
    return round(peer / ours, 2) if min(peer, ours) >= 1e6 else None


def _peaks(stage: ModuleType, *, size: dict, model: str) -> dict[str, tuple[int, int]]:
    """`peaks` of our side, and of the peers that are run more than once: a slower one is not run again for this."""
    repeated = [name for name, (_, repetitions) in stage.PEERS.items() if repetitions > 1 and not name.endswith(LIMIT)]
    return peaks(stage, ["ours", *repeated], size=size, model=model)


def peaks(stage: ModuleType, sides: list[str], *, size: dict, model: str = MODEL) -> dict[str, tuple[int, int]]:
    """Bytes that each side adds to the resident memory of a fresh process at its peak, and all that it holds then.

    The sides are run one after the other; what one has freed is handed back before the next begins.
    """
    context = multiprocessing.get_context("spawn")  # a forked process would share our pages
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return {side: pool.submit(_added, stage.__name__, side, size, model).result() for side in sides}


def _added(module: str, side: str, size: dict, model: str) -> tuple[int, int]:
    stage = importlib.import_module(module)
    run = stage.ours if side == "ours" else stage.PEERS[side][0]
    with computing_in(stage):
        return _added_by(run, stage, size, model)


def _added_by(run: Callable, stage: ModuleType, size: dict, model: str) -> tuple[int, int]:
    with tempfile.TemporaryDirectory() as scratch:
        run(stage.prepare(model, scratch=Path(scratch), **stage.SMALL))  # imports and thread pools are no one's work
    with tempfile.TemporaryDirectory() as scratch:  # another folder: mergekit remembers what it saw in the first
        state = stage.prepare(model, scratch=Path(scratch), **size)
        give_memory_back()  # what `prepare` freed would otherwise be used again, and not count
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = _status("VmRSS")
        run(state)
        return _status("VmHWM") - before, _status("VmHWM")


def give_memory_back() -> None:
    """Hand what this process has freed back to the system: glibc keeps it, as the Makefile asks."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _status(field: str) -> int:
    """A size of this process in bytes, from Linux's /proc."""
    return int(re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)[1]) * 1024
