"""One command for a whole study: `python -m sdd_utils.sweep.reproduce embedded`.

Runs the sweep (see the Snakefile) and prints the results table and the figures. Interrupted anywhere, the next
call goes on from there: a lock that dies with its process takes the place of Snakemake's, which outlives a kill.
"""

import argparse
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

import psutil
import yaml

from sdd_utils import ROOT
from sdd_utils.base import disk, precision
from sdd_utils.base.files import remove_unfinished, write_text
from sdd_utils.engine import vllm_installed
from sdd_utils.study.schema import load_study, name_of, path_of
from sdd_utils.sweep import preflight

MEMORY_LIMITS = [Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]  # v2, v1
GRACE = 5  # seconds in which Snakemake ends that a signal has reached as well
ENDED = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}  # what a shell returns for each


def main() -> int:
    """Parse the command line, run, print; the exit status is Snakemake's, or of `ENDED` after a signal."""
    arguments, further = _parser().parse_known_args()
    try:
        with disk.told():
            return _reproduce(arguments, further)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _reproduce(arguments: argparse.Namespace, further: list[str]) -> int:
    name = name_of(arguments.study)
    run, publish = arguments.run or f"work/{name}", arguments.publish or f"results/{name}"
    _check(arguments, paths=[run, publish])
    _check_apart(ROOT / run, ROOT / publish)
    _claim(ROOT / run, study=arguments.study)
    where = ["--profile", arguments.profile] if arguments.profile else _this_machine()
    with _lock(ROOT / run) as lock:
        if lock is None:
            raise RuntimeError(f"another run of study {name!r} is going on in {run}: wait for it to end")
        remove_unfinished(ROOT / run)
        status, full = _snakemake(arguments.study, run=run, publish=publish, further=[*where, *further], lock=lock)
    if status == 0:
        _print_results(ROOT / publish)
    elif status in ENDED.values():
        print(f"interrupted: what is done stays in {run}, the same command goes on from there", file=sys.stderr)
    elif full:
        print(f"error: {disk.FULL}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default="embedded", help="name of a file under studies/, or a path")
    parser.add_argument("--run", help="folder of checkpoints, sets and records (default work/<study>)")
    parser.add_argument("--publish", help="folder of tables, figures and pages (default results/<study>)")
    parser.add_argument("--profile", help="Snakemake profile of a cluster, e.g. profiles/slurm (default: this machine)")
    return parser


def _check(arguments: argparse.Namespace, *, paths: list[str]) -> None:
    """Raise an error, in one sentence, before anything is started."""
    precision.wanted_dtype()
    vllm_installed.engine()
    study = load_study(arguments.study)
    paths = [*paths, *(keys.get("source", "") for keys in study.own_data.values())]
    if braces := [path for path in paths if set("{}") & set(path)]:
        raise ValueError(f"path {braces[0]!r} holds a brace, which Snakemake takes for a pattern: rename it")
    if arguments.profile:
        _check_profile(arguments.profile)
    for check in (preflight.check_data, preflight.check_tasks, preflight.check_encoder):
        check(study)


def _check_apart(run: Path, publish: Path) -> None:
    """Publishing empties folders of its own: they must not be those of the run, or of the repository."""
    run, publish = run.resolve(), publish.resolve()
    if run.is_relative_to(publish) or publish.is_relative_to(run) or ROOT.is_relative_to(publish):
        raise ValueError(
            f"--publish {publish} holds the run or the repository, or lies in the run: name another folder"
        )


def _claim(run: Path, *, study: str) -> None:
    """Note whose run a folder holds. Raises ValueError where it is that of another study of the same name.

    A file that was moved, and a copy that says the same, go on with the run.
    """
    note, path = run / "study.txt", path_of(study).resolve()
    owner = ROOT / note.read_text("utf-8") if note.is_file() else path
    if owner != path and owner.is_file() and not _say_the_same(owner, path):
        raise ValueError(f"{run} holds the run of {owner}, not of {path}: rename one, or name another folder by --run")
    write_text(note, str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path))


def _say_the_same(*paths: Path) -> bool:
    try:
        first, second = (load_study(str(path)) for path in paths)
    except (ValueError, FileNotFoundError):
        return False
    return first == second


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


def _snakemake(study: str, *, run: str, publish: str, further: list[str], lock: int) -> tuple[int, bool]:
    """Run Snakemake to its end, and its jobs, also after a signal; it holds the lock as well.

    Returns:
        the exit status, of `ENDED` after a signal; and whether a job or Snakemake itself met a full disk.
    """
    if study.endswith((".yaml", ".yml")):
        study = str(Path(study).resolve())  # Snakemake runs in the repository's folder
    # In a mapping, where Snakemake reads all values as text: by itself a name such as 007 would be a number.
    config = json.dumps({"study": study, "run": run, "publish": publish}, ensure_ascii=False)
    command = [sys.executable, "-m", "snakemake", "--nolock", "--rerun-incomplete", "--keep-going"]
    command += ["--quiet", "reason", "host"]
    command += ["--config", f"sweep={config}", *further]
    with _signals() as received:
        pipe = {"stderr": subprocess.PIPE, "text": True, "errors": "replace"}
        process = subprocess.Popen(command, cwd=ROOT, pass_fds=(lock,), **pipe)
        with ThreadPoolExecutor(1) as reader:
            full = reader.submit(_pass_on, process.stderr)
            try:
                process.wait()
                full.result()  # until the last job has ended: they outlive a Snakemake that is killed alone
            except KeyboardInterrupt:
                _end(process)
    return (ENDED[received[0]] if received else process.returncode), full.result()


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals of `ENDED` that come meanwhile; the first interrupts, and the others are let pass."""
    received = []

    def interrupt(number, _) -> None:
        received.append(number)
        if len(received) == 1:
            raise KeyboardInterrupt

    heard = [number for number in ENDED if signal.getsignal(number) != signal.SIG_IGN]  # nohup lets some pass
    former = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _pass_on(messages: TextIO) -> bool:
    """Copy what Snakemake and its jobs say to our own standard error; whether a full disk is among it."""
    full = False
    for line in messages:
        sys.stderr.write(line)
        full |= disk.is_full(line)
    return full


def _end(process: subprocess.Popen) -> None:
    """End Snakemake and its jobs, which a signal may have reached as well, or not."""
    jobs = {*_jobs_of(process)}
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=GRACE)
    process.send_signal(signal.SIGTERM)  # it starts nothing more
    process.send_signal(signal.SIGINT)  # and takes back what it gave to a cluster; in the background it hears none
    for end in (psutil.Process.terminate, psutil.Process.kill):
        jobs |= {*_jobs_of(process)}  # it waits for them
        for job in jobs:
            with suppress(psutil.NoSuchProcess):
                end(job)
        jobs = {*psutil.wait_procs(jobs, timeout=GRACE)[1]}
    process.wait()


def _jobs_of(process: subprocess.Popen) -> list[psutil.Process]:
    """All processes that a process started, directly or not; none once it has ended."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


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
