"""Every notebook end to end on a tiny random model, through Snakemake and papermill, killed once on the way."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import nbformat
import pytest
import yaml

from sdd_utils import ROOT
from sdd_utils.base.strategies import STRATEGIES
from sdd_utils.study import notebook_parameters
from sdd_utils.sweep import run_notebook

TINY = {
    "data_sets": {"gsm_symbolic": 6, "pydoc": 6}, "calibration_rows": 4, "calibration_batch": 4,
    "block_sizes": [2], "finetune_block_sizes": [2], "selection": [*STRATEGIES],
    "rewrite_tokens": 8, "rewrite_attempts": 2, "generation_batch": 4, "seeds": [0], "lora_rank": 2,
    "max_length": 2000, "answer_prompts": 3, "answer_tokens": 6, "epochs": 1, "train_on_mixture": True,
    "tasks": {"facts": 12, "gsm_symbolic": 2, "gsm_symbolic_mc": 4, "gsm_symbolic_gold": 3, "pydoc_gold": 3},
    "arms": ["sft", "self_data_ft", "self_generated_ft", "logit_kd", "text_kd", "on_policy"],  # every set and loss
    "scaling": {"rows": [3], "block_sizes": [2], "data_sets": ["pydoc"]},
    "speculation": {"draft_tokens": 2, "draft_prompts": 2},
    "capacities": {
        "lora": [{"rank": 3, "alpha": 6, "targets": "q_proj,v_proj"}], "block_sizes": [2], "data_sets": ["pydoc"]
    },
}  # fmt: skip
EXPECTED = {"similarity": 1, "pruning": 2, "distillation": 2, "finetuning": 4, "merging": 1}
EXPECTED |= {"selection": 1, "embedding_similarity": 2, "speculative_decoding": 1, "results": 1}
if find_spec("bitsandbytes"):
    TINY["quantization"], EXPECTED["quantization"] = {"formats": ["int8"]}, 1  # nf4 wants wider layers


PUBLISHED = {"records", "tables", "figures", "notebooks", "claims.json", "index.html"}


@pytest.fixture(scope="module")
def command(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    values = TINY | {"base": "embedded", "model": str(model_folder)}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    run = [sys.executable, "-m", "sdd_utils.sweep.reproduce", str(folder / "tiny.yaml")]
    return folder, [*run, "--run", str(folder / "run")]


def call(command, module, *arguments):
    """Run another command of the sweep on the study; `published` holds its committed results."""
    folder, run = command
    places = ["--run", str(folder / "run")]
    places += [] if module == "take_over" else ["--results", str(folder / "published")]
    asked = [sys.executable, "-m", f"sdd_utils.sweep.{module}", run[3], *places, *arguments]
    return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)


def run_until_killed(command, wanted):
    """Start the study and kill it, with everything it started, as soon as the wanted file is there."""
    process = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.time() + 400
    while not wanted.exists() and time.time() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_killed_study_goes_on_and_then_has_nothing_to_do(command):
    folder, run = command
    similarity = folder / "run" / "records" / "similarity.json"
    run_until_killed(run, similarity)
    before = similarity.read_bytes()
    stale = similarity.with_name("similarity-of-old.json")  # of a study key that was another then
    stale.write_bytes(before)
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "running over TCP" not in done.stdout + done.stderr  # two jobs that start at once may get the same ports
    assert "| n |" in " ".join(done.stdout.split())
    said = f"there are no committed results of {run[3]} to compare with: 'make publish STUDY={run[3]}' makes "
    assert done.stdout.splitlines()[-1] == f"{said}a finished run so"
    assert {path.name for path in (folder / "run").iterdir()} >= PUBLISHED
    assert not (ROOT / "results" / "tiny").exists()
    assert call(command, "publish").returncode == 0

    records = [json.loads(path.read_text()) for path in (folder / "published" / "records").glob("*.json")]
    assert {step: sum(r["step"] == step for r in records) for step in EXPECTED} == EXPECTED
    stale.unlink()
    assert all(record["study"] == "tiny" and record["provenance"]["threads"] == 1 for record in records)
    tuned = [record for record in records if record["step"] == "finetuning"]
    for record in tuned:
        assert list(record["metrics"]["arms"]) == TINY["arms"]
        assert len({own["training"]["steps"] for own in record["metrics"]["arms"].values()}) == 1
        budgets = {arm: own["budget"] for arm, own in record["metrics"]["arms"].items()}
        assert [arm for arm in budgets if budgets[arm]["teacher_tokens"]] == TINY["arms"][3:]
        assert [arm for arm in budgets if budgets[arm]["generated_tokens"]] == ["on_policy"]
        assert record["provenance"]["training_s"].keys() == set(TINY["arms"])
        assert all(own["fidelity"].keys() == {"gsm_symbolic", "pydoc"} for own in record["metrics"]["arms"].values())
    assert sorted({(r["params"]["lora_rank"], r["params"]["capacity"]) for r in tuned}) == [
        (2, ""), (3, "r3a6-q_proj+v_proj")
    ]  # fmt: skip
    for record in (record["metrics"] for record in records if record["step"] == "distillation"):
        assert {source: of["rows"] for source, of in record["teacher"].items()} == dict.fromkeys(
            ["logit_kd", "text_kd"], 6
        )
    (merge,) = [record["metrics"] for record in records if record["step"] == "merging"]
    assert [point["t"] for point in merge["lerp_points"]] == [0.5]
    assert max(merge["angles"].values()) < 0.5 < max(merge["task_vectors"]["angles"].values())  # radians
    assert not any("norm" in name for name in merge["task_vectors"]["angles"])  # which LoRA does not train
    parents = [r["metrics"]["arms"]["self_data_ft"]["training"] for r in tuned if r["params"]["train_rows"] == 6]
    assert merge["mixture"]["training"]["rows"] == min(parent["rows"] for parent in parents)
    low, high = merge["mixture"]["interval"]  # wide: a random model's average is not clear of 0
    assert low < merge["mixture"]["recovery"] < high
    for similar in (record["metrics"] for record in records if record["step"] == "embedding_similarity"):
        assert len(similar["original_sampled"]["similarities"]) == 3
        assert all(moved["sampled"]["n"] == moved["greedy"]["n"] == 3 for moved in similar["arms"].values())
    compared = {r["params"]["block_size"]: r["metrics"]["fidelity"] for r in records if r["step"] == "pruning"}
    (selected,) = [record["metrics"]["models"] for record in records if record["step"] == "selection"]
    assert [(cut["strategy"], cut["draw"]) for cut in selected if cut["draw"]] == [("random", 1), ("random", 2)]
    assert {cut["strategy"] for cut in selected} == {*STRATEGIES} - {"angular"}
    assert all(cut["fidelity"]["pydoc"]["kl"] > 0 for cut in selected)
    assert {own["kl"] for own in compared[0].values()} == {0}
    assert all(own["kl"] > 0 for own in compared[2].values())
    (drafted,) = [record["metrics"] for record in records if record["step"] == "speculative_decoding"]
    assert len(drafted["drafts"]) == 1 + 2 * len(TINY["arms"])  # those on fewer rows or with other capacities are none
    (decoded,) = drafted["decoding"]
    assert decoded["prompts"] == decoded["same_texts"] == 4
    assert decoded["passes"] == decoded["replayed_passes"]
    assert json.loads(similarity.read_text())["metrics"] == json.loads(before)["metrics"]
    executed = list((folder / "published" / "notebooks").glob("*.ipynb"))
    assert len(executed) == len(records)
    for path in executed:
        cells = nbformat.read(path, as_version=4).cells
        assert not any(out.output_type == "error" for cell in cells for out in cell.get("outputs", []))
        assert str(ROOT) not in path.read_text()
        assert any("image/png" in str(cell.get("outputs")) for cell in cells), path.name
    for name in (
        "recovery.md",
        "scores.csv",
        "budget.md",
        "paper_vs_ours.md",
        "fidelity.md",
        "domains.md",
        "capacities.md",
        "layer_damage.md",
    ):
        assert (folder / "published" / "tables" / name).stat().st_size > 50
    assert "inconclusive" in (folder / "published" / "index.html").read_text()
    assert all(answer["why"] for answer in json.loads((folder / "published" / "claims.json").read_text()))
    assert (folder / "published" / "figures" / "recovery.png").stat().st_size > 1000
    assert {path.name for path in (folder / "published").iterdir()} == PUBLISHED

    (notebook_parameters.NOTEBOOKS / "02_pruning.ipynb").touch()  # touched, not edited
    again = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert "Nothing to be done" in again.stdout + again.stderr
    other = os.environ | {"SDD_DTYPE": "bfloat16"}  # asked for, so nothing of the former precision may stay
    dry = subprocess.run([*run, "--dry-run"], cwd=ROOT, env=other, capture_output=True, text=True, check=True)
    assert all(re.search(rf"^{step} +{count}$", dry.stdout + dry.stderr, re.M) for step, count in EXPECTED.items())


def test_jobs_picked_at_random_give_their_records_again_bit_for_bit(command, tmp_path):
    folder, _ = command
    whole = call(command, "verify")
    assert whole.returncode == 0
    assert "numbers agree to the last bit (same machine, versions and precision)" in whole.stdout
    some = call(command, "verify", "--jobs", "2", "--run", str(tmp_path / "verify"))
    assert some.returncode == 0, some.stdout + some.stderr[-4000:]
    print(some.stdout)
    made = {path.name: json.loads(path.read_text()) for path in (tmp_path / "verify" / "records").glob("*.json")}
    assert len(made) >= 2
    for name, record in made.items():
        committed = json.loads((folder / "published" / "records" / name).read_text())
        assert record["params"] == committed["params"] | {"run": str(tmp_path / "verify")}
        assert untimed(record["metrics"]) == untimed(committed["metrics"]), name


def test_another_clone_takes_finished_jobs_over_and_runs_what_is_left_and_what_that_needs(command, tmp_path):
    folder, run = command
    saved, elsewhere = tmp_path / "saved", tmp_path / "run"
    assert call(command, "take_over", "--saved", str(saved)).returncode == 0
    (missing,) = (saved / "records").glob("finetuning-*-3rows-*")
    before = json.loads(missing.read_text())["metrics"]
    missing.unlink()
    asked = [*run[:-1], str(elsewhere), "--saved", str(saved)]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    whole = sum(EXPECTED.values()) - 1
    assert f"{whole - 1} of {whole - 1} saved jobs are as they would be made here" in done.stdout
    kept = {path.name for path in (saved / "records").iterdir()}
    places = [folder / "records" for folder in (saved, elsewhere)]
    same = {name for name in kept if len({(place / name).read_bytes() for place in places}) == 1}
    assert kept - same == {"pruning-n0.json", "pruning-n2.json", "distillation-pydoc.json"}
    assert json.loads((elsewhere / "records" / missing.name).read_text())["metrics"] == before
    texts = elsewhere / "generated" / "pydoc-distilled.jsonl"
    assert texts.read_bytes() == (saved / "generated" / texts.name).read_bytes()  # none was written again
    again = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Nothing to be done" in again.stdout + again.stderr


def untimed(metrics):
    """As JSON, without times, which differ from run to run."""
    return json.dumps(json.loads(json.dumps(metrics), object_hook=lambda node: node | {"seconds": None}))


def test_notebook_before_its_inputs_says_which_notebook_makes_them(command, tmp_path):

    with pytest.raises(Exception, match=r"similarity.json does not exist yet: run notebooks/01_similarity_analysis"):
        run_notebook.execute_notebook(
            "02_pruning", out=tmp_path / "out.ipynb", parameters={"run": str(tmp_path / "empty")}
        )
    assert not (tmp_path / "empty" / "records").exists()
