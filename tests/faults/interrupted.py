"""Killed, or asked to end, at random moments of every step: what comes out is what an undisturbed run gives."""

import os
import random
import signal
import subprocess
import time

import psutil

from sdd_utils.sweep import reproduce
from tests.faults import place as places
from tests.faults.place import Place
from tests.faults.series import Disturb, series

KILL_WAIT = 30  # seconds between a scheduler's SIGTERM and its SIGKILL; SLURM's default


def kills(tries: int) -> dict:
    """SIGKILL of the whole process group, on the real model; kernels have groups of their own and end by themselves."""
    return _interrupted("kills", places.REDUCED, tries, disturb=_kill)


def sigterm(tries: int) -> dict:
    """SIGTERM as schedulers send it: to the command, to its process group, or to every process of the job."""
    return _interrupted("sigterm", places.TINY, tries, disturb=_terminate)


def _interrupted(part: str, study: dict, tries: int, *, disturb: Disturb) -> dict:
    undisturbed = places.reference(study)
    place = places.make(undisturbed.copy.with_name(part), study)
    return series(place, undisturbed, part=part, tries=tries, disturb=disturb)


def _kill(process: subprocess.Popen, *_) -> bool:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def _terminate(process: subprocess.Popen, place: Place, draw: random.Random) -> bool:
    """Whether all had ended, with the status of a SIGTERM, before the scheduler would have killed it."""
    started, all_of_it = time.time(), places.family(process)
    how = draw.choice(["command", "group", "job"])
    if how == "command":
        process.terminate()
    elif how == "group":
        os.killpg(process.pid, signal.SIGTERM)
    else:
        for one in all_of_it:
            if one.is_running():
                one.terminate()
    try:
        process.wait(KILL_WAIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    _, left = psutil.wait_procs(all_of_it, timeout=max(1, KILL_WAIT - (time.time() - started)))
    return not left and process.wait() == reproduce.ENDED[signal.SIGTERM]
