"""One command for a whole study: `python -m sdd_utils.sweep.reproduce embedded`.

Runs the sweep (see the Snakefile) and prints the results table and the figures. Interrupted anywhere, the next
call goes on from there: a lock that dies with its process takes the place of Snakemake's, which outlives a kill.
"""

import argparse
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import yaml

from sdd_utils import ROOT
from sdd_utils.base import precision
from sdd_utils.data import sources
from sdd_utils.engine import vllm_installed
from sdd_utils.study.schema import load_study, name_of

MEMORY_LIMITS = [Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]  # v2, v1
GRACE = 5  # seconds in which a process ends that an interrupt of the terminal has reached


def main() -> int:
    """Parse the command line, run, print; the exit status is Snakemake's."""
    arguments, further = _parser().parse_known_args()
    try:
        name = name_of(arguments.study)
        run, publish = arguments.run or f"work/{name}", arguments.publish or f"results/{name}"
        _check(arguments)
        _check_apart(ROOT / run, ROOT / publish)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    where = ["--profile", arguments.profile] if arguments.profile else _this_machine()
    with _lock(ROOT / run) as lock:
        if lock is None:
            print(f"error: another run of study {name!r} is going on in {run}: wait for it to end", file=sys.stderr)
            return 2
        try:
            status = _snakemake(arguments.study, run=run, publish=publish, further=[*where, *further], lock=lock)
        except KeyboardInterrupt:
            print(f"interrupted: what is done stays in {run}, the same command goes on from there", file=sys.stderr)
            return 130  # what a shell returns for a process that an interrupt ended
    if status == 0:
        _print_results(ROOT / publish)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default="embedded", help="name of a file under studies/, or a path")
    parser.add_argument("--run", help="folder of checkpoints, sets and records (default work/<study>)")
    parser.add_argument("--publish", help="folder of tables, figures and pages (default results/<study>)")
    parser.add_argument("--profile", help="Snakemake profile of a cluster, e.g. profiles/slurm (default: this machine)")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    """Raise an error, in one sentence, before anything is started."""
    precision.wanted_dtype()
    vllm_installed.engine()
    for name, keys in load_study(arguments.study).own_data.items():
        sources.local_file(sources.own_source(name, keys), name=name)
    if arguments.profile:
        _check_profile(arguments.profile)


def _check_apart(run: Path, publish: Path) -> None:
    """Publishing empties folders of its own: they must not be those of the run, or of the repository."""
    run, publish = run.resolve(), publish.resolve()
    if run.is_relative_to(publish) or publish.is_relative_to(run) or ROOT.is_relative_to(publish):
        raise ValueError(
            f"--publish {publish} holds the run or the repository, or lies in the run: name another folder"
        )


def _check_profile(profile: str) -> None:
    """Say in one sentence what Snakemake would say at the end of its usage."""
    file = ROOT / profile / "config.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"profile {profile!r} has no config.yaml: name a folder such as profiles/slurm")
    executor = (yaml.safe_load(file.read_text()) or {}).get("executor", "local")
    if executor != "local" and not find_spec(f"snakemake_executor_plugin_{executor.replace('-', '_')}"):
        fix = "run 'make install PROFILE=slurm'" if executor == "slurm" else "install its Snakemake executor plugin"
        raise ValueError(f"profile {profile!r} needs the executor {executor!r}, which is not installed: {fix}")


@contextmanager
def _lock(folder: Path) -> Iterator[int | None]:
    """A lock on a run's folder, as a file descriptor; None if it is taken.

    The system releases it when the last process that holds the descriptor ends, however it ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file.fileno()


def _this_machine() -> list[str]:
    """All cores and memory; where there is a GPU, one job at a time, which may use every GPU.

    A job that is expected to take more memory than there is runs alone. Not with a profile: these would cap what a
    cluster's jobs ask for.
    """
    return ["--cores", "1" if _has_gpu() else "all", "--resources", f"mem_mb={_memory() // 2**20}"]


def _memory() -> int:
    """Bytes of main memory that this process may use: the machine's, or its container's where that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [file.read_text().strip() for file in MEMORY_LIMITS if file.is_file()]
    return min([machine, *(int(limit) for limit in limits if limit.isdigit())])


def _has_gpu() -> bool:
    """Whether jobs will see a GPU; asking torch would take seconds."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    nvidia_smi = shutil.which("nvidia-smi")
    if hidden or not nvidia_smi:
        return False
    return subprocess.run([nvidia_smi, "-L"], capture_output=True, check=False).returncode == 0


def _snakemake(study: str, *, run: str, publish: str, further: list[str], lock: int) -> int:
    """Run Snakemake to its end, also after an interrupt: it ends its jobs first. It holds the lock as well."""
    if study.endswith((".yaml", ".yml")):
        study = str(Path(study).resolve())  # Snakemake runs in the repository's folder
    command = [sys.executable, "-m", "snakemake", "--nolock", "--rerun-incomplete", "--keep-going"]
    command += ["--quiet", "reason", "host"]
    command += ["--config", f"study={study}", f"run={run}", f"publish={publish}", *further]
    process = subprocess.Popen(command, cwd=ROOT, pass_fds=(lock,))
    try:
        return process.wait()
    except KeyboardInterrupt:
        _end(process)
        raise


def _end(process: subprocess.Popen) -> None:
    """Wait for a process that an interrupt of the terminal has reached as well, or else hand it on."""
    try:
        process.wait(timeout=GRACE)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()


def _print_results(publish: Path) -> None:
    table = publish / "tables" / "recovery.md"
    if table.is_file():
        print("\nRecovery of the original's average score, with 95 % intervals over documents:\n")
        print(table.read_text())
        print("Tables and figures:")
        for path in sorted(publish.glob("tables/*.md")) + sorted(publish.glob("figures/*.png")):
            print(f"  {os.path.relpath(path)}")
        print(f"All of it on one page: {os.path.relpath(publish / 'index.html')}")


if __name__ == "__main__":
    raise SystemExit(main())
