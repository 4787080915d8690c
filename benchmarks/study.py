"""The whole embedded study as it was first recorded and as it is now, run one after the other on this machine.

`make bench STAGES=study` measures both. `make bench` runs today's alone where the first state's time was recorded on
the same kind of machine: that code does not change, and takes a dozen minutes. Both start from nothing, the conversion
of the model included, in clones of their own and with this environment's packages. The study has asked more since: more
documents of two tasks, fidelity, likelihoods of the responses, sampled answers.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from sdd_utils import ROOT

NAME = "whole embedded study"
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


def machine() -> str:
    """Processor model, cache and cores, by which a recorded time is known to be of this kind of machine."""
    names = ("vendor_id", "cpu family", "model", "model name", "stepping", "cache size")
    text = Path("/proc/cpuinfo").read_text()
    found = (re.search(rf"^{name}\s*: (.*)$", text, re.M) for name in names)
    return ", ".join([*(match[1] for match in found if match), f"{os.cpu_count()} cores"])


def recorded(entries: list[dict]) -> dict | None:
    """The entry among former ones that holds the first state's time on this kind of machine."""
    return next((entry for entry in entries if entry.get("first_machine") == machine()), None)


def entries(former: dict | None = None) -> list[dict]:
    """The study's entry for `results.json`, see `compare.compare`; it keeps the first state's time, day and machine.

    Args:
        former: an entry whose time of the first state holds; None measures it.
    """
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    first = former or {
        "first_seconds": round(seconds(FIRST)),
        "first_on": str(date.today()),
        "first_machine": machine(),
    }
    ratio = round(first["first_seconds"] / seconds("HEAD"), 3)
    note = f"commit {head.stdout.strip()}, wall time from nothing to the tables; first state measured on "
    note += f"{first['first_on']}; the study has asked more since"
    entry = {"stage": NAME, "peer": f"its own first state, commit {FIRST}", "ratio_time": ratio, "ratio_memory": None}
    entry |= {"equal": None, "n": 1, "spread": [ratio, ratio], "note": note}
    return [entry | {name: first[name] for name in ("first_seconds", "first_on", "first_machine")}]
