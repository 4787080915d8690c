"""Before any work: data, tasks, encoder, and whose run a folder holds."""

import json
import subprocess
import sys

import pytest
import yaml
from snakemake.cli import parse_config

from sdd_utils import ROOT
from sdd_utils.data import source_rows
from sdd_utils.sweep import plan, preflight, reproduce


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Writes a study file of these changes; 40 rows lie beside it."""
    monkeypatch.setattr(source_rows, "CACHE", tmp_path / "cache")
    rows = [{"instruction": f"Q{i}", "response": "fine"} for i in range(40)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(name="mine.yaml", **changes):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        own = {"own_data": {"mine": {"source": str(tmp_path / "mine.jsonl")}}, "merge_pairs": [], "answer_prompts": 2}
        path.write_text(yaml.safe_dump({"base": "embedded"} | own | changes))
        return str(path)

    return write


def started(monkeypatch, tmp_path, study, *further):
    """The exit status of `reproduce`, and the Snakemake commands that it would start."""
    commands = []

    class Process:
        stderr, returncode = (), 1  # it says nothing and fails

        def __init__(self, command, **_):
            commands.append(command)

        def wait(self, timeout=None):
            return 1

    monkeypatch.setattr(reproduce.subprocess, "Popen", Process)
    monkeypatch.setattr(sys, "argv", ["reproduce", study, "--run", str(tmp_path / "run"), *further])
    return reproduce.main(), commands


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data_sets": {"mine": 39}}, "39 rows of mine train cannot be had: ask for 1 to 38, or 0 for all"),
        ({"data_sets": {"mine": 8}, "answer_prompts": 3}, "3 rows of mine test cannot be had: ask for 1 to 2"),
        (
            {"data_sets": {"mine": 8}, "own_data": {"mine": {"source": "nowhere.jsonl"}}},
            "'nowhere.jsonl' does not exist",
        ),
        ({"tasks": {"facts": 4, "cola": 4}}, "task 'cola' is scored by mcc over all documents at once"),
        ({"tasks": {"fcats": 4}}, "task 'fcats' is unknown: use one of facts"),
        (
            {"block_sizes": [40], "finetune_block_sizes": [40]},
            "block size 40 is impossible: a model of 30 layers allows",
        ),
        ({"model": "nowhere/model.gguf"}, "nowhere/model.gguf"),
    ],
)
def test_faults_are_one_sentence_of_run_and_plan(study, tmp_path, monkeypatch, capsys, changes, said):
    named = study(**{"in_domain": {}, "shots": {}, "chat_tasks": []} | changes)
    assert started(monkeypatch, tmp_path, named) == (2, [])
    monkeypatch.setattr(sys, "argv", ["plan", named])
    assert plan.main() == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert all(line.startswith("error: ") and said in line for line in told)


def test_an_encoder_that_is_nowhere_is_told_before_any_work(study, tmp_path, monkeypatch, capsys):
    assert started(monkeypatch, tmp_path, study(encoder="all-MiniLM")) == (2, [])
    told = capsys.readouterr().err
    assert told.startswith("error: study key 'encoder' is 'all-MiniLM', no packaged one (all-MiniLM-L6-v2): ")
    assert told.count("\n") == 1


def test_a_library_that_is_missing_is_told(monkeypatch, tmp_path, capsys, study):
    from sdd_utils.steps import quantization

    monkeypatch.setattr(quantization, "find_spec", lambda _: None)
    assert started(monkeypatch, tmp_path, study(quantization={"formats": ["int8"]})) == (2, [])
    told = capsys.readouterr().err
    assert told.endswith("needs bitsandbytes, which is not installed: run 'make quantization'\n")
    assert told.count("\n") == 1
    assert len(started(monkeypatch, tmp_path, study("other.yaml"))[1]) == 1  # nobody asked for it


def test_the_shipped_studies_need_no_model_library_for_it():
    script = "import sys; from sdd_utils.study.schema import load_study; from sdd_utils.sweep import preflight as p\n"
    script += "for name in ('embedded', 'laptop', 'paper-llama3.1-8b'):\n"
    script += "    study = load_study(name); p.check_data(study); p.check_tasks(study); p.check_encoder(study)\n"
    script += "    p.check_quantization(study)\n"
    script += "print({'torch', 'transformers', 'lm_eval', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_measured_tasks_can_be_scored():
    """The check leaves out those whose lengths were measured, so all of them must pass it."""
    from sdd_utils.steps import evaluation

    evaluation.check_tasks(preflight.token_lengths.lengths()["tasks"])


def test_another_study_of_the_same_name_is_refused_and_a_moved_one_is_not(study, tmp_path, monkeypatch, capsys):
    first, second = study("a/mine.yaml", epochs=1), study("b/mine.yaml", epochs=2)
    assert len(started(monkeypatch, tmp_path, first)[1]) == 1
    assert started(monkeypatch, tmp_path, second) == (2, [])
    assert f"run holds the run of {first}, not of {second}: rename one" in capsys.readouterr().err
    study("a/mine.yaml", epochs=3)  # edited: it is the same study
    assert len(started(monkeypatch, tmp_path, first)[1]) == 1
    study("b/mine.yaml", epochs=3)  # a copy says the same
    assert len(started(monkeypatch, tmp_path, second)[1]) == 1
    study("b/mine.yaml", epochs=4)
    (tmp_path / "b" / "mine.yaml").rename(tmp_path / "mine.yaml")  # moved
    assert len(started(monkeypatch, tmp_path, str(tmp_path / "mine.yaml"))[1]) == 1


def test_a_run_of_a_shipped_study_is_noted_without_the_checkouts_place(tmp_path):
    reproduce._claim(tmp_path / "run", study="embedded")
    assert (tmp_path / "run" / "study.txt").read_text() == "studies/embedded.yaml"


@pytest.mark.parametrize("name", ["007", "1e3", "on", "no: yes", "sp äce", "plain"])
def test_snakemake_reads_names_as_they_are(study, tmp_path, monkeypatch, name):
    path = study(f"{'plain' if ':' in name else name}.yaml")
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    _, [command] = started(monkeypatch, tmp_path, path, "--run", name)
    given = parse_config([command[command.index("--config") + 1]])
    assert given == {"sweep": {"study": path, "run": name}}


def test_a_brace_in_a_path_is_refused(study, tmp_path, monkeypatch, capsys):
    for named, further in (
        (study(), ["--run", str(tmp_path / "{x}")]),
        (study(own_data={"mine": {"source": "{a}.jsonl"}}), []),
    ):
        assert started(monkeypatch, tmp_path, named, *further) == (2, [])
        assert "holds a brace, which Snakemake takes for a pattern: rename it" in capsys.readouterr().err
