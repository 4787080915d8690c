"""Copy a finished run to where its results are kept: `python -m sdd_utils.sweep.publish RUN OUT NAME…`."""

import shutil
import sys
from pathlib import Path

import nbformat

from sdd_utils.base import disk
from sdd_utils.base.files import whole_folder
from sdd_utils.report.redraw import redraw


def publish(run: Path, *, out: Path, names: list[str]) -> None:
    """Copy a finished run's records and executed notebooks, then draw what follows from the records.

    Args:
        names: the stems of the records; each has a notebook of the same name.
    """
    if out.resolve() == run.resolve():
        raise ValueError(f"{out} is the run itself, whose folders publishing would empty: name another folder")
    with whole_folder(out / "records") as records, whole_folder(out / "notebooks") as notebooks:
        for name in names:
            shutil.copy(run / "records" / f"{name}.json", records)
            _keep_notebook(run / "notebooks" / f"{name}.ipynb", notebooks)
    for folder in ("figures", "tables"):
        shutil.rmtree(out / folder, ignore_errors=True)
        (out / folder).mkdir(parents=True)
    redraw(out)


def _keep_notebook(executed: Path, folder: Path) -> None:
    """A notebook without progress bars, warnings and places on this machine; the run's own copy has them."""
    notebook = nbformat.read(executed, as_version=4)
    for name in ("input_path", "output_path"):
        notebook.metadata.get("papermill", {}).pop(name, None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, folder / executed.name)


def main(run: str, out: str, *names: str) -> None:
    """Publish as the command line says; one sentence where the disk is full."""
    try:
        with disk.told():
            publish(Path(run), out=Path(out), names=[*names])
    except OSError as error:
        raise SystemExit(f"error: {error}") from (None if disk.is_full(error) else error)


if __name__ == "__main__":
    main(*sys.argv[1:])
