"""The one list of jobs: each behind those that it needs, named by its record, with parameters its notebook takes."""

import pytest

from sdd_utils.base.records import NOTEBOOKS
from sdd_utils.study.jobs import other_keys, study_jobs
from sdd_utils.study.notebook_parameters import check_parameters, defaults_of, parameters_of
from sdd_utils.study.schema import Study, load_study

STUDIES = ("deployment", "embedded", "gemma3-270m", "healing", "laptop", "paper-llama3.1-8b", "paper-mistral-7b")
STUDIES += ("qwen2.5-coder-0.5b", "selection", "laptop-pilot", "laptop-healing", "laptop-smollm2")


@pytest.mark.parametrize("name", STUDIES)
def test_a_job_stands_behind_those_that_it_needs_and_has_a_name_of_its_own(name):
    done, study = [], load_study(name)
    for job in study_jobs(study):
        assert job.name not in done
        assert set(job.needs) <= set(done)
        assert job.name.split("-")[0] == job.step
        done.append(job.name)


def test_every_step_is_a_job_of_some_study():
    assert set(NOTEBOOKS) == {job.step for name in STUDIES for job in study_jobs(load_study(name))}


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


def test_drafts_are_all_pruned_models_and_those_of_the_main_comparison():
    fewer = {"rows": [8], "block_sizes": [6], "data_sets": ["pydoc"]}
    study = Study(**load_study("deployment").model_dump() | {"scaling": fewer})
    *_, job, _, results = study_jobs(study)
    assert (job.name, job.parameters) == ("speculative_decoding", {"draft_tokens": 4, "draft_prompts": 16})
    assert [name for name in job.needs if "pruning" in name] == [f"pruning-n{n}" for n in (0, 3, 6, 9, 12, 15)]
    tuned = {name for name in job.needs if "finetuning" in name}
    assert tuned == {f"finetuning-n6-{name}-40rows-s{seed}" for name in study.data_sets for seed in (0, 1, 2)}
    assert job.name in results.needs


def test_quantised_models_are_the_original_the_pruned_and_those_of_the_first_seed():
    job = study_jobs(load_study("deployment"))[-2]
    assert (job.name, job.parameters) == ("quantization", {"formats": ["int8", "nf4"]})
    tuned = [f"finetuning-n6-{name}-40rows-s0" for name in ("gsm_symbolic", "pydoc")]
    assert job.needs == ("pruning-n0", "pruning-n6", *tuned)


def test_other_strategies_are_jobs_only_where_they_are_asked_for():
    study = load_study("embedded")
    assert not [job for job in study_jobs(study) if job.step == "selection"]
    several = study.model_copy(update={"selection": ["angular", "random"], "block_sizes": [4, 6]})
    jobs = {job.name: job for job in study_jobs(several) if job.step == "selection"}
    assert list(jobs) == ["selection-n4", "selection-n6"]
    assert jobs["selection-n4"].needs == ("similarity", "pruning-n0")


def test_keys_that_a_record_was_made_with_otherwise_are_named():
    study = load_study("embedded")
    job = {job.name: job for job in study_jobs(study)}["pruning-n6"]
    made = parameters_of(study, notebook="02_pruning") | job.parameters | {"study": "embedded", "run": "elsewhere"}
    assert other_keys(made, job=job, study=study) == []
    changed = made | {"answer_tokens": made["answer_tokens"] + 1, "block_size": 2}
    assert other_keys(changed, job=job, study=study) == ["answer_tokens", "block_size"]
    del changed["answer_tokens"]  # a key that came later, whose default is what was
    assert other_keys(changed, job=job, study=study) == ["block_size"]
