"""The studies that read from a hub, end to end at a reduced size: real data sets and stock tasks, small models."""

import json
import os
import subprocess
import sys

import pytest
import tiny_models
import yaml

from sdd_utils import ROOT
from sdd_utils.study.schema import load_study

LAPTOP = {
    "base": "laptop", "model": "smollm2-135m-instruct",
    "data_sets": {"gsm8k": 4, "alpaca": 4}, "calibration_rows": 4, "block_sizes": [4], "finetune_block_sizes": [4],
    "rewrite_tokens": 32, "rewrite_attempts": 1, "seeds": [1], "lora_rank": 4, "merge_pairs": [],
    "tasks": {"arc_easy": 6, "winogrande": 4, "gsm8k": 1, "gsm8k_gold": 2}, "shots": {"winogrande": 2, "gsm8k": 1},
    "answer_prompts": 2, "answer_tokens": 8, "arms": ["sft", "self_data_ft"], "capacities": {},
}  # fmt: skip
PAPER = {
    # The set that stands in for OpenMathInstruct-1 has the same columns, answers and source.
    "data_sets": {"alpaca": 4, "openmathinstruct2": 4},
    "calibration_rows": 4, "block_sizes": [10], "finetune_block_sizes": [10], "rewrite_tokens": 8,
    "rewrite_attempts": 1, "lora_rank": 2,
    "scaling": {"rows": [2], "block_sizes": [10], "data_sets": ["alpaca"]}, "capacities": {},
    "tasks": {"arc_challenge": 2, "hellaswag": 2, "truthfulqa_mc2": 2, "winogrande": 2, "gsm8k": 1},
    "in_domain": {}, "slerp_t": [0.5], "merge_pairs": [["openmathinstruct2", "alpaca"]],
    "answer_prompts": 2, "answer_tokens": 4,
}  # fmt: skip
# What does not depend on the architecture runs with one of them.
FACTS = {"tasks": {"facts": 4}, "shots": {}, "chat_tasks": [], "in_domain": {}}  # what no other data set is needed for
ONE_SET = PAPER | {"data_sets": {"alpaca": 4}, "merge_pairs": [], "scaling": {}}
SHOTS = {"arc_challenge": 25, "hellaswag": 10, "truthfulqa_mc2": 0, "mmlu": 5, "winogrande": 5, "gsm8k": 5}


@pytest.fixture(scope="module")
def online(hub, tmp_path_factory):
    """Environment of a machine that reaches the hub, with a cache of its own."""
    return os.environ | {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path_factory.mktemp("hf")), "HF_HUB_OFFLINE": "0"}


def run(module, *arguments, environment, seconds=1500):
    command = [sys.executable, "-m", f"sdd_utils.sweep.{module}", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )


def run_study(values, folder, environment):
    """Fetch everything first, then run the whole study without a network; returns its records by file name."""
    (folder / "mine.yaml").write_text(yaml.safe_dump(values))
    fetched = run("prefetch", folder / "mine.yaml", environment=environment)
    assert fetched.returncode == 0, fetched.stdout + fetched.stderr[-2000:]
    offline = environment | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = run("reproduce", folder / "mine.yaml", "--run", folder / "run", environment=offline)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return {path.stem: json.loads(path.read_text()) for path in (folder / "run" / "records").glob("*.json")}


def scores_of(record):
    return record["metrics"]["scores"]


def test_reduced_laptop_study_runs_without_network_once_fetched(online, tmp_path):
    records = run_study(LAPTOP, tmp_path, online)
    scores = scores_of(records["pruning-n0"])
    assert {task: (score["n"], score["shots"], score["metric"]) for task, score in scores.items()} == {
        "arc_easy": (6, 0, "acc_norm"), "winogrande": (4, 2, "acc"), "gsm8k": (1, 1, "exact_match"),
        "gsm8k_gold": (2, 0, "gold_bits_per_byte"),
    }  # fmt: skip
    assert scores["gsm8k"]["filter"] == "strict-match"
    assert {"exact_match,strict-match", "exact_match,flexible-extract"} <= set(scores["gsm8k"]["all"])
    assert (
        scores["arc_easy"]["accuracy"]["value"] > 0.3
    )  # the real model, on real questions, is above chance even on six
    assert "finetuning-n4-gsm8k-4rows-s1" in records
    assert records["distillation-alpaca"]["metrics"]["dropped"]["too long"] > 0


@pytest.mark.parametrize(
    ("name", "family", "reduced", "last"),
    [
        ("paper-llama3.1-8b", "llama", PAPER, "merging-n10-openmathinstruct2+alpaca-s0"),
        ("paper-mistral-7b", "mistral", ONE_SET, "embedding_similarity-n10-alpaca-s0"),
    ],
)
def test_paper_studies_run_on_a_tiny_model_of_their_architecture(name, family, reduced, last, online, tmp_path):
    model = tiny_models.write(family, tmp_path / family)
    shots = {task: SHOTS[task] for task in reduced["tasks"]}
    full = load_study(name)
    assert full.shots == SHOTS
    below = {key: value for key, value in vars(full).items() if key not in reduced} | reduced
    records = run_study(below | {"model": str(model), "shots": shots}, tmp_path, online)
    scores = scores_of(records["pruning-n10"])
    assert {task: score["shots"] for task, score in scores.items()} == shots
    metrics = {"arc_challenge": "acc_norm", "hellaswag": "acc_norm", "truthfulqa_mc2": "acc", "winogrande": "acc"}
    metrics |= {"gsm8k": "exact_match"}
    assert {task: score["metric"] for task, score in scores.items()} == metrics
    assert last in records
    assert ("finetuning-n10-alpaca-2rows-s0" in records) == bool(reduced["scaling"])


def test_mmlu_is_all_its_subjects(online, tmp_path):
    """On its own, as it loads 57 data sets for every model."""
    model = tiny_models.write("llama", tmp_path / "llama")
    settings = {"tasks": {"mmlu": 1}, "shots": {"mmlu": 5}, "chat_tasks": [], "batch_size": 8}
    code = "import json; from sdd_utils.steps import evaluation\n"
    code += f"print(json.dumps(evaluation.evaluate_model({str(model)!r}, **{settings})['mmlu']))"
    done = subprocess.run([sys.executable, "-c", code], env=online, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    score = json.loads(done.stdout.splitlines()[-1])
    assert (score["n"], score["shots"], score["metric"]) == (57, 5, "acc")


def test_a_model_comes_from_the_hub_and_a_broken_download_goes_on(online, tmp_path):
    name = os.environ.get("SDD_TEST_HUB_MODEL")
    if not name:
        pytest.skip("set SDD_TEST_HUB_MODEL to the id of a small model on that hub to run this test")
    environment = online | {"HF_HOME": str(tmp_path / "hf")}
    mine = LAPTOP | FACTS | {"model": name}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine))
    unreachable = run(
        "prefetch", tmp_path / "mine.yaml", environment=environment | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    )
    assert unreachable.returncode == 2
    assert "run the same command again, what has arrived is kept" in unreachable.stderr
    assert len(unreachable.stderr.strip().splitlines()[-1].split(". ")) == 1
    fetched = run("prefetch", tmp_path / "mine.yaml", environment=environment)
    assert fetched.returncode == 0, fetched.stderr
    unknown = tmp_path / "unknown.yaml"
    unknown.write_text(yaml.safe_dump(LAPTOP | {"model": "nobody/nothing"}))
    told = run("prefetch", unknown, environment=environment)
    assert (told.returncode, "is not on the hub: check the spelling" in told.stderr) == (2, True)


def test_a_gguf_file_comes_from_the_hub_and_then_needs_no_network(online, tmp_path):
    name = os.environ.get("SDD_TEST_HUB_GGUF")
    if not name:
        pytest.skip("set SDD_TEST_HUB_GGUF to org/name:file.gguf of a small model on that hub to run this test")
    environment = online | {"HF_HOME": str(tmp_path / "hf")}
    mine = LAPTOP | FACTS | {"model": name}
    mine |= {"block_sizes": [1], "finetune_block_sizes": [1], "merge_pairs": []}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine))
    planned = run("plan", tmp_path / "mine.yaml", environment=environment)
    assert (planned.returncode, "'make prefetch' first" in planned.stderr) == (2, True)
    fetched = run("prefetch", tmp_path / "mine.yaml", environment=environment)
    assert fetched.returncode == 0, fetched.stderr
    offline = environment | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    planned = run("plan", tmp_path / "mine.yaml", environment=offline)
    assert planned.returncode == 0, planned.stderr
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine | {"model": name.partition(":")[0] + ":other.gguf"}))
    told = run("prefetch", tmp_path / "mine.yaml", environment=environment)
    assert told.returncode == 2
    assert f"has no file 'other.gguf', it has {name.partition(':')[2]}" in told.stderr
