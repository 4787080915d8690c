"""Notebooks keep their contract, and a wrong parameter is one sentence before anything runs."""

import nbformat
import pytest

from sdd_utils.base.records import NOTEBOOKS
from sdd_utils.study import notebook_parameters
from sdd_utils.study.schema import load_study
from sdd_utils.sweep import run_notebook

NAMES = sorted(path.stem for path in notebook_parameters.NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("name", sorted(NOTEBOOKS.values()))
def test_notebook_defaults_are_the_embedded_study(name):
    values, defaults = (
        notebook_parameters.parameters_of(load_study("embedded"), notebook=name),
        notebook_parameters.defaults_of(name),
    )
    assert {key: defaults[key] for key in values} == values
    assert defaults["study"] == "embedded"


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_keep_their_contract(name):
    cells = nbformat.read(notebook_parameters.NOTEBOOKS / f"{name}.ipynb", as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert "parameters" in code[0].metadata.tags
    assert all("#" in line for line in code[0].source.splitlines())  # each parameter has its comment
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert not any("def " in cell.source or "snakemake" in cell.source for cell in code)
    assert sorted(len(cell.source.splitlines()) for cell in code)[len(code) // 2] <= 10
    kinds = [cell.cell_type for cell in cells]
    assert all(
        kinds[i - 1] == "markdown" and kinds[i + 1] == "markdown" for i, k in enumerate(kinds[:-1]) if k == "code"
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"blok_size": 4}, "unknown key 'blok_size': did you mean 'block_size'"),
        ({"block_size": "four"}, "must be a int"),
    ],
)
def test_misspelt_notebook_parameters_are_errors_before_anything_runs(tmp_path, given, said):
    with pytest.raises(ValueError, match=said):
        run_notebook.execute_notebook("02_pruning", out=tmp_path / "out.ipynb", parameters=given)
    assert not (tmp_path / "out.ipynb").exists()


def test_plain_papermill_is_told_as_well(tmp_path):
    """papermill itself injects a misspelt parameter without complaint, so the notebook has to."""
    namespace = notebook_parameters.defaults_of("02_pruning") | {
        "blok_size": 4,
        "In": ["", "# Parameters\nblok_size = 4\n"],
    }
    with pytest.raises(ValueError, match="unknown key 'blok_size'"):
        notebook_parameters.checked_parameters("02_pruning", namespace)
    harmless = notebook_parameters.defaults_of("02_pruning") | {
        "start": 3,
        "In": ["start = 3"],
    }  # a cell run twice by hand
    assert "start" not in notebook_parameters.checked_parameters("02_pruning", harmless)
