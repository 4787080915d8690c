"""The whole embedded study: the wall time of its jobs as first committed, beside the committed records of today.

Read from the records, not run: `make reproduce` makes them. A job's wall time depends on the machine's other work too.
"""

import json
import subprocess

from sdd_utils.study import ROOT

NAME = "whole embedded study"
FIRST = "89eb74a"  # the commit of the first records
RECORDS = "results/embedded/records"


def _git(*command: str) -> str:
    return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def first_is_here() -> bool:
    """Whether this clone holds the commit of the first records; a shallow one does not."""
    return subprocess.run(["git", "cat-file", "-e", FIRST], cwd=ROOT, capture_output=True, check=False).returncode == 0


def job_seconds(revision: str) -> list[float]:
    """The wall time of every record of the study at a revision."""
    paths = _git("ls-tree", "-r", "--name-only", revision, RECORDS).split()
    return [json.loads(_git("show", f"{revision}:{path}"))["provenance"]["wall_s"] for path in paths]


def entries() -> list[dict]:
    first, now = job_seconds(FIRST), job_seconds("HEAD")
    ratio = round(sum(first) / sum(now), 2)
    note = f"{len(first)} and {len(now)} jobs, from records; the study has asked more documents since"
    entry = {"stage": NAME, "peer": "its own first records", "ratio_time": ratio, "ratio_memory": None, "equal": None}
    return [entry | {"n": 1, "spread": [ratio, ratio], "note": note}]
