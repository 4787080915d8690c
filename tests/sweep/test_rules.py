"""A rule's jobs run again when code that makes their numbers is edited, and only then."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from sdd_utils import ROOT
from sdd_utils.base.records import NOTEBOOKS
from sdd_utils.study.jobs import study_jobs
from sdd_utils.study.schema import load_study

STUDY = "deployment"  # which has every step but one
AFTER_TUNING = {"merging", "embedding_similarity", "speculative_decoding", "quantization", "results"}
# By the files that are edited together, the rules whose jobs run again: those that import them or read their records.
RUN_AGAIN = {
    "sdd_utils/steps/similarity.py": set(NOTEBOOKS) - {"distillation"},
    "sdd_utils/steps/layer_selection.py": set(NOTEBOOKS) - {"distillation"},
    "sdd_utils/steps/cut_models.py": {"selection", "results"},
    "sdd_utils/steps/pruning.py": {"pruning", "selection", "finetuning"} | AFTER_TUNING,
    "sdd_utils/steps/answer_check.py": {"distillation", "finetuning"} | AFTER_TUNING,
    "sdd_utils/tasks/facts.yaml": {"pruning", "selection", "finetuning"} | AFTER_TUNING,
    "sdd_utils/steps/lora_training.py": {"finetuning"} | AFTER_TUNING,
    "sdd_utils/steps/teacher.py": {"distillation", "finetuning"} | AFTER_TUNING,
    "sdd_utils/engine/tensor_stream.py sdd_utils/steps/speculation.py": {"merging", "speculative_decoding", "results"},
    "sdd_utils/steps/answer_similarity.py": {"embedding_similarity", "results"},
    "sdd_utils/steps/quantization.py": {"quantization", "results"},
    "sdd_utils/base/precision.py": set(NOTEBOOKS),
    "sdd_utils/base/choices.py": {"pruning", "selection", "finetuning"} | AFTER_TUNING,
    "sdd_utils/report/tables.py": {"results"},
    "notebooks/03_self_data_distillation.ipynb": {"distillation", "finetuning"} | AFTER_TUNING,
    "sdd_utils/base/files.py sdd_utils/sweep/plan.py sdd_utils/study/rules.py": set(),
}


def dry_run(repository, *arguments, study=STUDY, **environment):
    command = [sys.executable, "-m", "snakemake", "--nolock", "--cores", "1", "--quiet", "host", *arguments]
    command += ["--config", f"study={study}"]
    done = subprocess.run(
        command, cwd=repository, env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A copy of the code in which every job of the study counts as done; here it has every kind of job."""
    folder = tmp_path_factory.mktemp("repository")
    for name in ("sdd_utils", "notebooks", "studies"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Snakefile", folder)
    study = folder / "studies" / f"{STUDY}.yaml"
    study.write_text(study.read_text() + "selection: [angular, random]\n")
    run = folder / "work" / STUDY
    (run / "records").mkdir(parents=True)
    (run / "model.found").touch()
    for job in study_jobs(load_study(str(study))):
        (run / "records" / f"{job.name}.json").write_text("{}")
        if job.step == "pruning":
            checkpoint = run / "checkpoints" / job.name.removeprefix("pruning-")
            checkpoint.mkdir(parents=True)
            (checkpoint / "manifest.json").write_text("{}")
    dry_run(folder, "--touch")
    return folder


def test_every_rule_has_a_file_that_reruns_it_and_one_that_does_not():
    assert set(NOTEBOOKS) == set.union(*RUN_AGAIN.values())
    for step in NOTEBOOKS:
        assert any(step not in again for again in RUN_AGAIN.values())


@pytest.mark.parametrize("edited", RUN_AGAIN)
def test_editing_files_runs_the_jobs_again_that_depend_on_them(repository, edited):
    kept = {path: (path.read_text(), path.stat()) for path in map(repository.joinpath, edited.split())}
    try:
        for path, (text, _) in kept.items():
            path.write_text(text.replace('"metadata"', '"metadata" ', 1) if path.suffix == ".ipynb" else text + "\n#\n")
        assert planned(repository) == RUN_AGAIN[edited]
    finally:
        for path, (text, times) in kept.items():
            path.write_text(text)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def planned(repository, *arguments, **environment):
    """The rules whose jobs a dry run would start."""
    printed = dry_run(repository, "--dry-run", "--quiet", "rules", *arguments, **environment)
    return set(re.findall(r"^(\w+) +\d+$", printed, re.M)) - {"total", "all"}


def test_a_deleted_record_is_made_again(repository):
    record = repository / "work" / STUDY / "records" / "merging-n6-gsm_symbolic+pydoc-s0.json"
    kept = record.read_text()
    record.unlink()
    assert "merging" in planned(repository)
    record.write_text(kept)
    dry_run(repository, "--touch")
    assert planned(repository) == set()


def test_a_study_with_a_point_in_its_name_has_folders_of_its_own(repository):
    printed = dry_run(repository, "--dry-run", study="paper-llama3.1-8b")
    assert "work/paper-llama3.1-8b/records/similarity.json" in printed
