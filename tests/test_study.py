"""Studies and notebook parameters: a wrong one is a sentence that names value, allowed values and mend."""

import subprocess
import sys
import tomllib

import nbformat
import pytest
import yaml

from sdd_utils import notebooks, parameters, study

NAMES = sorted(path.stem for path in parameters.NOTEBOOKS.glob("*.ipynb"))


RANK8 = {"rank": 8, "alpha": 16, "targets": "q_proj,v_proj"}
SMALL = {"lora": [RANK8], "block_sizes": [4], "data_sets": ["pydoc"]}


def write(tmp_path, **changes):
    values = yaml.safe_load((study.STUDIES / "embedded.yaml").read_text()) | changes
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora_rnk": 8}, "unknown key 'lora_rnk': did you mean 'lora_rank'"),
        ({"lora_rank": None}, "missing key"),
        ({"epochs": "many"}, "study key 'epochs' is 'many': it must be a int"),
        ({"epochs": 0}, "'epochs' is 0: it must be a whole number of at least 1"),
        ({"data_sets": {"pydoc": "many"}}, "has 'many' for pydoc: it must be a whole number of at least 0"),
        ({"data_sets": ["pydoc"]}, "study key 'data_sets' is \\['pydoc'\\]: it must be a dict"),
        ({"shots": {"arc": 25}}, "'shots' holds 'arc': use one of facts"),
        ({"merge_pairs": [["pydoc"]]}, "each entry is a list of two data sets"),
        ({"merge_pairs": [["pydoc", "alpaca"]]}, "'merge_pairs' holds 'alpaca': use one of gsm_symbolic, pydoc"),
        ({"scaling": {"rows": [4]}}, "study key 'scaling': missing key"),
        ({"scaling": {"rows": [48], "block_sizes": [4], "data_sets": ["pydoc"]}}, "all it has are 48"),
        ({"own_data": {"mine": {"instruction": "q"}}}, "own_data 'mine' has no source"),
        ({"own_data": {"mine": {"source": "x.jsonl", "reply": "a"}}}, "unknown key 'reply': allowed are source"),
        ({"base": "studies"}, "study 'studies' is unknown"),
        ({"block_sizes": [-2, 4, 6]}, "holds -2: a block size is a whole number of at least 1"),
        ({"finetune_block_sizes": [8]}, "holds 8: add it to 'block_sizes'"),
        ({"slerp_t": [0.0, 1.0]}, "name a point between 0 and 1"),
        ({"slerp_t": [1.5]}, "holds 1.5: SLERP's t lies in 0..1"),
        ({"data_sets": {"gsm9k": 5}}, "holds 'gsm9k': use one of gsm_symbolic, pydoc"),
        ({"in_domain": {"pydoc": ["arc"]}}, "'in_domain: pydoc' holds 'arc': use one of facts"),
        ({"in_domain": {"pydoc": "facts"}}, "has 'facts' for pydoc: it must be a list of tasks"),
        ({"in_domain": {"pydocs": []}}, "'in_domain' holds 'pydocs': use one of gsm_symbolic, pydoc"),
        ({"capacities": {"lora": [RANK8]}}, "study key 'capacities': missing key"),
        ({"capacities": SMALL | {"lora": [{"rank": 8}]}}, "study key 'capacities': missing key\\(s\\) alpha, targets"),
        ({"capacities": SMALL | {"lora": [RANK8 | {"rank": "8"}]}}, "has '8' for rank: it must be a whole number"),
        ({"capacities": SMALL | {"lora": [RANK8 | {"alpha": 0}]}}, "rank and alpha from 1 on"),
        ({"capacities": SMALL | {"lora": [RANK8 | {"targets": "a/b"}]}}, "targets as for 'lora_targets'"),
        ({"capacities": SMALL | {"lora": [RANK8, RANK8]}}, "twice, or it is the study's own"),
        ({"capacities": SMALL | {"lora": [{"rank": 16, "alpha": 32, "targets": "all-linear"}]}}, "the study's own"),
        ({"capacities": SMALL | {"block_sizes": [2]}}, "'capacities: block_sizes' holds 2: use one of 4, 6"),
        ({"equal_tokens": 1}, "study key 'equal_tokens' is 1: it must be a bool"),
        ({"epochs": True}, "study key 'epochs' is True: it must be a int"),
        ({"seeds": [0, 0]}, "names something twice"),
        ({"seeds": []}, "study key 'seeds' is empty: name at least one"),
        ({"finetune_block_sizes": []}, "'finetune_block_sizes' is empty"),
        ({"learning_rate": 0.0}, "'learning_rate' is 0.0: it must lie above 0 and up to 1"),
        ({"top_p": 1.5}, "'top_p' is 1.5: it must lie above 0 and up to 1"),
        ({"temperature": -1}, "'temperature' is -1: it must lie from 0 and up to 10"),
        ({"own_data": {"mine": {"source": "x.jsonl", "test_split": "test"}}}, "'test_split', which is for hub data"),
        (
            {"arms": ["sft", "self_data_ft", "dpo"]},
            "'arms' holds 'dpo': use one of sft, self_data_ft, self",
        ),
        ({"arms": ["sft", "mixed_ft"]}, "add self_data_ft, one of the two that are compared"),
    ],
)
def test_bad_keys_are_named(tmp_path, changes, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        study.load(write(tmp_path, **changes))


def test_whole_numbers_do_for_floats(tmp_path):
    loaded = study.load(write(tmp_path, temperature=0, lora_dropout=0, top_p=1))
    assert (loaded.temperature, loaded.lora_dropout, loaded.top_p) == (0, 0, 1)


def test_additional_capacities_are_told_apart_by_name(tmp_path):
    loaded = study.load(write(tmp_path, capacities=SMALL, seeds=[0, 1]))
    own, settings = "r8a16-q_proj+v_proj", {"lora_rank": 8, "lora_alpha": 16, "lora_targets": "q_proj,v_proj"}
    assert study.capacities(loaded) == {own: settings}
    further = [which for which in study.finetunings(loaded) if which["capacity"]]
    wanted = {"block_size": 4, "data_set": "pydoc", "rows": 48, "capacity": own}
    assert further == [wanted | {"seed": 0}, wanted | {"seed": 1}]
    labels = [study.label("finetuning", **which) for which in study.finetunings(loaded)]
    assert len(set(labels)) == len(labels) == 8 + 2
    assert "finetuning-n4-pydoc-48rows-r8a16-q_proj+v_proj-s1" in labels


def test_unknown_study_is_named_by_the_command_too():
    command = [sys.executable, "-m", "sdd_utils.reproduce", "embeded"]
    done = subprocess.run(command, cwd=study.ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: study 'embeded' is unknown: use one of embedded")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", NAMES)
def test_notebook_defaults_are_the_embedded_study(name):
    values, defaults = parameters.parameters_of("embedded", notebook=name), parameters.defaults_of(name)
    assert {key: defaults[key] for key in values} == values
    assert defaults["study"] == "embedded"


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_keep_their_contract(name):
    cells = nbformat.read(parameters.NOTEBOOKS / f"{name}.ipynb", as_version=4).cells
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
        notebooks.execute("02_pruning", out=tmp_path / "out.ipynb", parameters=given)
    assert not (tmp_path / "out.ipynb").exists()


def test_plain_papermill_is_told_as_well(tmp_path):
    """papermill itself injects a misspelt parameter without complaint, so the notebook has to."""
    namespace = parameters.defaults_of("02_pruning") | {"blok_size": 4, "In": ["", "# Parameters\nblok_size = 4\n"]}
    with pytest.raises(ValueError, match="unknown key 'blok_size'"):
        parameters.checked_parameters("02_pruning", namespace)
    harmless = parameters.defaults_of("02_pruning") | {"start": 3, "In": ["start = 3"]}  # a cell run twice by hand
    assert "start" not in parameters.checked_parameters("02_pruning", harmless)


def test_environments_pin_the_same_versions():
    project = tomllib.loads((study.ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    conda = yaml.safe_load((study.ROOT / "environment.yml").read_text())["dependencies"][-1]["pip"]
    lock = (study.ROOT / "requirements.lock").read_text().lower().splitlines()
    assert sorted(wanted) == sorted(line for line in conda if not line.startswith("-"))
    assert [pin for pin in wanted if "==" in pin and pin not in lock] == []


def test_a_kernel_collects_no_garbage_until_its_imports_are_done(tmp_path, monkeypatch):
    cells = ["a = 1", "import gc, torch\nfrom os import environ\nprint(gc.isenabled())", "print(gc.isenabled())"]
    cells += ["print(gc.get_freeze_count() > 10_000, 'MALLOC_TRIM_THRESHOLD_' in environ, 'kernel' in globals())"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python"}
    notebook.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, tmp_path / "own.ipynb")
    for name, value in (("NOTEBOOKS", tmp_path), ("check_parameters", lambda *_: None), ("defaults_of", lambda _: {})):
        monkeypatch.setattr(notebooks, name, value)
    notebooks.execute("own", out=tmp_path / "out.ipynb", parameters={"a": 2})
    executed = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    printed = [cell.outputs[0]["text"].strip() for cell in executed.cells if cell.get("outputs")]
    assert printed == ["False", "True", "True True False"]
