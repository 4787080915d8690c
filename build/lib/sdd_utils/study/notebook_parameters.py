"""A notebook's parameters: what its first cell declares, and that nothing else was given."""

import ast
import json

from sdd_utils import ROOT
from sdd_utils.study.rules import check_keys, check_type
from sdd_utils.study.schema import Study

NOTEBOOKS = ROOT / "notebooks"


def defaults_of(notebook: str) -> dict:
    """Names and values of the cell tagged `parameters` of `notebooks/<notebook>.ipynb`."""
    cells = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text())["cells"]
    source = next("".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    return _assignments(source)


def _assignments(source: str) -> dict:
    return {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(source).body}


def parameters_of(study: Study, *, notebook: str) -> dict:
    """The study's values for those parameters of a notebook that are study keys."""
    return {name: getattr(study, name) for name in defaults_of(notebook) if name in Study.model_fields}


def check_parameters(notebook: str, given: dict) -> None:
    """Raise ValueError, in one sentence, unless these are a notebook's parameters, all of them, each of its type."""
    defaults = defaults_of(notebook)
    check_keys(given=given, allowed=list(defaults), where=f"notebook {notebook}")
    for name, default in defaults.items():
        check_type(name=name, value=given[name], kind=type(default))


def checked_parameters(notebook: str, namespace: dict) -> dict:
    """Collect a running notebook's parameters and refuse the ones it does not declare.

    papermill only warns of a misspelt parameter and assigns it all the same, in a cell of its own that starts with
    "# Parameters": whatever such a cell assigned counts as given.

    Args:
        notebook: name without folder and suffix, such as `02_pruning`.
        namespace: the notebook's `globals()`.

    Raises:
        ValueError: an unknown parameter, or one of another type than its default.
    """
    injected = [cell for cell in namespace.get("In", []) if cell.startswith("# Parameters")]
    names = [*defaults_of(notebook), *(name for cell in injected for name in _assignments(cell))]
    given = {name: namespace[name] for name in names if name in namespace}
    check_parameters(notebook, given)
    return given
