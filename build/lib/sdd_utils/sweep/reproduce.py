"""One command for a whole study: `python -m sdd_utils.sweep.reproduce embedded`.

Runs the sweep (see the Snakefile), prints the results table and the figures, and compares the run with the committed
results. Interrupted anywhere, the next call goes on from there: a lock that dies with its process takes the place of
Snakemake's, which outlives a kill.
"""

import argparse
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

import psutil
import yaml

from sdd_utils import ROOT
from sdd_utils.analysis import verification
from sdd_utils.base import disk, precision
from sdd_utils.base.files import remove_unfinished, write_text
from sdd_utils.engine import vllm_installed
from sdd_utils.study.paths import Run, committed_results, saved_jobs, shown
from sdd_utils.study.schema import STUDIES, load_study, name_of, path_of
from sdd_utils.sweep import preflight, take_over

MEMORY_LIMITS = [Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]  # v2, v1
GRACE = 5  # seconds in which Snakemake ends that a signal has reached as well
DRY_RUN = r"--dry-?run|-\w*n\w*"
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
    run = arguments.run or f"work/{name}"
    saved = Run.at(arguments.saved) if arguments.saved else saved_jobs(name)
    if arguments.saved and not saved.records.is_dir():
        raise FileNotFoundError(f"--saved {arguments.saved} holds no saved jobs: 'make save' makes such a folder")
    status = run_jobs(arguments.study, run=run, saved=saved, profile=arguments.profile, further=further)
    if status == 0 and Run.at(run).record("results").is_file():
        _print_results(Run.at(run))
        print(_comparison(arguments.study, run=Run.at(run), results=committed_results(name)))
    return status


def run_jobs(
    study: str,
    *,
    run: str,
    jobs: Sequence[str] = (),
    saved: Run | None = None,
    profile: str = "",
    further: Sequence[str] = (),
) -> int:
    """Run a study's jobs in a folder, and say what stopped them.

    Args:
        study: name or path of the study.
        jobs: names of jobs; these run and what they need. None is the whole study.
        saved: finished jobs that a run which has none takes over, see `take_over`.
        profile: a folder with Snakemake's settings of a cluster; "" is this machine.
        further: arguments for Snakemake.

    Returns:
        Snakemake's exit status, or that of `ENDED` after a signal.

    Raises:
        ValueError, FileNotFoundError: the study cannot run; said before anything is started.
        RuntimeError: another process runs in this folder.
    """
    _check(study, run=run, profile=profile)
    where = ["--profile", profile] if profile else _this_machine()
    with locked(ROOT / run) as lock:  # before anything is written: the holder takes away what lies there unfinished
        _claim(ROOT / run, study=study)
        remove_unfinished(ROOT / run)
        snakemake = partial(_snakemake, study=study, run=run, further=[*where, *further], lock=lock)
        status, full = 0, False
        if saved and saved.records.is_dir() and not any(re.fullmatch(DRY_RUN, word) for word in further):
            status, full = take_over.take_over(load_study(study), run=Run.at(run), saved=saved, make_again=snakemake)
        if not status:
            status, full = snakemake(jobs)
    if status in ENDED.values():
        print(f"interrupted: what is done stays in {run}, the same command goes on from there", file=sys.stderr)
    elif status and full:
        print(f"error: {disk.FULL}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default="embedded", help="name of a file under studies/, or a path")
    parser.add_argument("--run", help="folder of the run and its tables, figures and page (default work/<study>)")
    parser.add_argument("--saved", help="folder of saved jobs to go on from (default results/<study>/saved)")
    profile = "Snakemake profile of a cluster, e.g. profiles/slurm (default: this machine)"
    parser.add_argument("--profile", default="", help=profile)
    return parser


def _check(study: str, *, run: str, profile: str) -> None:
    """Raise an error, in one sentence, before anything is started."""
    precision.wanted_dtype()
    vllm_installed.engine()
    _check_folder(run)
    keys = load_study(study)
    paths = [run, *(own.get("source", "") for own in keys.own_data.values())]
    if braces := [path for path in paths if set("{}") & set(path)]:
        raise ValueError(f"path {braces[0]!r} holds a brace, which Snakemake takes for a pattern: rename it")
    if profile:
        _check_profile(profile)
    checks = [preflight.check_data, preflight.check_tasks, preflight.check_encoder, preflight.check_quantization]
    if path_of(study).parent != STUDIES:  # the shipped ones fit their models, and counting these takes seconds
        checks.append(preflight.check_model)
    for check in checks:
        check(keys)


def _check_folder(run: str) -> None:
    """Drawing empties folders of a run: it must not be one that git keeps."""
    folder = (ROOT / run).resolve()
    if ROOT.is_relative_to(folder) or folder.is_relative_to(ROOT / "results"):
        raise ValueError(f"--run {run} holds the repository or lies in results/: name another folder")


def _claim(run: Path, *, study: str) -> None:
    """Note whose run a folder holds. Raises ValueError where it is that of another study of the same name.

    A file that was moved, and a copy that says the same, go on with the run.
    """
    note, path = run / "study.txt", path_of(study).resolve()
    owner = ROOT / note.read_text("utf-8") if note.is_file() else path
    if owner != path and owner.is_file() and not _say_the_same(owner, path):
        raise ValueError(f"{run} holds the run of {owner}, not of {path}: rename one, or name another folder by --run")
    write_text(note, shown(path))


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
def locked(run: Path) -> Iterator[int]:
    """A lock on a run's folder, as a file descriptor.

    The system releases it when the last process that holds the descriptor ends, however it ends.

    Raises:
        RuntimeError: another process holds it.
    """
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another run is going on in {shown(run)}: wait for it to end") from None
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


def _snakemake(jobs: Sequence[str], *, study: str, run: str, further: Sequence[str], lock: int) -> tuple[int, bool]:
    """Run Snakemake to its end, and its jobs, also after a signal; it holds the lock as well.

    Returns:
        the exit status, of `ENDED` after a signal; and whether a job or Snakemake itself met a full disk.
    """
    if study.endswith((".yaml", ".yml")):
        study = str(Path(study).resolve())  # Snakemake runs in the repository's folder
    # In a mapping, where Snakemake reads all values as text: by itself a name such as 007 would be a number.
    config = json.dumps({"study": study, "run": run}, ensure_ascii=False)
    targets = [f"{run}/records/{name}.json" for name in jobs]
    command = [sys.executable, "-m", "snakemake", *targets, "--nolock", "--rerun-incomplete", "--keep-going"]
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


def _print_results(run: Run) -> None:
    print("\nRecovery of the original's average score, with 95 % intervals over documents:\n")
    print((run.tables / "recovery.md").read_text())
    print("Tables and figures:")
    for path in sorted(run.tables.glob("*.md")) + sorted(run.figures.glob("*.png")):
        print(f"  {os.path.relpath(path)}")
    print(f"All of it on one page: {os.path.relpath(run.folder / 'index.html')}")


def _comparison(study: str, *, run: Run, results: Path) -> str:
    """How a run compares with the committed results, or why it cannot be compared."""
    if not (results / "records").is_dir():
        return verification.NO_REFERENCE.format(study=study)
    try:
        return verification.compare_run(study, run=run.folder, results=results).text()
    except (ValueError, OSError) as error:
        return f"not compared with the committed results: {error}"


if __name__ == "__main__":
    raise SystemExit(main())
