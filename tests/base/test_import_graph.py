"""What code a number depends on is read from the sources, and is what Python really imports."""

import json
import subprocess
import sys

import pytest

from sdd_utils import ROOT
from sdd_utils.base import import_graph

ALL = ("base", "data", "tasks", "study", "models", "engine", "steps", "analysis", "report", "sweep")


@pytest.mark.parametrize(
    "name", ["sdd_utils.steps.similarity", "sdd_utils.analysis.verdicts", "sdd_utils.models.store"]
)
def test_modules_behind_are_at_least_those_that_python_loads(name):
    """Imports within functions come on top: they, too, make numbers."""
    code = f"import sys, json, {name}; print(json.dumps([m for m in sys.modules if m.startswith('sdd_utils.')]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {module for module in json.loads(done.stdout) if (ROOT.joinpath(*module.split("."))).is_file()}
    assert loaded <= import_graph.modules_behind([name], rooms=ALL)


def test_rooms_that_make_no_numbers_are_left_out():
    behind = import_graph.modules_behind(["sdd_utils.steps.evaluation"])
    assert {"sdd_utils.engine.lm_eval_model", "sdd_utils.tasks.builders", "sdd_utils.base.precision"} <= behind
    assert not any(name.startswith(("sdd_utils.base.files", "sdd_utils.report", "sdd_utils.sweep")) for name in behind)
    beside = {path.name for path in import_graph.files_behind(["sdd_utils.steps.evaluation"])}
    assert {"facts.yaml", "pydoc_names.txt", "facts.py"} <= beside


def test_a_notebook_names_its_modules():
    cells = ["from sdd_utils.steps import pruning, similarity", "from sdd_utils.study.paths import Run\nx = 1"]
    names = import_graph.modules_of_notebook(cells)
    assert names == {"sdd_utils.steps.pruning", "sdd_utils.steps.similarity", "sdd_utils.study.paths"}


def test_comments_and_docstrings_do_not_change_the_digest_of_code(tmp_path, monkeypatch):
    path = tmp_path / "module.py"
    monkeypatch.setattr(import_graph, "files_behind", lambda *_, **__: [path])
    digests = []
    for text in ('"""A."""\nx = 1\n', '"""B, longer."""\nx = 1  # one\n', "x = 2\n", 'def f():\n    """Doc."""\n'):
        path.write_text(text)
        digests.append(import_graph.code_digest(["module"]))
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


@pytest.mark.parametrize(
    ("module", "spared"),
    [
        ("sdd_utils.models.store", ("sdd_utils.study.schema", "lm_eval")),
        ("sdd_utils.engine.generation", ("sdd_utils.study.schema", "lm_eval")),
        ("sdd_utils.report.redraw", ("torch", "transformers", "lm_eval")),
        ("sdd_utils.study.jobs", ("torch", "transformers", "lm_eval")),
    ],
)
def test_what_is_not_needed_is_not_loaded(module, spared):
    code = f"import sys, {module}; print([name for name in {spared} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
