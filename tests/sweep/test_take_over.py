"""Which saved jobs a run takes over in another clone, which run again for their files, and which as if new."""

import json
import shutil

import nbformat
import pytest

from sdd_utils.base.files import write_text
from sdd_utils.base.provenance import versions
from sdd_utils.base.records import NEEDS, step_digest
from sdd_utils.models import store
from sdd_utils.study.jobs import study_jobs
from sdd_utils.study.paths import Run, committed_results
from sdd_utils.study.schema import load_study
from sdd_utils.sweep import take_over

STUDY = load_study("embedded")
JOBS = {job.name: job for job in study_jobs(STUDY)}
TUNED, OTHER = (f"finetuning-n6-{name}-40rows-s1" for name in ("pydoc", "gsm_symbolic"))
EMBEDDED = "embedding_similarity-n6-pydoc-s0"
OF_SEED_1 = {name for name in JOBS if name.endswith("-s1")}
FILES_OF = ["pruning-n0", "pruning-n6", "distillation-gsm_symbolic", "distillation-pydoc"]


def divided(*missing):
    return take_over.divide(JOBS, usable={*JOBS} - {*missing, "results"})


def test_of_all_jobs_none_runs_again_but_that_of_tables_and_figures():
    assert divided() == ([], [name for name in JOBS if name != "results"])


@pytest.mark.parametrize("missing", [TUNED, "merging-n6-gsm_symbolic+pydoc-s1", "embedding_similarity-n6-pydoc-s1"])
def test_what_lies_behind_a_missing_job_runs_and_the_trainings_whose_adapters_it_reads(missing):
    again, taken = divided(missing)
    assert again == FILES_OF
    assert {*taken} == {*JOBS} - OF_SEED_1 - {*FILES_OF, "results"}


def test_only_the_files_that_are_read_are_made_again_and_none_of_the_runs_own_jobs_is():
    assert take_over.divide(JOBS, usable={"similarity", "pruning-n0"}) == (["pruning-n0"], ["similarity"])
    assert take_over.divide(JOBS, usable={*JOBS} - {"similarity"}) == (FILES_OF[2:], [])
    own = {*FILES_OF, TUNED, OTHER}
    left = OF_SEED_1 | {"results"}
    taken = [name for name in JOBS if name not in own | left]
    assert take_over.divide(JOBS, usable={*JOBS} - left, own=own) == ([], taken)


def test_no_saved_job_is_taken_over_that_lies_behind_one_of_the_runs_own():
    saved = {*JOBS} - {"results"}
    again, taken = take_over.divide(JOBS, usable=saved, own={*FILES_OF, TUNED})
    assert again == []
    assert {*taken} == saved - OF_SEED_1 - {*FILES_OF}  # the merge is made anew, and so is its other parent
    assert take_over.divide(JOBS, usable=saved, own={*FILES_OF}) == (
        [],
        [name for name in JOBS if name in saved - {*FILES_OF}],
    )
    behind = {"similarity", "distillation-gsm_symbolic", "distillation-pydoc"}  # the pruned model is another one here
    assert {*take_over.divide(JOBS, usable=saved - {"pruning-n6"}, own={"pruning-n0", "pruning-n6"})[1]} <= behind


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """The committed embedded study as saved jobs that this code made on this machine."""
    place = Run(tmp_path / "saved")
    for path in (committed_results("embedded") / "records").glob("*.json"):
        record = json.loads(path.read_text())
        if record["step"] != "results":
            record["provenance"] |= {"code": step_digest(record["step"]), "versions": versions()}
            write_text(place.records / path.name, json.dumps(record))
            executed = nbformat.v4.new_notebook(metadata={"papermill": {"input_path": "/a/place"}})
            write_text(place.notebooks / f"{path.stem}.ipynb", nbformat.writes(executed))
    write_text(place.generated("pydoc-distilled"), "")
    made = json.loads((place.records / "pruning-n0.json").read_text())
    monkeypatch.setattr(store, "weights_digest", lambda _: made["metrics"]["weights"])
    monkeypatch.setattr(take_over.precision, "dtype_name", lambda: made["provenance"]["dtype"])
    return place


def change(place, name, *, within, **values):
    path = place.records / f"{name}.json"
    record = json.loads(path.read_text())
    record[within] |= values
    path.write_text(json.dumps(record))


def test_a_job_that_was_made_otherwise_is_not_taken_over_and_the_reason_is_told(saved, capsys):
    everything = {name for name in JOBS if name != "results"}
    assert take_over.usable_jobs(STUDY, saved=saved) == everything
    change(saved, TUNED, within="params", learning_rate=1.0)
    change(saved, "pruning-n6", within="metrics", weights="0" * 64)
    change(saved, "similarity", within="provenance", dtype="float16")
    change(saved, "distillation-pydoc", within="provenance", code="0" * 64)
    change(saved, "distillation-gsm_symbolic", within="provenance", versions=versions() | {"torch": "1.0"})
    change(saved, EMBEDDED, within="metrics", engine="vllm 0.1")
    (saved.records / "pruning-n0.json").write_text("{")
    capsys.readouterr()
    assert take_over.usable_jobs(STUDY, saved=saved) == everything - {TUNED, "similarity", EMBEDDED, *FILES_OF}
    told = capsys.readouterr().out
    assert told.startswith(f"{len(everything) - 7} of {len(everything)} saved jobs are as they would be made here\n")
    reasons = ["another learning_rate", "another original model", "made in float16", "other code", "complete JSON"]
    for reason in [*reasons, "another version of torch", "another engine"]:
        assert told.count(reason) == 1, reason


def taken_over(saved, run, *, makes=True, study=STUDY):
    """Take over, where a job that runs again gives what was saved; returns the jobs that ran again."""
    asked = []

    def make_again(names):
        asked.extend(names)
        if not makes:
            raise KeyboardInterrupt
        for name in names:
            write_text(run.records / f"{name}.json", (saved.records / f"{name}.json").read_text() + " ")
        return 0, False

    assert take_over.take_over(study, run=run, saved=saved, make_again=make_again) == (0, False)
    return asked


def check_order(run):
    """Every record is at least as new as those that it needs and as what says that the model was there."""
    made = {path.stem: path.stat().st_mtime_ns for path in run.records.glob("*.json")}
    assert min(made.values()) >= (run.folder / "model.found").stat().st_mtime_ns
    assert all(made[name] >= max([made[need] for need in JOBS[name].needs], default=0) for name in made)
    return made


def test_records_are_copied_in_the_order_of_their_needs_also_after_kills(saved, tmp_path):
    run = Run(tmp_path / "run")
    for path in saved.records.glob(f"{TUNED}*"):
        path.unlink()
    with pytest.raises(KeyboardInterrupt):
        taken_over(saved, run, makes=False)
    assert taken_over(saved, run) == FILES_OF
    assert check_order(run).keys() == {*JOBS} - OF_SEED_1 - {"results"}
    assert run.generated("pydoc-distilled").is_file()
    for name in (TUNED, OTHER):  # then these are made, and the next start comes
        write_text(run.records / f"{name}.json", "of this run")
    assert taken_over(saved, run) == []
    assert check_order(run).keys() == {*JOBS} - OF_SEED_1 - {"results"} | {TUNED, OTHER}
    assert (run.records / f"{TUNED}.json").read_text() == "of this run"


def test_what_was_taken_over_leaves_when_a_key_changes(saved, tmp_path):
    run = Run(tmp_path / "run")
    assert taken_over(saved, run) == []
    other = STUDY.model_copy(update={"learning_rate": 1e-3})
    assert taken_over(saved, run, study=other) == FILES_OF
    assert {path.stem for path in run.records.glob("*.json")} == {"similarity", *FILES_OF}


def test_texts_that_came_out_otherwise_stop_the_run(saved, tmp_path):
    run = Run(tmp_path / "run")
    (saved.records / f"{TUNED}.json").unlink()

    def make_again(names):
        for name in names:
            write_text(run.records / f"{name}.json", (saved.records / f"{name}.json").read_text())
        change(run, "distillation-pydoc", within="metrics", fingerprints={})
        return 0, False

    told = r"distillation-pydoc was made again with other fingerprints .* delete .*saved"
    for _ in range(2):  # and so does the next start
        with pytest.raises(ValueError, match=told):
            take_over.take_over(STUDY, run=run, saved=saved, make_again=make_again)
        assert not (run.records / f"{OTHER}.json").exists()


def test_jobs_that_are_older_than_what_they_need_are_not_saved(saved, tmp_path):
    run = Run(tmp_path / "run")
    taken_over(saved, run)
    again = tmp_path / "again"
    assert take_over.save(run, saved=Run(again), study=STUDY) == len(JOBS) - 1
    assert (again / "generated" / "pydoc-distilled.jsonl").is_file()
    assert not any("/a/place" in path.read_text() for path in (again / "notebooks").iterdir())
    (run.records / f"{TUNED}.json").touch()
    behind = {"merging-n6-gsm_symbolic+pydoc-s1", "embedding_similarity-n6-pydoc-s1"}
    assert take_over.save(run, saved=Run(again), study=STUDY) == len(JOBS) - 1 - len(behind)
    assert {path.stem for path in (again / "records").iterdir()} == {*JOBS} - behind - {"results"}
    assert {path.stem for path in (again / "notebooks").iterdir()} == {*JOBS} - behind - {"results"}


def test_saving_adds_to_what_was_saved_and_takes_the_place_of_nothing_else(saved, tmp_path):
    run = Run(tmp_path / "run")
    shutil.copytree(saved.records, run.records)
    shutil.copytree(saved.notebooks, run.notebooks)
    for path in run.records.glob("[!s]*"):
        path.unlink()
    assert take_over.save(run, saved=saved, study=STUDY) == 1  # similarity: the rest of the saved ones stay
    assert len(list(saved.records.iterdir())) == len(JOBS) - 1
    with pytest.raises(ValueError, match="the run's own"):
        take_over.save(run, saved=run, study=STUDY)
    path = saved.records / "pruning-n0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"study": "another"}))
    with pytest.raises(ValueError, match="holds jobs of the study another: name another folder"):
        take_over.save(run, saved=saved, study=STUDY)


def test_the_steps_that_a_step_needs_are_those_of_its_jobs():
    needs = {}
    for name in ("embedded", "selection", "deployment"):
        jobs = {job.name: job for job in study_jobs(load_study(name))}
        for job in jobs.values():
            needs.setdefault(job.step, set()).update(jobs[need].step for need in job.needs)
    del needs["results"]
    assert {step: needs[step] - {step} for step in needs} == {step: {*NEEDS[step]} for step in NEEDS}
