"""Copy a finished run to where its results are kept: `python -m sdd_utils.publishing RUN OUT NAME…`."""

import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from sdd_utils import page
from sdd_utils.notebooks import without_uri_grammar


def publish(run: Path, *, out: Path, names: list[str]) -> None:
    """Copy a finished run's records and executed notebooks, as notebooks and as pages, to where they are kept.

    The study's own page, which links to them, is built last.

    Args:
        names: the records' file names; each has a notebook of the same name.
    """
    for name in ("records", "notebooks", "html"):
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).mkdir(parents=True)
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(_keep, run, out), names))
    page.build(out)


def _keep(run: Path, out: Path, name: str) -> None:
    """One record, and its executed notebook with its page, figures inside."""
    without_uri_grammar()
    import nbformat
    from nbconvert import HTMLExporter

    shutil.copy(run / "records" / name, out / "records")
    executed = (run / "notebooks" / name).with_suffix(".ipynb")
    kept = _without_log(nbformat.read(executed, as_version=4))
    nbformat.write(kept, out / "notebooks" / executed.name)
    html, _ = HTMLExporter().from_notebook_node(kept)
    (out / "html" / f"{executed.stem}.html").write_text(html, encoding="utf-8")


def _without_log(executed):
    """An executed notebook without progress bars, warnings and places on this machine; the run's own copy has them."""
    for name in ("input_path", "output_path"):
        executed.metadata.get("papermill", {}).pop(name, None)
    for cell in executed.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return executed


if __name__ == "__main__":
    publish(Path(sys.argv[1]), out=Path(sys.argv[2]), names=sys.argv[3:])
