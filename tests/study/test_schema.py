"""Studies and notebook parameters: a wrong one is a sentence that names value, allowed values and mend."""

import json
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from pydantic import ValidationError

from sdd_utils import ROOT
from sdd_utils.study import schema
from sdd_utils.study.jobs import finetunings, lora_capacities
from sdd_utils.study.paths import job_name
from sdd_utils.study.schema import STUDIES, Study, load_study

RANK8 = {"rank": 8, "alpha": 16, "targets": "q_proj,v_proj"}
SMALL = {"lora": [RANK8], "block_sizes": [6], "data_sets": ["pydoc"]}
FEWER = {"rows": [4], "block_sizes": [6], "data_sets": ["pydoc"]}


def write(tmp_path, **changes):
    values = yaml.safe_load((STUDIES / "embedded.yaml").read_text()) | changes
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora_rnk": 8}, "mine.yaml': unknown key 'lora_rnk': did you mean 'lora_rank'?"),
        ({"nothing_like_it": 8}, "unknown key 'nothing_like_it': delete it or use one of model, data_sets, own_data"),
        ({"lora_rank": None}, "missing key(s) lora_rank: add them, or a line 'base: embedded'"),
        ({"epochs": "many"}, "study key 'epochs' is 'many': it must be a whole number of at least 1"),
        ({"epochs": 0}, "study key 'epochs' is 0: it must be a whole number of at least 1"),
        ({"epochs": True}, "study key 'epochs' is True: it must be a whole number of at least 1"),
        ({"epochs": 2.0}, "study key 'epochs' is 2.0: it must be a whole number of at least 1"),
        ({"epochs": "2"}, "study key 'epochs' is '2': it must be a whole number of at least 1, written 2"),
        ({"top_k": -1}, "study key 'top_k' is -1: it must be a whole number of at least 0"),
        ({"equal_tokens": 1}, "study key 'equal_tokens' is 1: it must be true or false"),
        ({"model": 8}, "study key 'model' is 8: it must be non-empty text"),
        ({"lora_targets": ["q_proj"]}, "study key 'lora_targets' is ['q_proj']: it must be non-empty text"),
        ({"learning_rate": 0.0}, "study key 'learning_rate' is 0.0: it must be a number above 0 and up to 1"),
        ({"learning_rate": "0.0005"}, "is '0.0005': it must be a number above 0 and up to 1, written 0.0005"),
        ({"top_p": 1.5}, "study key 'top_p' is 1.5: it must be a number above 0 and up to 1"),
        ({"top_p": float("nan")}, "study key 'top_p' is nan: it must be a number above 0 and up to 1"),
        ({"temperature": -1}, "study key 'temperature' is -1: it must be a number from 0 to 10"),
        ({"temperature": True}, "study key 'temperature' is True: it must be a number from 0 to 10"),
        ({"seeds": []}, "study key 'seeds' is []: it must be a non-empty list of whole numbers from 0 to 4294967295"),
        ({"seeds": [-1]}, "study key 'seeds' holds -1: it must be a whole number from 0 to 4294967295"),
        ({"seeds": [2**32]}, "study key 'seeds' holds 4294967296: it must be a whole number from 0 to 4294967295"),
        ({"seeds": [0, 0]}, "study key 'seeds' is [0, 0]: it names 0 twice, keep each once"),
        ({"chat_tasks": [3]}, "study key 'chat_tasks' holds 3: it must be non-empty text"),
        ({"data_sets": {"pydoc": "many"}}, "'data_sets' has 'many' for pydoc: it must be a whole number of at least 0"),
        ({"data_sets": ["pydoc"]}, "['pydoc']: it must be a non-empty mapping {name: a whole number of at least 0}"),
        ({"data_sets": {True: 8}}, "'data_sets' has the key True, which YAML reads as no text: put it in quotes"),
        ({"data_sets": {"gsm9k": 5}}, "study key 'data_sets' holds 'gsm9k': use one of gsm_symbolic, pydoc"),
        ({"calibration_sets": ["c5"]}, "study key 'calibration_sets' holds 'c5': use one of gsm_symbolic, pydoc"),
        ({"block_sizes": [-2, 4, 6]}, "study key 'block_sizes' holds -2: it must be a whole number of at least 1"),
        ({"finetune_block_sizes": [8]}, "study key 'finetune_block_sizes' holds 8: add it to 'block_sizes' as well"),
        ({"selection": ["random"]}, "'selection' is ['random']: add angular, the one that is fine-tuned"),
        ({"selection": ["angular", "best"]}, "'selection' holds 'best': it must be one of angular, block_influence"),
        ({"shots": {"arc": 25}}, "study key 'shots' holds 'arc': use one of facts"),
        ({"chat_tasks": ["arc"]}, "study key 'chat_tasks' holds 'arc': use one of facts"),
        ({"in_domain": {"pydoc": ["arc"]}}, "study key 'in_domain: pydoc' holds 'arc': use one of facts"),
        ({"in_domain": {"pydoc": "facts"}}, "study key 'in_domain' has 'facts' for pydoc: it must be a list of names"),
        ({"in_domain": {"pydocs": []}}, "study key 'in_domain' holds 'pydocs': use one of gsm_symbolic, pydoc"),
        ({"speculation": {"draft_tokens": 4}}, "study key 'speculation': missing key(s) draft_prompts: add them"),
        ({"speculation": {"draft_tokens": 0, "draft_prompts": 2}}, "has 0 for draft_tokens: it must be a whole number"),
        ({"quantization": {"formats": ["int4"]}}, "'quantization: formats' holds 'int4': it must be one of int8, nf4"),
        ({"quantization": {"formats": []}}, "key 'quantization' has [] for formats: it must be a non-empty list"),
        ({"merge_pairs": [["pydoc"]]}, "'merge_pairs' holds ['pydoc']: it must be a list of exactly 2 names"),
        ({"merge_pairs": [["pydoc", "pydoc"]]}, "holds ['pydoc', 'pydoc']: it names 'pydoc' twice, keep each once"),
        ({"merge_pairs": [["pydoc", "alpaca"]]}, "'merge_pairs' holds 'alpaca': use one of gsm_symbolic, pydoc"),
        ({"rewrite_attempts": 0}, "study key 'rewrite_attempts' is 0: it must be a whole number of at least 1"),
        ({"rewrite_attempts": 3, "temperature": 0}, "'rewrite_attempts' is 3: set it to 1, as greedy decoding"),
        ({"rewrite_attempts": 2, "top_k": 1}, "'rewrite_attempts' is 2: set it to 1, as greedy decoding"),
        ({"slerp_t": [0.0, 1.0]}, "'slerp_t' is [0.0, 1.0]: add a point between 0 and 1, which are the parents"),
        ({"slerp_t": [1.5]}, "study key 'slerp_t' holds 1.5: it must be a number from 0 to 1"),
        ({"arms": ["sft", "self_data_ft", "dpo"]}, "'arms' holds 'dpo': it must be one of sft, self_data_ft, first"),
        ({"arms": ["sft", "mixed_ft"]}, "add self_data_ft, one of the two that are compared"),
        ({"own_data": {"mine": 8}}, "study key 'own_data' has 8 for mine: it must be a mapping"),
        ({"own_data": {"my set": {"source": "x"}}}, "own_data 'my set' is no name for a data set: use letters"),
        ({"own_data": {"mine": {"instruction": "q"}}}, "own_data 'mine' has no source"),
        ({"own_data": {"mine": {"source": "x.jsonl", "reply": "a"}}}, "unknown key 'reply': allowed are source"),
        ({"own_data": {"mine": {"source": "x.jsonl", "test_split": "test"}}}, "'test_split', which is for hub data"),
        ({"scaling": 4}, "study key 'scaling' is 4: it must be a mapping {rows: a non-empty list of whole numbers of"),
        ({"scaling": {"rows": [4]}}, "study key 'scaling': missing key(s) block_sizes, data_sets: add them"),
        ({"scaling": FEWER | {"row": [4]}}, "study key 'scaling': unknown key 'row': did you mean 'rows'?"),
        ({"scaling": FEWER | {"rows": []}}, "study key 'scaling' has [] for rows: it must be a non-empty list"),
        ({"scaling": FEWER | {"rows": [40]}}, "study key 'scaling' asks for 40 rows of pydoc: use fewer than its 40"),
        ({"scaling": FEWER | {"block_sizes": [2]}}, "study key 'scaling: block_sizes' holds 2: use one of 6"),
        ({"capacities": {"lora": [RANK8]}}, "study key 'capacities': missing key(s) block_sizes, data_sets: add them"),
        ({"capacities": SMALL | {"lora": [{"rank": 8}]}}, "key 'capacities: lora': missing key(s) alpha, targets: add"),
        ({"capacities": SMALL | {"lora": [RANK8 | {"rank": "8"}]}}, "has '8' for rank: it must be a whole number"),
        ({"capacities": SMALL | {"lora": [RANK8 | {"alpha": 0}]}}, "'capacities: lora' has 0 for alpha: it must be"),
        ({"capacities": SMALL | {"lora": [RANK8 | {"targets": "a/b"}]}}, "it must be text of letters, digits and _"),
        ({"capacities": SMALL | {"lora": [RANK8, RANK8]}}, "'targets': 'q_proj,v_proj'} twice, keep each once"),
        ({"capacities": SMALL | {"lora": [{"rank": 16, "alpha": 32, "targets": "all-linear"}]}}, "the study's own"),
        ({"capacities": SMALL | {"block_sizes": [2]}}, "study key 'capacities: block_sizes' holds 2: use one of 6"),
    ],
)
def test_bad_keys_are_named(tmp_path, changes, said):
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        load_study(write(tmp_path, **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "mine.yaml' has no 'key: value' lines: begin with 'base: embedded'"),
        ("- model", "mine.yaml' has no 'key: value' lines: begin with 'base: embedded'"),
        ("# nothing\n", "mine.yaml' has no 'key: value' lines: begin with 'base: embedded'"),
        ("base: embedded\nseeds: [0", "mine.yaml' is not YAML: line 2: expected ',' or ']', but got"),
        ("base: embedded\ndata_sets:\n\tpydoc: 20", "is not YAML: line 3: a tab stands where spaces belong: indent"),
        ("base: embedded\nepochs: 1\nepochs: 2", "is not YAML: line 3: the key 'epochs' again, correct it"),
        ("base: embedded\ndata_sets: {pydoc: 1, 'pydoc': 2}", "is not YAML: line 2: the key 'pydoc' again, correct"),
        ("base: embedded\n---\nepochs: 2", "is not YAML: line 2: but found another document, correct it"),
        ("base: embedded\nmodel: \x07", "is not YAML: unacceptable character #x0007"),
        ("base:", "mine.yaml' has the base None: name a study such as embedded"),
        ("base: ''", "mine.yaml' has the base '': name a study such as embedded"),
        ("base: [embedded]", "mine.yaml' has the base ['embedded']: name a study such as embedded"),
        ("base: 1e3", "mine.yaml' has the base 1000.0: name a study such as embedded"),
        ("base: embedded\ndata_sets: {1e3: 8}", "has the key 1000.0, which YAML reads as no text: put it in quotes"),
        ("base: embedded\ndata_sets: {true: 8}", "has the key True, which YAML reads as no text: put it in quotes"),
        ("base: embedded\ndata_sets: {no: 8}", "study key 'data_sets' holds 'no': use one of gsm_symbolic, pydoc"),
        ("base: embedded\nseeds: [010]", "study key 'seeds' holds '010': it must be a whole number from 0"),
        ("base: embedded\nepochs: 1:30", "study key 'epochs' is '1:30': it must be a whole number of at least 1"),
        ("base: embedded\nequal_tokens: yes", "study key 'equal_tokens' is 'yes': it must be true or false"),
        ("1: 2\nbase: embedded", "unknown key 1: delete it or use one of model, data_sets"),
    ],
)
def test_a_file_that_is_no_study_is_told(tmp_path, text, said):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        load_study(str(tmp_path / "mine.yaml"))
    assert "\n" not in str(error.value)


def test_a_file_in_another_encoding_is_told(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes("base: embedded # café".encode("latin-1"))
    with pytest.raises(ValueError, match="mine.yaml' is not YAML: it is not UTF-8: save it as UTF-8"):
        load_study(str(path))
    path.write_bytes("base: embedded # café".encode("utf-8-sig"))
    assert load_study(str(path)) == load_study("embedded")


@pytest.mark.parametrize("number", ["5e-4", "5.e-4", "0.5E-3", ".0005", "+5.0e-04"])
def test_numbers_may_have_an_exponent_and_no_point(tmp_path, number):
    (tmp_path / "mine.yaml").write_text(f"base: embedded\nlearning_rate: {number}")
    assert load_study(str(tmp_path / "mine.yaml")).learning_rate == 0.0005


@pytest.mark.parametrize("name", ["no", "on", "Yes", "007", "1_000", "1e3", "2024-01-01"])
def test_names_stay_the_text_that_they_are(tmp_path, name):
    """A data set may have such a name: as it stands where YAML 1.2 has text, else in quotes."""
    (tmp_path / f"{name}.yaml").write_text(f"base: embedded\nencoder: '{name}'\nmodel: \"{name}\"\n")
    loaded = load_study(str(tmp_path / f"{name}.yaml"))
    assert (loaded.encoder, loaded.model) == (name, name)
    assert schema.name_of(str(tmp_path / f"{name}.yaml")) == name
    if name != "1e3":
        (tmp_path / "bare.yaml").write_text(f"base: embedded\nencoder: {name}\n")
        assert load_study(str(tmp_path / "bare.yaml")).encoder == name


@pytest.mark.parametrize("name", ["a{b}", "a'b", "-n", ".hidden", "a$b"])
def test_a_name_that_no_folder_should_have_is_refused(tmp_path, name):
    (tmp_path / f"{name}.yaml").write_text("base: embedded")
    with pytest.raises(ValueError, match=re.escape(f"study {name!r} names its folders: rename its file")):
        schema.name_of(str(tmp_path / f"{name}.yaml"))


def test_a_base_that_is_a_path_starts_beside_the_file_that_names_it(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "mine.yaml").write_text("base: ../other.yaml\nepochs: 7")
    (tmp_path / "other.yaml").write_text("base: below/third.yaml\nseeds: [5]")
    (tmp_path / "below" / "third.yaml").write_text("base: embedded\nlora_rank: 3")
    loaded = load_study(str(tmp_path / "below" / "mine.yaml"))
    assert (loaded.epochs, loaded.seeds, loaded.lora_rank) == (7, [5], 3)


def test_bases_are_followed_to_the_last_one(tmp_path):
    files = {"top": {"base": str(tmp_path / "middle.yaml"), "seeds": [5], "in_domain": {}}}
    files |= {"middle": {"base": "paper-mistral-7b", "seeds": [4], "epochs": 3}}
    for name, values in files.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
    loaded = load_study(str(tmp_path / "top.yaml"))
    assert (loaded.seeds, loaded.epochs, loaded.in_domain) == ([5], 3, {})
    assert loaded.model == load_study("paper-mistral-7b").model
    assert loaded.data_sets == load_study("paper-llama3.1-8b").data_sets
    assert loaded.lora_rank == load_study("embedded").lora_rank


@pytest.mark.parametrize("bases", [{"a": "a"}, {"a": "b", "b": "a"}, {"a": "b", "b": "c", "c": "b"}])
def test_bases_in_a_circle_are_refused(tmp_path, bases):
    for name, base in bases.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"base": str(tmp_path / f"{base}.yaml")}))
    with pytest.raises(ValueError, match="has its bases in a circle, .* -> .*: delete one 'base'$"):
        load_study(str(tmp_path / "a.yaml"))


def test_an_unknown_base_is_named(tmp_path):
    for base in ("studies", "nothing.yaml"):
        with pytest.raises(FileNotFoundError, match=f"study '{base}' is unknown: use one of deployment, embedded, "):
            load_study(write(tmp_path, base=base))


def test_values_are_the_plain_ones_of_the_file(tmp_path):
    wanted = yaml.safe_load((STUDIES / "embedded.yaml").read_text())
    wanted |= {"scaling": FEWER, "capacities": SMALL, "own_data": {"mine": {"source": "x.jsonl", "sample": 8}}}
    loaded = load_study(write(tmp_path, **wanted))
    values = {name: getattr(loaded, name) for name in Study.model_fields}
    assert vars(loaded) == values == wanted
    assert json.loads(json.dumps(values)) == wanted
    with pytest.raises(ValidationError):
        loaded.epochs = 2


def test_loading_a_study_imports_no_model_library():
    script = "import sys; from sdd_utils.study.schema import load_study; load_study('paper-mistral-7b'); "
    script += "print({'torch', 'transformers', 'lm_eval', 'datasets', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_table_of_keys_says_type_bounds_meaning_and_value():
    rows = {row.split(" | ")[0]: row for row in schema.reference_table().splitlines()}
    assert len(rows) == 2 + len(Study.model_fields)
    said = "number above 0 and up to 1 | peak of a cosine schedule with 5 % warm-up [ours] | `0.0005` |"
    assert rows["| `learning_rate`"] == f"| `learning_rate` | {said}"
    assert "| non-empty mapping {name: a whole number of at least 0} |" in rows["| `data_sets`"]
    assert rows["| `data_sets`"].endswith(" | `{gsm_symbolic: 40, pydoc: 40}` |")
    assert all(field.description for field in Study.model_fields.values())
    assert all(row.count("|") == 5 for row in rows.values())


def test_the_committed_page_holds_the_table():
    page = schema.PAGE.read_text(encoding="utf-8")
    table = page.partition("<!-- study keys -->\n")[2].partition("<!-- end -->")[0]
    assert table == schema.reference_table(), "run 'python -m sdd_utils.study.schema --write'"


def test_the_table_is_written_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- study keys -->\nold\n<!-- end -->\nafter <!-- end -->\n")
    for _ in range(2):
        schema.write_table(page)
        marked = f"<!-- study keys -->\n{schema.reference_table()}<!-- end -->"
        assert page.read_text() == f"before\n{marked}\nafter <!-- end -->\n"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="has no place for the table: add lines '<!-- study keys -->'"):
        schema.write_table(page)


def test_whole_numbers_do_for_floats(tmp_path):
    loaded = load_study(write(tmp_path, temperature=0, lora_dropout=0, top_p=1, rewrite_attempts=1))
    assert (loaded.temperature, loaded.lora_dropout, loaded.top_p) == (0, 0, 1)


def test_additional_capacities_are_told_apart_by_name(tmp_path):
    loaded = load_study(write(tmp_path, capacities=SMALL, seeds=[0, 1]))
    own, settings = "r8a16-q_proj+v_proj", {"lora_rank": 8, "lora_alpha": 16, "lora_targets": "q_proj,v_proj"}
    assert lora_capacities(loaded) == {own: settings}
    further = [which for which in finetunings(loaded) if which["capacity"]]
    wanted = {"block_size": 6, "data_set": "pydoc", "rows": 40, "capacity": own}
    assert further == [wanted | {"seed": 0}, wanted | {"seed": 1}]
    labels = [job_name("finetuning", **which) for which in finetunings(loaded)]
    assert len(set(labels)) == len(labels) == 4 + 2
    assert "finetuning-n6-pydoc-40rows-r8a16-q_proj+v_proj-s1" in labels


def test_unknown_study_is_named_by_the_command_too():
    command = [sys.executable, "-m", "sdd_utils.sweep.reproduce", "embeded"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: study 'embeded' is unknown: use one of deployment, embedded")
    assert len(done.stderr.splitlines()) == 1


def test_environments_pin_the_same_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    lock = (ROOT / "requirements.lock").read_text().lower().splitlines()
    assert [pin for pin in wanted if "==" in pin and pin not in lock] == []
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert conda[-1] == {"pip": ["-r requirements.lock"]}
