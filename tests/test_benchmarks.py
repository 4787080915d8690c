"""Every benchmark at a small size on the tiny model: both sides do the same work and come to the same answer."""

import importlib
import importlib.util
import itertools
import json
import subprocess
from types import SimpleNamespace

import pytest
import torch

from benchmarks import compare, gguf_likelihoods, run, study
from sdd_utils import ROOT


# The others have tests of their own: mergekit may be missing, engines take long to start, and a study takes minutes.
@pytest.mark.parametrize("name", [n for n in run.STAGES if n not in ("merging", "distillation_engines", "study")])
def test_ours_and_the_peer_come_to_the_same_answer(name, model_folder):
    stage = importlib.import_module(f"benchmarks.{name}")
    entries = compare.compare(stage, size=stage.SMALL, model=str(model_folder), memory=False)
    assert [entry["peer"] for entry in entries] == list(stage.PEERS)
    assert all(entry["equal"] in (True, None) for entry in entries), entries
    assert any(entry["equal"] for entry in entries), "a stage has a peer whose answers can be compared"


def test_merges_are_mergekits(model_folder):
    if importlib.util.find_spec("mergekit") is None:
        pytest.skip('mergekit is not installed: run pip install -e ".[bench]"')
    from benchmarks import merging

    (entry,) = compare.compare(merging, size=merging.SMALL, model=str(model_folder), memory=False)
    assert entry["equal"], entry


@pytest.mark.parametrize("name", ["similarity", "distillation", "finetuning", "multiple_choice", "generation_tasks"])
def test_a_wrong_answer_is_seen(name, model_folder, tmp_path):
    stage = importlib.import_module(f"benchmarks.{name}")
    state = stage.prepare(str(model_folder), scratch=tmp_path, **stage.SMALL)
    right, wrong = stage.ours(state), stage.ours(state)
    spoil(wrong)
    assert stage.same(state, right, right)[0]
    assert not stage.same(state, wrong, right)[0]


def test_time_counts_by_amount_where_a_peer_does_a_part(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(compare.time, "perf_counter", lambda: float(next(clock)))  # each side takes one second
    stage = SimpleNamespace(
        NAME="s",
        prepare=lambda model, scratch: {},
        ours=lambda state: [1] * 8,
        PEERS={"p": (lambda state: [1] * 2, 1)},
        same=lambda state, ours, peer: (True, ""),
        amount=len,
    )
    (entry,) = compare.compare(stage, size={}, memory=False)
    assert entry["ratio_time"] == 4


def test_a_continuations_likelihood_is_that_of_its_loss(model):
    prompt, continuation = list(range(5, 30)), [7, 9, 11]
    labels = torch.tensor([[-100] * len(prompt) + continuation])
    loss = model(torch.tensor([prompt + continuation]), labels=labels).loss.item()
    (nats,) = gguf_likelihoods.ours(model, [(prompt, continuation)])
    assert nats == pytest.approx(-loss * len(continuation), rel=1e-5)


def test_the_docs_say_what_the_record_of_the_two_engines_holds():
    record = json.loads(gguf_likelihoods.OUT.read_text())
    ids = [(None, range(row["tokens"])) for row in record["prompts"]]
    theirs = [row["nats"]["llama.cpp"] for row in record["prompts"]]
    for engine, said in record["difference"].items():
        own = [row["nats"][engine] for row in record["prompts"]]
        assert gguf_likelihoods.difference(own, theirs, ids) == pytest.approx(said, abs=2e-4)
    page = " ".join((ROOT / "docs" / "own-model.md").read_text().split())
    gaps = [record["difference"][kind]["mean_absolute"] for kind in ("float32", "bfloat16")]
    assert f"{gaps[0]:.2f} nats in float32 and {gaps[1]:.2f} in bfloat16" in page
    assert f"{len(theirs)} prompts with {record['tokens']} tokens" in page
    assert record["same_tokens"]


def spoil(answer) -> None:
    """Change an answer in place, whatever its kind."""
    key = next(iter(answer)) if isinstance(answer, dict) else 0
    if isinstance(answer[key], dict):  # a task's filtered responses
        answer[key]["filtered"][0] = ["another answer"]
        answer[key]["values"] = dict.fromkeys(answer[key]["values"], -1)
    elif isinstance(answer[key], list):  # a row's tokens
        for row in answer.values():
            row[:] = [5] * len(row)
    else:
        answer[key] = answer[key] + 0.1


def test_the_memory_of_a_side_is_what_it_adds(model_folder):
    from benchmarks import similarity

    extra = compare.peak(similarity, "ours", size=similarity.SMALL, model=str(model_folder))
    assert 0 <= extra < 200e6


def test_entries_replace_those_of_their_stage_and_processor(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "HERE", tmp_path)
    entry = {"stage": "a", "peer": "p", "ratio_time": 2.0, "ratio_memory": None, "equal": True}
    entry |= {"n": 3, "spread": [1.5, 2.5], "note": "x", "processor": "one"}
    run.write([entry, entry | {"stage": "b"}])
    run.write([entry | {"ratio_time": 4.0}])
    run.write([entry | {"ratio_time": 3.0, "processor": "another"}])
    kept = [(e["stage"], e["processor"], e["ratio_time"]) for e in json.loads((tmp_path / "results.json").read_text())]
    assert kept == [("a", "one", 4.0), ("a", "another", 3.0), ("b", "one", 2.0)]
    assert "4.00" in (tmp_path / "results.md").read_text()


def test_the_page_shows_the_committed_results():
    entries = json.loads((run.HERE / "results.json").read_text())
    table = run.table(entries).to_markdown(index=False, disable_numparse=True)
    assert (run.HERE / "results.md").read_text() == table + "\n"
    assert table in run.PAGE.read_text(encoding="utf-8")
    assert all(entry["spread"][0] <= entry["ratio_time"] <= entry["spread"][1] for entry in entries)


def test_the_study_runs_the_code_of_the_revision_it_is_asked_for(tmp_path, monkeypatch):
    def git(*command):
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e", *command], cwd=tmp_path / "repo", check=True)

    package = tmp_path / "repo" / "sdd_utils"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    git("init", "--quiet")
    (package / "sweep").mkdir()
    for name, place in (("first", package), ("second", package / "sweep")):
        said = f"import sys, pathlib; pathlib.Path({str(tmp_path)!r}, {name!r}).write_text(sys.argv[1])"
        (place / "reproduce.py").write_text(said)
        git("add", "-A")
        git("commit", "--quiet", "-m", name)
    monkeypatch.setattr(study, "ROOT", tmp_path / "repo")
    assert study.seconds("HEAD~1") > 0
    assert (tmp_path / "first").read_text() == "embedded"
    assert not (tmp_path / "second").exists()
    assert study.seconds("HEAD") > 0
    assert (tmp_path / "second").read_text() == "embedded"


def test_the_first_state_is_measured_once_per_machine_and_again_when_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(run, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(run, "STAGES", ("study",))
    measured = []
    monkeypatch.setattr(study, "seconds", lambda revision: measured.append(revision) or {"HEAD": 50}.get(revision, 200))
    (tmp_path / "page.md").touch()
    for names, machine in (([], "one"), ([], "one"), ([], "two"), (["study"], "one")):
        monkeypatch.setattr(run, "cpu_name", lambda name=machine: name)
        monkeypatch.setattr(study, "machine", lambda name=machine: name)
        run.main(names)
    assert measured == [study.FIRST, "HEAD", "HEAD", study.FIRST, "HEAD", study.FIRST, "HEAD"]
    kept = run.former()
    assert [(e["processor"], e["ratio_time"], e["first_seconds"]) for e in kept] == [
        ("two", 4.0, 200),
        ("one", 4.0, 200),
    ]


def test_unknown_stages_are_named():
    with pytest.raises(SystemExit, match="stage 'merge' is unknown: use some of similarity, .*, study"):
        run.main(["merge"])
