"""The whole embedded study as it was first recorded and as it is now, run one after the other on this machine.

Only `make bench STAGES=study` runs this, as it takes half an hour. Both start from nothing, the conversion of the model
included, in clones of their own and with this environment's packages. The study has asked more since: more documents of
two tasks, fidelity, likelihoods of the responses, sampled answers.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import compare
from sdd_utils import ROOT

NAME = "whole embedded study"
OWN_MODEL = compare.MODEL
FIRST = "89eb74a"  # the commit of the first records


def first_is_here() -> bool:
    """Whether this clone holds the commit of the first records; a shallow one does not."""
    return subprocess.run(["git", "cat-file", "-e", FIRST], cwd=ROOT, capture_output=True, check=False).returncode == 0


def seconds(revision: str) -> float:
    """How long the study takes at a revision.

    Raises:
        subprocess.CalledProcessError: it failed; what it said stands on the terminal.
    """
    with tempfile.TemporaryDirectory() as scratch:
        clone = Path(scratch) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        subprocess.run(["git", "checkout", "--quiet", revision], cwd=clone, check=True)
        own = os.environ | {"PYTHONPATH": str(clone)}  # before this environment's own copy of the package
        start = time.perf_counter()
        moved = (clone / "sdd_utils" / "sweep" / "reproduce.py").is_file()  # it lay elsewhere in the first state
        command = [sys.executable, "-m", "sdd_utils.sweep.reproduce" if moved else "sdd_utils.reproduce", "embedded"]
        subprocess.run(command, cwd=clone, env=own, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - start


def missing() -> str | None:
    return None if first_is_here() else "it needs the commit of its first records, run git fetch --unshallow"


def entries() -> list[dict]:
    """The study's entry for `results.json`, see `compare.compare`."""
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    ratio = round(seconds(FIRST) / seconds("HEAD"), 3)
    note = f"commit {head.stdout.strip()}, wall time from nothing to the tables; the study has asked more since"
    entry = {"stage": NAME, "model": compare.MODEL, "peer": f"its own first state, commit {FIRST}"}
    entry |= {"ratio_time": ratio, "ratio_memory": None, "roofline_share": None, "equal": None, "n": 1}
    return [entry | {"spread": [ratio, ratio], "peak": None, "note": note}]
