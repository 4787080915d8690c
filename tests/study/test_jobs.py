"""The one list of jobs: each behind those that it needs, named by its record, with parameters its notebook takes."""

import pytest

from sdd_utils.base.records import NOTEBOOKS
from sdd_utils.study.jobs import other_keys, study_jobs
from sdd_utils.study.notebook_parameters import check_parameters, defaults_of, parameters_of
from sdd_utils.study.schema import load_study

STUDIES = ("embedded", "laptop", "gemma3-270m", "qwen2.5-coder-0.5b", "paper-llama3.1-8b", "paper-mistral-7b")


@pytest.mark.parametrize("name", STUDIES)
def test_a_job_stands_behind_those_that_it_needs_and_has_a_name_of_its_own(name):
    done, study = [], load_study(name)
    for job in study_jobs(study):
        assert job.name not in done
        assert set(job.needs) <= set(done)
        assert job.name.split("-")[0] == job.step
        done.append(job.name)
    without = set() if study.merge_pairs else {"merging"}
    assert set(NOTEBOOKS) - without == {name.split("-")[0] for name in done}


@pytest.mark.parametrize("name", STUDIES)
def test_a_job_gives_its_notebook_only_parameters_that_it_takes(name):
    study = load_study(name)
    for job in study_jobs(study):
        notebook = NOTEBOOKS[job.step]
        check_parameters(notebook, defaults_of(notebook) | parameters_of(study, notebook=notebook) | job.parameters)


def test_pruned_models_wait_for_the_original_and_distillation_for_nothing():
    jobs = {job.name: job for job in study_jobs(load_study("embedded"))}
    assert jobs["pruning-n0"].needs == ("similarity",)
    assert jobs["pruning-n6"].needs == ("similarity", "pruning-n0")
    assert jobs["distillation-pydoc"].needs == ()
    assert jobs["finetuning-n6-pydoc-40rows-s0"].needs == ("pruning-n6", "distillation-pydoc")
    assert set(jobs["results"].needs) == set(jobs) - {"results"}


def test_keys_that_a_record_was_made_with_otherwise_are_named():
    study = load_study("embedded")
    job = {job.name: job for job in study_jobs(study)}["pruning-n6"]
    made = parameters_of(study, notebook="02_pruning") | job.parameters | {"study": "embedded", "run": "elsewhere"}
    assert other_keys(made, job=job, study=study) == []
    changed = made | {"answer_tokens": made["answer_tokens"] + 1, "block_size": 2}
    assert other_keys(changed, job=job, study=study) == ["answer_tokens", "block_size"]
    del changed["answer_tokens"]  # a key that came later, whose default is what was
    assert other_keys(changed, job=job, study=study) == ["block_size"]
