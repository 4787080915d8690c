"""The package's own import graph: which files of code a notebook, or a trained adapter, depends on.

It is read from the sources, so no list of modules is kept by hand.
"""

import ast
import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import grimp

from sdd_utils import PACKAGE, ROOT

# The rooms whose code makes numbers. Of `base` only precision and the measures of choices count.
NUMBERS = ("base.precision", "base.choices", "data", "tasks", "models", "engine", "steps", "analysis")


@functools.cache
def _graph() -> grimp.ImportGraph:
    return grimp.build_graph("sdd_utils", cache_dir=None)


def modules_behind(names: Iterable[str], *, rooms: tuple[str, ...] = NUMBERS) -> set[str]:
    """The modules of these rooms that the named modules are, or import from one another; all names are dotted.

    What a module of another room imports does not count: a figure's looks make no number. A package stands for all that
    is in it: lm-eval loads the builders of `tasks` by their file.
    """
    graph, left, behind = _graph(), list(names), set()
    while left:
        name = left.pop()
        if name in behind or name not in graph.modules or not any(_lies_in(name, room) for room in rooms):
            continue
        behind.add(name)
        left += [*graph.find_modules_directly_imported_by(name), *graph.find_descendants(name)]
    return behind


def _lies_in(name: str, room: str) -> bool:
    return f"{name}.".startswith(f"sdd_utils.{room}.")


def files_behind(names: Iterable[str], *, rooms: tuple[str, ...] = NUMBERS) -> list[Path]:
    """The files of `modules_behind`, and what lies beside them that is no code: names, task files."""
    code = {path for path in map(_file_of, modules_behind(names, rooms=rooms)) if path.is_file()}
    folders = {path.parent for path in code} & {PACKAGE / room for room in ("data", "tasks")}
    beside = {path for folder in folders for path in folder.iterdir() if path.suffix in (".yaml", ".txt")}
    return sorted(code | beside)


def _file_of(name: str) -> Path:
    """Where a module's code lies, if it is no package."""
    return PACKAGE.parent.joinpath(*name.split(".")).with_suffix(".py")


def modules_of_notebook(cells: list[str]) -> set[str]:
    """The dotted names of this package that the code cells of a notebook import."""
    names = set()
    for node in ast.walk(ast.parse("\n".join(cells))):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("sdd_utils."):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    # `from sdd_utils.steps import pruning` names the room as well, which is not all that is in it.
    return {name for name in names if _file_of(name).is_file()}


def code_digest(names: Iterable[str], *, rooms: tuple[str, ...] = NUMBERS) -> str:
    """Digest (hex) of what the files behind these modules do: comments and docstrings of code may change."""
    texts = {path: path.read_text("utf-8") for path in files_behind(names, rooms=rooms)}
    does = [_without_docstrings(ast.parse(text)) if path.suffix == ".py" else text for path, text in texts.items()]
    return hashlib.sha256("\n".join(does).encode()).hexdigest()


@functools.cache
def notebook_digest(name: str) -> str:
    """Digest (hex) of what a notebook's code cells and the code behind them do; see `code_digest`.

    Args:
        name: the file's name without its ending.
    """
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text("utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    own = ast.dump(ast.parse("\n".join(cells)))
    return hashlib.sha256((own + code_digest(modules_of_notebook(cells))).encode()).hexdigest()


def _without_docstrings(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            body.pop(0)
    return ast.dump(tree)
