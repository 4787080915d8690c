"""The plan's memory is within 1.3 times of what was measured, and the sweep runs side by side only what fits."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import wide_vocabulary
from sdd_utils import ROOT
from sdd_utils.base.records import NOTEBOOKS
from sdd_utils.study.jobs import study_jobs
from sdd_utils.study.schema import load_study
from sdd_utils.sweep import memory, plan, reproduce

RECORDS = ROOT / "results" / "embedded" / "records"
WIDE = json.loads(wide_vocabulary.OUT.read_text())
KERNEL = 90  # MB that a notebook's kernel and its figures add to a plain process
BOUND = 1.3


def embedded(**changes):
    return load_study("embedded").model_copy(update=changes)


@pytest.fixture(autouse=True, scope="module")
def as_measured():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDD_DTYPE", "bfloat16")
        yield


@pytest.fixture(scope="module")
def planned(as_measured):
    return plan.memory_of_jobs(embedded())


@pytest.mark.parametrize("name", [path.stem for path in sorted(RECORDS.glob("*.json"))])
def test_memory_of_every_job_is_that_of_its_committed_record(planned, name):
    measured = json.loads((RECORDS / f"{name}.json").read_text())["provenance"]["peak_rss_mb"]
    assert 1 / BOUND < planned[name] / measured < BOUND


# Merges were measured when what is between two parents was scored in float32; now it is an adapter in bfloat16.
@pytest.mark.parametrize("step", [step for step in WIDE["peak_rss_mb"] if step != "merging"])
def test_memory_of_a_wide_vocabulary_is_what_was_measured(step, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]} | WIDE["model"]))
    study = embedded(model=str(config), finetune_block_sizes=[4], **WIDE["study"])
    costs, _ = plan.cost_model(study, hardware="cpu-2-cores")
    assert not costs.attends_to_all
    [job, *_] = [
        job
        for job in study_jobs(study)
        if job.step == step and job.parameters.get("block_size", 4) == 4 and job.parameters.get("data_set") != "pydoc"
    ]
    measured = (WIDE["peak_rss_mb"][step] + KERNEL) * 2**20
    assert 1 / BOUND < memory.peak(costs, job) / measured < BOUND


def test_logits_follow_the_vocabulary(tmp_path):
    """Four times the words, all else equal, cost their rows of the embedding and their logits."""
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 8}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True}
    peaks = []
    for words in (65536, 262144):
        (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": words}))
        study = embedded(model=str(tmp_path / "config.json"))
        costs, _ = plan.cost_model(study, hardware="cpu-2-cores")
        peaks.append(memory.scoring(costs, 0) - memory.weights(costs, 0) * 2)
    answer = 235 / 2  # tokens of the longest answer that is scored whole, 16 of them at once
    logits = 16 * answer * (262144 - 65536) * 4
    assert peaks[1] - peaks[0] == pytest.approx(logits, rel=0.01)


def test_float32_takes_more_memory_than_bfloat16(planned, monkeypatch):
    monkeypatch.setenv("SDD_DTYPE", "float32")
    wider = plan.memory_of_jobs(embedded())
    same = ("results", "merging")  # no model, and float32 in either case
    assert all(wider[name] > size for name, size in planned.items() if not name.startswith(same))


def scheduled(tmp_path: Path, total: int) -> list[float]:
    """When the two jobs of a tiny sweep began, with the rules' memory as ours and so much of it in all."""
    snakefile, log = tmp_path / "Snakefile", tmp_path / "log"
    snakefile.write_text(
        f"rule all:\n    input: 'a', 'b'\n"
        f"rule job:\n    output: '{{name,a|b}}'\n    resources: mem_mb=lambda w: 5000\n"
        f"    shell: 'date +%s.%N >> {log}; sleep 2; date +%s.%N >> {log}; touch {{output}}'\n"
    )
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(snakefile), "--directory", str(tmp_path)]
    command += ["--cores", "2", "--resources", f"mem_mb={total}", "--quiet", "all"]
    subprocess.run(command, check=True, capture_output=True)
    return [*map(float, log.read_text().split())]


@pytest.mark.parametrize(("total", "one_at_a_time"), [(12000, False), (8000, True), (3000, True)])
def test_a_machine_that_holds_one_job_runs_one_at_a_time(total, one_at_a_time, tmp_path):
    """Also where a job alone is expected to take more than there is."""
    first, second, third, fourth = scheduled(tmp_path, total)  # begin, end, begin, end, or two beginnings first
    assert (second - first > 1.5 and fourth - third > 1.5) == one_at_a_time


def test_every_rule_with_a_model_reserves_what_the_plan_says_of_its_step():
    """That its function finds every job's number is shown by each dry run, which asks for them."""
    rules = re.findall(r"^rule (\w+):\n(.*?)(?=^rule |\Z)", (ROOT / "Snakefile").read_text(), re.M | re.S)
    reserved = {name: re.findall(r"mem_mb=(.+)", body) for name, body in rules}
    assert {name for name in reserved if name in NOTEBOOKS} == set(NOTEBOOKS)
    for step in set(NOTEBOOKS) - {"results"}:
        assert reserved[step] == [f'memory("{step}")']


def test_memory_is_the_machines_or_its_containers(tmp_path, monkeypatch):
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(reproduce, "MEMORY_LIMITS", [limit])
    found = []
    for text in (None, "max\n", f"{2**60}\n", f"{3 * 2**30}\n"):
        if text:
            limit.write_text(text)
        found.append(reproduce._memory())
    assert found == [machine] * 3 + [3 * 2**30]
