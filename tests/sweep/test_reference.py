"""The committed results as a reference: only a finished run replaces them, and jobs of them are run again."""

import json
import re
import shutil
import sys

import nbformat
import pytest

from sdd_utils import ROOT
from sdd_utils.base.records import SCHEMA
from sdd_utils.study.jobs import study_jobs
from sdd_utils.study.schema import load_study
from sdd_utils.sweep import publish, reproduce, verify

COMMITTED = ROOT / "results" / "embedded"
NEEDS = {job.name: job.needs for job in study_jobs(load_study("embedded"))}


@pytest.fixture
def run(tmp_path):
    """A finished run of the embedded study: what is committed of it."""
    return shutil.copytree(COMMITTED, tmp_path / "run")


@pytest.fixture
def call(monkeypatch, capfd, run, tmp_path):
    """A function that runs a command on the run and the results beside it: (exit status, what it said, errors)."""

    def called(module, *arguments, results=tmp_path / "results"):
        places = ["--run", str(run), *(["--results", str(results)] if results else [])]
        monkeypatch.setattr(sys, "argv", [module.__name__, "embedded", *places, *map(str, arguments)])
        return module.main(), *capfd.readouterr()

    return called


def change(path, *keys, by):
    """Write another value into a file of JSON."""
    content = json.loads(path.read_text())
    node = content
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = by(node[keys[-1]])
    path.write_text(json.dumps(content))


def test_a_finished_run_is_published_whole_and_without_what_else_lies_in_it(call, run, tmp_path):
    (run / "records" / "pruning-n8.json").write_text("{}")  # of a study key that was another then
    (run / "notebooks" / "pruning-n8.ipynb").write_text("{}")
    noisy = run / "notebooks" / "similarity.ipynb"
    notebook = nbformat.read(noisy, as_version=4)
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    cell.outputs.append(nbformat.v4.new_output("stream", name="stderr", text="50%|#####"))
    nbformat.write(notebook, noisy)
    status, said, _ = call(publish)
    assert (status, said.startswith("published: ")) == (0, True)
    out = tmp_path / "results"
    for folder in ("records", "notebooks", "tables", "figures"):
        assert {p.name for p in (out / folder).iterdir()} == {p.name for p in (COMMITTED / folder).iterdir()}, folder
    assert all(p.read_bytes() == (COMMITTED / "records" / p.name).read_bytes() for p in (out / "records").iterdir())
    assert "50%|" not in (out / "notebooks" / noisy.name).read_text()
    assert (out / "index.html").is_file()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda run: (run / "records" / "pruning-n6.json").unlink(),
            f"is no finished run, 1 of {len(NEEDS)} jobs are missing",
        ),
        (
            lambda run: (run / "notebooks" / "results.ipynb").unlink(),
            f"is no finished run, 1 of {len(NEEDS)} jobs are missing",
        ),
        (
            lambda run: change(run / "records" / "pruning-n6.json", "params", "answer_tokens", by=lambda n: n + 1),
            "pruning-n6 in .* was made with another answer_tokens than the study has now",
        ),
        (
            lambda run: change(
                run / "records" / "pruning-n6.json", "metrics", "scores", "facts", "accuracy", "documents", by=ones
            ),
            "results.json in .* does not follow from the records beside it",
        ),
    ],
)
def test_an_unfinished_run_is_told_in_a_sentence_and_nothing_is_written(call, run, tmp_path, spoil, said):
    spoil(run)
    status, _, errors = call(publish)
    assert (status, errors.count("\n")) == (2, 1)
    assert re.match(rf"error: .*{said}: let 'make reproduce' come to its end first", errors)
    assert not (tmp_path / "results").exists()


def ones(documents):
    return [1.0] * len(documents)


def test_a_run_that_goes_on_is_not_published(call, run):
    with reproduce.locked(run):
        status, _, errors = call(publish)
    assert status == 2
    assert "another run is going on" in errors


@pytest.mark.parametrize("results", ["run", "run/results", ".", str(ROOT), str(ROOT.parent)])
def test_results_are_not_published_into_the_run_or_around_it_or_the_repository(call, tmp_path, results):
    status, _, errors = call(publish, results=tmp_path / results)
    assert status == 2
    assert errors.endswith("holds the run or the repository, or lies in the run: name another folder\n")


def test_a_run_ends_with_the_comparison(monkeypatch, call, run, tmp_path):
    monkeypatch.setattr(reproduce, "run_jobs", lambda *_, **__: 0)
    results = tmp_path / "none"
    monkeypatch.setattr(reproduce, "committed_results", lambda _: results)
    status, said, _ = call(reproduce, results=None)
    absent = "there are no committed results of embedded to compare with: 'make publish STUDY=embedded' makes"
    assert (status, said.splitlines()[-1]) == (0, f"{absent} a finished run so")
    shutil.copytree(run / "records", results / "records")
    _, said, _ = call(reproduce, results=None)
    assert re.fullmatch(r"compared with the committed results: (\d+) of \1 numbers agree to .*", said.splitlines()[-1])
    start = json.loads((results / "records" / "pruning-n6.json").read_text())["metrics"]["start"]
    change(run / "records" / "pruning-n6.json", "metrics", "start", by=lambda start: start + 1)
    status, said, _ = call(reproduce, results=None)
    assert (status, f"  pruning-n6 start: {start + 1}, committed {start}, tolerance 0\n" in said) == (0, True)
    change(results / "records" / "pruning-n6.json", "schema", by=lambda number: number - 1)
    status, said, _ = call(reproduce, results=None)
    told = f"not compared with the committed results: {results}/records holds records of schema {SCHEMA - 1}, this "
    assert (status, said.splitlines()[-1]) == (0, f"{told}version writes {SCHEMA}")


def test_verify_tells_by_its_status_whether_a_run_agrees(call, run, tmp_path):
    assert call(verify)[::2] == (
        2,
        "error: there are no committed results of embedded to compare with: "
        "'make publish STUDY=embedded' makes a finished run so\n",
    )
    shutil.copytree(run / "records", tmp_path / "results" / "records")
    assert call(verify)[0] == 0
    (run / "records" / "pruning-n6.json").unlink()
    status, said, _ = call(verify)
    assert (status, "  pruning-n6: only committed\n" in said) == (1, True)
    shutil.rmtree(run / "records")
    assert call(verify)[::2] == (2, f"error: {run}/records holds no records: run 'make reproduce' first\n")


class Jobs:
    """In the place of Snakemake: a record is the committed one. `status` is what it ends with, `asked` what was run."""

    def __init__(self):
        self.status, self.asked, self.change = 0, [], lambda record: None

    def __call__(self, study, *, run, jobs):
        self.asked.append(jobs)
        todo = [*jobs]
        for name in todo:
            todo += NEEDS[name]
            self.make(run, name)
        return self.status

    def make(self, run, name):
        path = reproduce.Path(run) / "records" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        record = json.loads((COMMITTED / "records" / path.name).read_text())
        self.change(record)
        path.write_text(json.dumps(record))


@pytest.fixture
def jobs(monkeypatch, run):
    """Jobs are run again in the folder of the run, which is empty."""
    shutil.rmtree(run)
    stand_in = Jobs()
    monkeypatch.setattr(reproduce, "run_jobs", stand_in)
    return stand_in


def test_jobs_that_are_drawn_run_with_what_they_need_and_a_seed_draws_them_again(call, jobs, run):
    status, said, _ = call(verify, "--jobs", 2, results=COMMITTED)
    seed, drawn = re.match(r"seed (\d+) draws (.*): they run in .*, with what they need\n", said).groups()
    assert status == 0
    assert "numbers agree to the last bit" in said
    assert drawn.split(", ") == jobs.asked[0]
    assert len({*jobs.asked[0]}) == 2
    (run / "stale").touch()
    call(verify, "--jobs", 2, "--seed", seed, results=COMMITTED)
    assert jobs.asked[1] == jobs.asked[0]
    assert not (run / "stale").exists()  # finished before, so from the start
    drawn = {tuple(jobs.asked[-1]) for _ in range(8) if call(verify, "--jobs", 2, results=COMMITTED)[0] == 0}
    assert len(drawn) > 1
    assert "results" not in {name for names in jobs.asked for name in names}


def test_an_interrupted_verification_goes_on_with_the_same_jobs(call, jobs, run):
    jobs.status = 130
    assert call(verify, "--jobs", 3, results=COMMITTED)[0] == 130
    (run / "half").touch()
    call(verify, "--jobs", 3, results=COMMITTED)
    jobs.status = 0
    assert call(verify, "--jobs", 3, results=COMMITTED)[0] == 0
    assert jobs.asked[0] == jobs.asked[1] == jobs.asked[2]
    assert (run / "half").exists()


def test_a_job_that_gives_something_else_is_named(call, jobs):
    jobs.change = lambda record: record["provenance"].update(threads=7)
    assert call(verify, "--jobs", 1, results=COMMITTED)[0] == 0
    jobs.change = lambda record: record["params"].update(seed=7)
    status, said, _ = call(verify, "--jobs", 1, "--seed", 0, results=COMMITTED)
    assert status == 1
    assert ": made with other parameters, seed\n" in said


def test_committed_records_of_other_keys_are_told_in_a_sentence(call, jobs, run, tmp_path):
    results = shutil.copytree(COMMITTED, tmp_path / "results")
    change(results / "records" / "pruning-n6.json", "params", "generation_batch", by=lambda rows: rows + 1)
    status, _, errors = call(verify, "--jobs", 1)
    assert (status, jobs.asked, run.exists()) == (2, [], False)
    assert errors.startswith("error: the committed pruning-n6 was made with another generation_batch than study 'embe")
    assert errors.count("\n") == 1


def test_the_folder_of_another_run_is_not_emptied(call, jobs, run):
    run.mkdir()
    (run / "study.txt").write_text("of another study")
    status, _, errors = call(verify, "--jobs", 1, results=COMMITTED)
    assert (status, jobs.asked) == (2, [])
    assert "holds another run: rename the study that it is of, or move it away" in errors
    assert (run / "study.txt").exists()


def test_a_number_of_jobs_below_one_is_refused(call, jobs):
    assert call(verify, "--jobs", -1, results=COMMITTED)[::2] == (
        2, "error: --jobs is -1: ask for at least 1, or leave it out to compare a run as it is\n"
    )  # fmt: skip


def test_jobs_are_targets_of_snakemake(monkeypatch, tmp_path):
    commands = []

    def snakemake(command, **_):
        commands.append(command)
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduce.subprocess, "Popen", snakemake)
    with pytest.raises(KeyboardInterrupt):
        reproduce.run_jobs("embedded", run=str(tmp_path), jobs=["pruning-n2", "similarity"])
    ((_, _, program, *rest),) = commands
    assert (program, rest[:2]) == (
        "snakemake",
        [f"{tmp_path}/records/{name}.json" for name in ("pruning-n2", "similarity")],
    )
