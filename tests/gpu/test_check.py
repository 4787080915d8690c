"""The check of a card, run on a CPU: its record, and that it sees what is wrong."""

import json
import os
import subprocess
import sys

import pytest
from gpu import pack, run, scoring, training

from sdd_utils import ROOT
from sdd_utils.engine import decoding, kv_slots, lm_eval_model
from sdd_utils.steps import fidelity, lora_training

EQUALITIES = {"decoding": 1, "KV slots": 3, "evaluation": 3, "fidelity": 1, "training, packed": 1}
EQUALITIES |= {"training, padded": 0, "training, FSDP": 2}
SPEEDS = ("tokens_per_s", "share_of_rate", "peak_mb", "turns", "stage_s")


def checked(*arguments, **environment) -> subprocess.CompletedProcess:
    """The command itself, in the environment of these tests."""
    given = os.environ | {"PYTHON": sys.executable, "PARTS": "nowhere", **environment}
    command = [str(ROOT / "tests" / "gpu" / "check.sh"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=given)


def test_the_command_measures_every_stage_and_all_is_equal(tmp_path):
    done = checked("--cpu", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = tmp_path.glob("*.json")
    record = json.loads(path.read_text())
    stages = {made["stage"]: made for made in record["stages"]}
    assert {name: len(made["equalities"]) for name, made in stages.items()} == EQUALITIES
    for made in stages.values():
        assert all(made[key] > 0 for key in SPEEDS)
        assert made["spread"][0] <= made["tokens_per_s"] <= made["spread"][1]
        assert all(one["equal"] and one["difference"] <= one["allowed"] for one in made["equalities"])
        assert all(made.get("served", {}).values())
        assert made["stage"] in done.stdout
    assert record["all_equal"]
    assert record["matrix_rate_flops"] > 1e9
    assert {"card", "driver", "cuda", "schema", "size"} <= record.keys()
    made = record["provenance"]
    assert made["versions"]["torch"]
    assert len(made["commit"]) == 40
    assert made["dirty"] in (True, False)


def losses_moved(self, *args, **kwargs):
    return super(lora_training.Trainer, self).compute_loss(*args, **kwargs) + 0.01


FAULTS = {
    "decoding": (decoding, "GREEDY", lambda logits, ids, steps: logits.min(dim=-1).indices),
    "KV slots": (kv_slots.SlotCache, "copy", lambda *args, **kwargs: None),
    "evaluation": (lm_eval_model, "_choice_score", lambda logits, choice: (-1.0, False)),
    "fidelity": (fidelity, "_token_nll", lambda log_probs, answered: -2 * log_probs[range(len(answered)), answered]),
    "training": (lora_training.Trainer, "compute_loss", losses_moved),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_stage_that_is_wrong_ends_with_status_1(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "STAGES", {name: run.STAGES[name]})
    monkeypatch.setattr(*FAULTS[name])
    assert run.main(["--cpu", str(tmp_path)]) == 1
    assert "is allowed" in capsys.readouterr().out
    (path,) = tmp_path.glob("*.json")
    assert not json.loads(path.read_text())["all_equal"]


@pytest.mark.parametrize(("moved", "whole"), [(0.0, 0), (0.01, 0), (0.0, 3)])
def test_what_fsdp_does_otherwise_is_seen(moved, whole, tmp_path, monkeypatch):
    def sharded(setup, name, data):
        report = lora_training.train(training.job_of(setup, name), data)
        report["loss"] = [[step, loss + moved] for step, loss in report["loss"]]
        return report, {"ends": [*range(report["steps"])], "whole": whole, "peak_mb": 1}

    monkeypatch.setattr(training, "sharded", sharded)
    monkeypatch.setattr(run, "STAGES", {"training, FSDP": training.fsdp})
    assert run.main(["--cpu", str(tmp_path)]) == int(bool(moved or whole))


def test_a_stage_that_fails_leaves_the_others_and_is_told(tmp_path, monkeypatch, capsys):
    def broken(setup):
        raise RuntimeError("no kernel image\nfor this card")

    monkeypatch.setattr(run, "STAGES", {"broken": broken, "fidelity": scoring.compare})
    assert run.main(["--cpu", str(tmp_path)]) == 1
    (path,) = tmp_path.glob("*.json")
    first, second = json.loads(path.read_text())["stages"]
    assert first["error"] == "RuntimeError: no kernel image for this card"
    assert second["tokens_per_s"] > 0
    assert "broken: RuntimeError: no kernel image" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [((), "torch sees no card"), (("--cpu", ROOT / "results" / "gpu"), "lies in results, which are a card's")],
)
def test_it_refuses_in_one_sentence(arguments, told):
    done = checked(*arguments, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert told in done.stderr


def test_damaged_parts_are_refused(tmp_path):
    (tmp_path / "part-00").write_bytes(b"half")
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  part-00\n")
    done = checked("--cpu", tmp_path / "out", PARTS=str(tmp_path))
    assert done.returncode == 2
    assert "is missing or damaged" in done.stderr


def test_parts_are_small_and_hold_the_wheels_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "PART", 4096)
    wheels = [tmp_path / name for name in ("one.whl", "two.whl")]
    for number, wheel in enumerate(wheels):
        wheel.write_bytes(bytes(range(256)) * (20 + number))
    pack.split(wheels, tmp_path / "parts")
    parts = sorted((tmp_path / "parts").glob("part-*"))
    assert len(parts) > 2
    assert all(part.stat().st_size <= 4096 for part in parts)
    joined = "sha256sum --check --quiet SHA256SUMS && cat part-* | tar -x -C .."
    subprocess.run(["bash", "-c", joined], cwd=tmp_path / "parts", check=True)
    assert all((tmp_path / "wheels" / wheel.name).read_bytes() == wheel.read_bytes() for wheel in wheels)


def test_what_is_packed_is_what_a_check_imports():
    needed = {line.partition("==")[0] for line in pack.needed("3.12")}
    assert {"transformers", "trl", "peft", "accelerate", "lm-eval", "datasets", "tabulate", "psutil"} <= needed
    assert needed.isdisjoint(pack.LEFT_OUT)
    assert all(pack.pinned()[name].startswith(f"{name}==") for name in needed if name in pack.pinned())


def test_that_no_gpu_has_run_the_code_is_said_until_a_record_says_otherwise():
    said = "No GPU has run this code yet" in (ROOT / "docs" / "running.md").read_text()
    assert said == (not [*run.RESULTS.glob("*.json")])
