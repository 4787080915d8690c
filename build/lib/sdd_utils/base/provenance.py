"""How a number was made: commit, versions, device, precision, threads and cost of the running process."""

import platform
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version

import psutil

from sdd_utils import ROOT

_VERSIONS_OF = ("torch", "transformers", "peft", "trl", "lm-eval", "sentence-transformers", "datasets", "papermill")
_STARTED = psutil.Process().create_time()
_RSS_UNITS_PER_MB = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB


def process_provenance(*, seed: int | None) -> dict:
    """Commit, versions, device, precision, threads and cost of the running process."""
    import torch  # here, so that a missing record is reported without waiting for it

    from sdd_utils.base import precision

    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", ":!results")
    return {
        "commit": commit,
        "dirty": bool(changes),
        "versions": versions(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
        "dtype": precision.dtype_name(),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "started": datetime.fromtimestamp(_STARTED, UTC).isoformat(timespec="seconds"),
        "wall_s": round(time.time() - _STARTED, 1),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _RSS_UNITS_PER_MB),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _VERSIONS_OF}


def cpu_name() -> str:
    """What the processor calls itself."""
    import torch

    return torch.cpu.get_capabilities().get("cpu_name", platform.machine())


def _git(*arguments: str) -> str:
    process = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return process.stdout.strip() if process.returncode == 0 else ""
