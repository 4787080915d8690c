"""A checkout, an environment, a model and data in folders with odd names, beside a user's own kernel `python3`."""

import json
import os
import shutil
import subprocess
import sys

import nbformat
import pytest
import yaml

from sdd_utils import ROOT

SMALL = {"calibration_rows": 4, "calibration_batch": 4, "block_sizes": [2], "finetune_block_sizes": [2]}
SMALL |= {"data_sets": {"mine": 6}, "calibration_sets": ["mine"], "merge_pairs": [], "in_domain": {}}
SMALL |= {"answer_prompts": 2, "max_length": 2000, "seeds": [0], "rewrite_attempts": 1}


@pytest.fixture
def checkout(tmp_path, model_folder):
    """A copy of the code, its environment, a model, data and a study, all below one odd folder."""
    place = tmp_path / "sp äce [x] {y} 'z'"
    for name in ("sdd_utils", "notebooks", "studies"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Snakefile", place)
    (place / ".venv").symlink_to(sys.prefix)
    shutil.copytree(model_folder, place / "a model")
    rows = [{"instruction": f"Question {i}?", "response": f"Answer {i}."} for i in range(40)]
    (place / "my data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"own_data": {"mine": {"source": "my data.jsonl"}}, "model": "a model"}
    (place / "my study.yaml").write_text(yaml.safe_dump({"base": "embedded"} | SMALL | own))
    return place


@pytest.fixture
def foreign_kernel(tmp_path):
    """Variables of a user whose kernel `python3` is another program, wherever Jupyter looks for kernels."""
    kernel = {"argv": [shutil.which("false")], "display_name": "mine", "language": "python"}
    (tmp_path / "jupyter" / "kernels" / "python3").mkdir(parents=True)
    (tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json").write_text(json.dumps(kernel))
    folder = str(tmp_path / "jupyter")
    return {"JUPYTER_PATH": folder, "JUPYTER_DATA_DIR": folder, "JUPYTER_PREFER_ENV_PATH": "0"}


def test_the_sweep_runs_in_its_own_python_wherever_it_lies(checkout, foreign_kernel):
    python = str(checkout / ".venv" / "bin" / "python")
    command = [python, "-m", "sdd_utils.sweep.reproduce", "my study.yaml", "--until", "similarity"]
    environment = os.environ | foreign_kernel | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    record = json.loads((checkout / "work" / "my study" / "records" / "similarity.json").read_text())
    assert (record["study"], record["params"]["calibration_sets"]) == ("my study", ["mine"])
    executed = nbformat.read(checkout / "work" / "my study" / "notebooks" / "similarity.ipynb", as_version=4)
    assert executed.metadata.kernelspec.name == "python3"
    rest = [python, "-m", "snakemake", "--cores", "1", "--dry-run", "--config", "study=my study.yaml"]
    planned = subprocess.run(rest, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert planned.returncode == 0, planned.stderr[-2000:]
    assert "finetuning" in planned.stdout + planned.stderr
