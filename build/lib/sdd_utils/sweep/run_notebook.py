"""Run a notebook through papermill the way the sweep does: parameters checked, output kept even when it fails.

    python -m sdd_utils.sweep.run_notebook NOTEBOOK OUT PARAMETERS THREADS     # a job of the sweep; parameters as JSON

Every process of the sweep imports this module, so what takes long to import is imported where it is needed.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from sdd_utils.base import disk
from sdd_utils.base.files import write_json
from sdd_utils.study.notebook_parameters import NOTEBOOKS, check_parameters, defaults_of

# glibc gives large tensors back to the system when they are freed, and each new one costs page faults: with this, one
# thread trains in 0.9 of the time.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**62)}


def execute_notebook(notebook: str, *, out: Path, parameters: dict, threads: int = 1) -> None:
    """Execute `notebooks/<notebook>.ipynb` with these parameters.

    The executed notebook is a log, written even on failure; the job's output is the record that its last cell
    writes. The kernel is this very Python, whatever a user's own kernel `python3` starts. Each kernel computes with
    `threads` threads and has its own IPYTHONDIR, as parallel kernels would fight over IPython's history. It is spoken
    to through sockets in a folder that only this user can read: TCP ports are found free, closed and bound again by
    the kernel, so two jobs that start at once can be given the same one. When the last cell is done, the kernel is
    ended at once: all it made is written, and tidying up takes it seconds.

    Raises:
        ValueError: a parameter that the notebook does not declare (papermill itself only warns).
    """
    check_parameters(notebook, defaults_of(notebook) | parameters)

    import papermill
    from traitlets.config import Config

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir="/tmp") as scratch:  # a socket's path has room for about 100 characters
        os.environ |= {"IPYTHONDIR": scratch, "JUPYTER_RUNTIME_DIR": scratch, "JUPYTER_PATH": _kernel_of_ours(scratch)}
        os.environ |= {"OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"} | KEEP_MEMORY
        papermill.execute_notebook(
            _literal(NOTEBOOKS / f"{notebook}.ipynb"),
            _literal(out),
            parameters=parameters,
            kernel_name="python3",
            progress_bar=False,
            shutdown_kernel="immediate",
            config=Config(KernelManager={"transport": "ipc", "ip": f"{scratch}/kernel"}),
        )


def _literal(path: Path) -> str:
    """A path in which papermill finds no parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _kernel_of_ours(folder: str) -> str:
    """Describe a kernel `python3` that is this Python, in a folder that Jupyter searches before all others."""
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel = {"argv": command, "display_name": "Python 3 (ipykernel)", "language": "python"}
    write_json(Path(folder) / "kernels" / "python3" / "kernel.json", kernel)
    return folder


def kept_notebook(executed: Path) -> str:
    """An executed notebook's text for git: without progress bars, warnings and places on this machine."""
    import nbformat

    notebook = nbformat.read(executed, as_version=4)
    for name in ("input_path", "output_path"):
        notebook.metadata.get("papermill", {}).pop(name, None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return nbformat.writes(notebook) + "\n"


def main(notebook: str, out: str, parameters: str, threads: str) -> None:
    """Execute a job; where it fails, the process ends with what papermill says, or with the sentence of a full disk."""
    from papermill.exceptions import PapermillExecutionError

    try:
        execute_notebook(notebook, out=Path(out), parameters=json.loads(parameters), threads=int(threads))
    except Exception as error:
        if disk.is_full(error):  # met by the notebook, or by papermill, which writes what it executed
            raise SystemExit(f"error: {notebook}: {disk.FULL}") from None
        if isinstance(error, PapermillExecutionError):
            raise SystemExit(str(error)) from None
        raise


if __name__ == "__main__":
    main(*sys.argv[1:])
