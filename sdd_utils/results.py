"""Records: one JSON file per job that says what came out and how it was made; and the statistics over them.

A record is written last, under a temporary name, and renamed: if it is there, the job is finished.
"""

import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil

from sdd_utils.study import ROOT

_VERSIONS_OF = ("torch", "transformers", "peft", "trl", "lm-eval", "sentence-transformers", "datasets", "papermill")
_STARTED = psutil.Process().create_time()
_RSS_UNITS_PER_MB = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB


def write_record(path: Path, *, step: str, params: dict, metrics: dict) -> Path:
    """Write a finished job's record.

    Raises:
        ValueError: a NaN or an infinity anywhere: such a number means that the job went wrong.
    """
    record = {
        "step": step,
        "study": params["study"],
        "params": params,
        "metrics": metrics,
        "provenance": provenance(seed=params.get("seed")),
    }
    return write_json(path, record)


def write_json(path: Path, content: dict | list) -> Path:
    """Write JSON completely or not at all. Raises ValueError on a NaN or an infinity."""
    try:
        text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise ValueError(
            f"{path.name} would hold NaN or infinity: something went wrong before, nothing was written"
        ) from error
    return write_whole(path, _one_line_lists(text) + "\n")


def write_whole(path: Path, text: str) -> Path:
    """Write a text file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as scratch:
        scratch.write(text)
    os.chmod(scratch.name, 0o644)
    os.replace(scratch.name, path)
    return path


def _one_line_lists(text: str) -> str:
    """Lists of plain numbers take one line, not one line a number."""
    number = r"-?\d[\d.eE+-]*"
    return re.sub(rf"\[\s+{number}(?:,\s+{number})*\s+\]", lambda m: re.sub(r"\s+", " ", m.group()), text)


def provenance(*, seed: int | None) -> dict:
    """Commit, versions, device, precision, threads and cost of the running process."""
    import torch  # here, so that a missing record is told without waiting for it

    from sdd_utils import hardware

    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", ":!results")
    return {
        "commit": commit,
        "dirty": bool(changes),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _VERSIONS_OF},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
        "dtype": str(hardware.best_dtype()).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "started": datetime.fromtimestamp(_STARTED, UTC).isoformat(timespec="seconds"),
        "wall_s": round(time.time() - _STARTED, 1),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _RSS_UNITS_PER_MB),
    }


def device_of(provenance: dict) -> str:
    """Device and precision that a record was made on; records of before the precision was kept name the device."""
    return " in ".join(filter(None, [provenance["device"], provenance.get("dtype")]))


def cpu_name() -> str:
    """What the processor calls itself."""
    import torch

    return torch.cpu.get_capabilities().get("cpu_name", platform.machine())


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def read_record(path: Path, *, made_by: str) -> dict:
    """Read a record.

    Args:
        made_by: the notebook that makes it, for the message.

    Raises:
        FileNotFoundError: there is none yet; says which notebook and command make it.
        ValueError: it is not a record.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.name} does not exist yet: run notebooks/{made_by}.ipynb first, or 'make reproduce' for all"
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not complete JSON: delete it and run notebooks/{made_by}.ipynb") from error
    return record


def read_records(folder: Path) -> list[dict]:
    """Every record of a folder, in the order of their file names."""
    return list(records_by_file(folder).values())


def records_by_file(folder: Path, *, names: Iterable[str] = ()) -> dict[str, dict]:
    """The records of a folder by file name, in their order.

    Args:
        names: the file names to read; none is all.
    """
    paths = [folder / name for name in sorted(names)] or sorted(folder.glob("*.json"))
    return {path.name: read_record(path, made_by="08_results") for path in paths}


def of_step(records: Iterable[dict], step: str) -> list[dict]:
    """The records of one step."""
    return [record for record in records if record["step"] == step]


def averaged_tasks(scores: dict[str, dict]) -> list[str]:
    """The tasks that enter an average: those scored in 0..1 where more is better."""
    return [task for task, score in scores.items() if score["higher_is_better"]]


def average(scores: dict[str, dict]) -> float:
    """Mean score over tasks, 0..1."""
    return float(np.mean([scores[task]["value"] for task in averaged_tasks(scores)]))


def recovery(scores: dict[str, dict], original: dict[str, dict]) -> float:
    """Average score over the original's average score (arXiv 2410.09982); 1 is full recovery."""
    if average(original) == 0:
        raise ValueError("the original model scores 0 on every task: recovery needs tasks that it can solve")
    return average(scores) / average(original)


def interval(draws: np.ndarray, *, level: float = 0.95) -> list[float]:
    """Central interval of a bootstrap distribution."""
    return [float(q) for q in np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])]


def bootstrap_mean(values: np.ndarray, *, draws: int = 2000, seed: int = 0) -> dict:
    """Mean of a sample with its 95 % bootstrap interval."""
    values = np.asarray(values, dtype=float)
    counts = np.random.default_rng(seed).multinomial(len(values), [1 / len(values)] * len(values), size=draws)
    return {"mean": float(values.mean()), "interval": interval(counts @ values / len(values)), "n": len(values)}
