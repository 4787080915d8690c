"""A place where a study runs and is disturbed: a copy of the repository, so that nothing here can harm the original.

What a fault must not change is read from the outside: the records, and everything finished that lies in the run.
"""

import atexit
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import yaml

from sdd_utils import ROOT
from sdd_utils.base.files import digest, file_sha256
from sdd_utils.base.records import NOTEBOOKS
from tests import tiny_models

WORK = ROOT / "work" / "faults"
STUDY = "study.yaml"  # in the copy, as is the run, under the same names everywhere
RUN = "work/study"
HERE = (STUDY, "--run", RUN)
TINY = {
    "base": "embedded", "model": "work/tiny-llama", "data_sets": {"gsm_symbolic": 12, "pydoc": 12},
    "calibration_rows": 4, "calibration_batch": 4, "block_sizes": [2], "finetune_block_sizes": [2],
    "rewrite_tokens": 24, "rewrite_attempts": 2, "seeds": [0], "generation_batch": 4,
    "lora_rank": 2, "max_length": 2000, "batch_size": 1, "epochs": 5,
    "tasks": {"facts": 40, "gsm_symbolic": 4, "gsm_symbolic_gold": 4, "pydoc_gold": 4},
    "answer_prompts": 4, "answer_tokens": 12,
}  # fmt: skip
REDUCED = {"base": "ci"}  # the real model, at a size of minutes
_STARTED = re.compile(r"^Job (\d+): (\d\d\w?) (.+)$", re.MULTILINE)
_ENDED = re.compile(r"^Finished jobid: (\d+)|^Error in rule \w+:\n.*\n +jobid: (\d+)", re.MULTILINE)
STEPS = {notebook.partition("_")[0]: step for step, notebook in NOTEBOOKS.items()}


class Place(NamedTuple):
    """A copy of the repository with a study in it, and the file that takes what is said there."""

    copy: Path
    log: Path

    @property
    def run(self) -> Path:
        return self.copy / RUN


def code() -> list[Path]:
    """Every file of the repository that git knows, but results."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in listed.split("\0") if name and not name.startswith("results/")]


@functools.cache
def code_digest() -> str:
    """Of all of it: what was tried on other code says nothing about this."""
    return digest([[str(path), file_sha256(ROOT / path)] for path in code() if (ROOT / path).is_file()])


def make(folder: Path, study: dict) -> Place:
    """Fill a folder with the copy, if that is not done yet; the log lies beside it, where no full disk reaches it."""
    place = Place(folder, folder.with_name(f"{folder.name}.log"))
    if not (folder / STUDY).is_file():
        for path in code():
            (folder / path.parent).mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, folder / path)
        (folder / "work").mkdir(exist_ok=True)
        (ROOT / "work" / "models").mkdir(parents=True, exist_ok=True)
        links = {"work/models": ROOT / "work" / "models", "studies/ci.yaml": folder / ".ci" / "embedded-reduced.yaml"}
        for name, to in links.items():
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(to)
        tiny_models.write("llama", folder / "work" / "tiny-llama")
        (folder / STUDY).write_text(yaml.safe_dump(study))
    return place


def start(place: Place, *, module: str = "sweep.reproduce", arguments: tuple = HERE, **environment) -> subprocess.Popen:
    """Start a command of the project there, in a session of its own; what it says is added to the log."""
    variables = os.environ | {"PYTHONPATH": str(place.copy), "HF_HUB_OFFLINE": "1"} | environment
    with place.log.open("a") as log:
        log.write(f"\n--- {module} {' '.join(arguments)}\n")
        log.flush()
        streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True}
        command = [sys.executable, "-m", f"sdd_utils.{module}", *arguments]
        process = subprocess.Popen(command, cwd=place.copy, env=variables, **streams)
    atexit.register(_end, process)  # where this campaign is interrupted
    return process


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.terminate()
        process.wait()


def said(place: Place) -> str:
    """What the last command said."""
    return place.log.read_text(errors="replace").rpartition("\n--- ")[2]


def running(place: Place) -> list[tuple[str, str]]:
    """(number, record) of the jobs that the last command has started and not ended, in its own words."""
    text = said(place)
    ended = {first or second for first, second in _ENDED.findall(text)}
    jobs = [(number, words) for id_, number, words in _STARTED.findall(text) if id_ not in ended]
    named = {"01": "similarity", "09": "results"}
    return [(number, named.get(number) or f"{STEPS[number]}-{words.split()[-1]}") for number, words in jobs]


def reach(process: subprocess.Popen, place: Place, number: str, *, delay: float, tick=lambda: None) -> bool:
    """Wait until a job of this step or a later one has run for so many seconds; False if the command ended before."""
    since = None
    while process.poll() is None:
        time.sleep(0.1)
        tick()
        reached = any(of >= number for of, _ in running(place))
        since = since or (reached and time.time())
        if since and time.time() - since > delay:
            return True
    return False


def finish(place: Place, *, tick=lambda: None) -> int:
    """Run the study to its end; returns the exit status."""
    process = start(place)
    while process.poll() is None:
        time.sleep(0.2)
        tick()
    return process.returncode


def reference(study: dict) -> Place:
    """The same study, undisturbed; it is run once and goes on where it was interrupted."""
    place = make(WORK / code_digest()[:8] / f"reference-{digest(study)[:8]}", study)
    if status := finish(place):
        raise RuntimeError(f"the undisturbed study ended with status {status}: read {place.log}")
    return place


def seconds(place: Place) -> dict[str, float]:
    """By number of a step, how long its longest job took, by its record."""
    taken: dict[str, float] = {}
    for record in records(place).values():
        number = NOTEBOOKS[record["step"]].partition("_")[0]
        taken[number] = max(taken.get(number, 0), record["provenance"]["wall_s"])
    return taken


def records(place: Place, *, run: str = RUN) -> dict[str, dict]:
    """By name, the records that are there."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((place.copy / run / "records").glob("*.json"))}


def differing(place: Place, other: Place) -> set[str]:
    """Names of the records that are not the same in both, but for how they were made."""
    own, others = (
        {name: json.dumps(record | {"provenance": None}) for name, record in records(where).items()}
        for where in (place, other)
    )
    return {name for name in own.keys() | others.keys() if own.get(name) != others.get(name)}


def finished(place: Place) -> dict[str, int]:
    """What is finished in the run, and how many rows it is: generated texts, trained steps, scored documents."""
    rows = {f"{name}:{digest(row)}": _count(row) for name, row in _kept(place)}
    for path in (place.run / "adapters").glob("*/training.json"):
        rows[f"{path.parent.name}:{path.stat().st_mtime_ns}"] = json.loads(path.read_text())["report"]["steps"]
    return rows


def made_twice(place: Place) -> int:
    """Rows of the growing files that stand there more than once."""
    rows = {(name, row["id"], row["key"]): _count(row) for name, row in _kept(place)}
    return sum(_count(row) for _, row in _kept(place)) - sum(rows.values())


def _kept(place: Place) -> Iterator[tuple[str, dict]]:
    """The rows of every file that only grows, by the name of the file; half a line at its end is none."""
    for path in (path for room in ("generated", "scores") for path in (place.run / room).glob("*.jsonl")):
        yield from ((path.stem, json.loads(line)) for line in path.read_bytes().split(b"\n")[:-1])


def _count(row: dict) -> int:
    return row["score"]["n"] if "score" in row else 1


def steps_lost(place: Place, newest: dict[str, tuple[int, int]]) -> int:
    """Trained steps that were lost since the last look: a checkpoint is written of steps that one was there of before.

    Args:
        newest: by training, the steps and the time of its newest checkpoint; this function keeps it.
    """
    lost = 0
    for path in (place.run / "adapters").glob(".*.checkpoints-*/complete-*"):
        with suppress(FileNotFoundError):  # it is just being removed, for there is a newer one
            seen = (int(path.name.partition("-")[2]), (path / "trainer_state.json").stat().st_mtime_ns)
            before = newest.get(path.parent.name, (0, 0))
            lost += before[0] if seen[0] <= before[0] and seen != before else 0
            newest[path.parent.name] = max(before, seen)
    return lost


def family(process: subprocess.Popen) -> list[psutil.Process]:
    """A command and all that it started."""
    try:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
