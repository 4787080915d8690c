"""The package alone, as `pip install` brings it: a wheel in an environment without the repository runs notebook 00."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import nbformat
import pytest
from conftest import tiny_llama

from sdd_utils import ROOT


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """An interpreter that has the wheel, and this environment's libraries but for the package itself."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy, for a build leaves files behind
    shutil.copytree(ROOT / "sdd_utils", source / "sdd_utils", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(source)]
    subprocess.run(build, check=True, cwd=folder)
    (wheel,) = folder.glob("sdd_utils-*.whl")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    place = Path(subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True).stdout.strip())
    # A plain line adds a folder without the files in it that would lead to the repository.
    (place / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(place),
        str(wheel),
    ]
    subprocess.run(install, check=True, cwd=folder)
    return python


def test_the_wheel_runs_the_notebook_in_an_empty_folder(python, tokenizer, tmp_path):
    tiny_llama(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}."} for i in range(24)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"model": "model", "data": "mine.jsonl", "cut": "2", "rows": 12}
    run = [python, "-m", "papermill", str(ROOT / "notebooks" / "00_compress_your_model.ipynb"), "done.ipynb"]
    run += [word for name, value in given.items() for word in ("-p", name, str(value))]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "compressed" / "model.safetensors").is_file()
    assert str(ROOT) not in (tmp_path / "compressed" / "recipe.yaml").read_text()
    executed = nbformat.read(tmp_path / "done.ipynb", as_version=4)
    texts = json.dumps(executed)
    assert "bits per byte" in texts
    assert (
        sum("image/png" in output.get("data", {}) for cell in executed.cells for output in cell.get("outputs", [])) == 3
    )


def test_the_package_starts_where_it_is_called(python, tmp_path):
    asked = "import sdd_utils; print(sdd_utils.PACKAGE); print(sdd_utils.ROOT)"
    done = subprocess.run([python, "-c", asked], cwd=tmp_path, capture_output=True, text=True, check=True)
    package, root = map(Path, done.stdout.split())
    assert package.is_relative_to(python.parent.parent)
    assert root == tmp_path.resolve()
