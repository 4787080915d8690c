"""Let a study that takes days go on elsewhere: `python -m sdd_utils.sweep.take_over laptop` saves what is finished.

Saved is what is small, in `results/<study>/saved` for git to keep: records of finished jobs with their notebooks, and
the files that only ever grow, texts and scores. In another clone `make reproduce` takes those jobs over whose records
were made with the same parameters, original, precision, versions and code. What is not small is made again where a job
that is left needs it: pruned models and distilled sets follow from the saved texts and scores, in seconds to minutes.
Adapters do not, so a fine-tuning whose adapters are needed runs again, and with it what lies behind it.
"""

import argparse
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from sdd_utils.base import disk, precision
from sdd_utils.base.files import read_json_lines, write_bytes, write_json_lines
from sdd_utils.base.provenance import versions
from sdd_utils.base.records import read_record, step_digest
from sdd_utils.study.jobs import Job, other_keys, study_jobs, with_needs
from sdd_utils.study.paths import Run, saved_jobs, shown
from sdd_utils.study.schema import load_study, name_of
from sdd_utils.sweep.run_notebook import kept_notebook

GROWING = ("generated", "scores")  # folders of a run that hold what a job goes on with
REMADE = ("pruning", "distillation")  # steps whose files follow from these
NOTE = "taken_over.jsonl"  # in a run: the jobs whose records are here without what else they made


def save(run: Run, *, saved: Run, study) -> int:
    """Add a run's finished jobs, and what the others go on with, to those that were saved before.

    Not finished is a job that is older than one that it needs: it will run again, and is not kept.

    Returns:
        how many are finished.

    Raises:
        ValueError: the folder is the run's or holds jobs of another study, or a record is not whole.
    """
    _check_place(run, saved=saved)
    finished: dict[str, Job] = {}
    for job in study_jobs(study):
        made = [_record(run, name) for name in (*job.needs, job.name)]
        if job.step != "results" and {*job.needs} <= finished.keys() and _in_order(made):
            read_record(_record(run, job.name))
            finished[job.name] = job
    for name in {path.stem for path in run.records.glob("*.json")} - finished.keys():
        for path in _files(saved, name):
            path.unlink(missing_ok=True)
    for path in [*_growing(run), *(path for name in finished for path in _files(run, name))]:
        content = kept_notebook(path).encode() if path.suffix == ".ipynb" else path.read_bytes()
        write_bytes(saved.folder / path.relative_to(run.folder), content)
    return len(finished)


def _check_place(run: Run, *, saved: Run) -> None:
    """Raise ValueError where saved jobs would take the place of something else."""
    ours, theirs = ({read_record(path)["study"] for path in place.records.glob("*.json")} for place in (run, saved))
    same = saved.folder.resolve() == run.folder.resolve()
    if same or theirs - ours:
        holds = "is the run's own" if same else f"holds jobs of the study {', '.join(sorted(theirs - ours))}"
        raise ValueError(f"--saved {shown(saved.folder)} {holds}: name another folder")


def _in_order(paths: list[Path]) -> bool:
    """Whether all are there, and none is newer than the last."""
    times = [path.stat().st_mtime_ns for path in paths if path.is_file()]
    return len(times) == len(paths) and max(times) == times[-1]


def take_over(study, *, run: Run, saved: Run, make_again: Callable[[list[str]], tuple[int, bool]]) -> tuple[int, bool]:
    """Make the saved jobs that can be taken over those of a run, at each of its starts: any may be killed.

    Args:
        make_again: runs jobs, and returns the exit status and whether a disk was full.

    Returns:
        what `make_again` returned.

    Raises:
        ValueError: a job that was made again gave other texts or rows than the saved jobs read.
    """
    jobs, before = {job.name: job for job in study_jobs(study)}, _noted(run)
    own = {name for name in jobs if _record(run, name).is_file()} - before
    usable = usable_jobs(study, saved=saved)
    _check_made_again([name for name in usable & own if jobs[name].step in REMADE], run=run, saved=saved)
    again, taken = divide(jobs, usable=usable, own=own)
    read = {need for name in own for need in jobs[name].needs}
    for name in before - (read & {*taken}):  # copied anew below, newer than code and than what is made again
        _record(run, name).unlink(missing_ok=True)
    write_json_lines(run.folder / NOTE, [{"job": name} for name in taken])
    for path in _growing(saved):
        _copy(path, run=run, saved=saved)
    if (taken or again) and not (run.folder / "model.found").is_file():
        (run.folder / "model.found").touch()  # its weights were compared; what is copied has to be newer
    first = [name for name in taken if not jobs[name].needs]
    _copy_jobs(first, run=run, saved=saved)
    status, full = make_again(again) if again else (0, False)
    if not status:
        _check_made_again(again, run=run, saved=saved)
        _copy_jobs(taken, run=run, saved=saved)
    return status, full


def _noted(run: Run) -> set[str]:
    return {row["job"] for row in read_json_lines(run.folder / NOTE)} if (run.folder / NOTE).is_file() else set()


def _check_made_again(names: list[str], *, run: Run, saved: Run) -> None:
    for name in names:
        ours, theirs = (read_record(_record(place, name))["metrics"] for place in (run, saved))
        if other := [key for key in ("fingerprints", "answers") if ours.get(key) != theirs.get(key)]:
            raise ValueError(
                f"{name} was made again with other {other[0]} than it was saved with, so the saved jobs behind it do "
                f"not belong to it: delete {shown(saved.folder)} and {shown(run.folder)}, and run all jobs"
            )


def usable_jobs(study, *, saved: Run) -> set[str]:
    """The saved jobs that were made as this machine would make them; prints how many others there are, and why."""
    from sdd_utils.engine import generation  # these load torch, and most runs have nothing to take over
    from sdd_utils.models import store

    here = {"weights": store.weights_digest(study.model), "engine": generation.engine()}
    jobs = [job for job in study_jobs(study) if job.step != "results" and _record(saved, job.name).is_file()]
    other = {job.name: _difference(job, study=study, record=_record(saved, job.name), here=here) for job in jobs}
    usable = {name for name, why in other.items() if not why}
    print(f"{len(usable)} of {len(jobs)} saved jobs are as they would be made here")
    for why in sorted({*other.values()} - {""}):
        print(f"  {sum(reason == why for reason in other.values())} are not: {why}")
    return usable


def _difference(job: Job, *, study, record: Path, here: dict[str, str]) -> str:
    """What a saved job was made with that it would not be made with here; "" where there is nothing.

    Args:
        here: digest of the original's weights, and the engine that generates.
    """
    try:
        saved = read_record(record)
    except ValueError as error:
        return str(error)
    made, present, metrics = saved["provenance"], versions(), here | saved["metrics"]
    packages = [name for name in present if made["versions"].get(name) != present[name]]
    asked = other_keys(saved["params"], job=job, study=study)
    differences = {
        f"made with another {''.join(asked[:1])}": bool(asked),
        "made of another original model": metrics["weights"] != here["weights"],
        "made by another engine": metrics["engine"] != here["engine"] and job.step != "quantization",
        f"made in {made['dtype']}, not in {precision.dtype_name()}: SDD_DTYPE sets it": made["dtype"]
        != precision.dtype_name(),
        f"made with another version of {''.join(packages[:1])}": bool(packages),
        "made by other code": made.get("code") != step_digest(job.step),
    }
    return next((why for why, differs in differences.items() if differs), "")


def divide(jobs: dict[str, Job], *, usable: Collection[str], own: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Of the saved jobs that are usable, those to run again for their files, and those to take over as they are.

    The rest runs, as its adapters are needed or as it lies behind a job that runs.

    Args:
        own: jobs that the run has made itself, with all their files. No saved job is taken over that lies behind one of
            them, unless that was made again as it had been.
    """
    left = {*jobs} - {*usable} - {*own}
    new = {name for name in own if name not in usable or jobs[name].step not in REMADE}
    while True:
        read = _read_by(jobs, left)
        trained = {name for name in read if jobs[name].step == "finetuning"} - {*own}
        behind = {name for name, job in jobs.items() if not (left | new).isdisjoint(job.needs)} - {*own}
        if trained | behind <= left:
            break
        left |= trained | behind
    usable = {*usable} - left - {*own}
    needed = usable & with_needs(read, jobs)
    again = [name for name in jobs if name in needed and jobs[name].step in REMADE]
    return again, [name for name in jobs if name in usable and name not in again]


def _read_by(jobs: dict[str, Job], names: Collection[str]) -> set[str]:
    """The jobs whose files these ones read; tables and figures read records alone."""
    return {need for name in names if jobs[name].step != "results" for need in jobs[name].needs}


def _record(run: Run, name: str) -> Path:
    return run.records / f"{name}.json"


def _growing(run: Run) -> list[Path]:
    return [path for name in GROWING for path in sorted((run.folder / name).glob("*.jsonl"))]


def _files(run: Run, name: str) -> tuple[Path, Path]:
    """What is kept of a finished job; the record, which says that it is finished, comes last."""
    return run.notebooks / f"{name}.ipynb", _record(run, name)


def _copy_jobs(names: list[str], *, run: Run, saved: Run) -> None:
    for path in (path for name in names for path in _files(saved, name)):
        _copy(path, run=run, saved=saved)


def _copy(path: Path, *, run: Run, saved: Run) -> None:
    """Copy a saved file to its place in the run, unless there is one."""
    target = run.folder / path.relative_to(saved.folder)
    if not target.exists():
        write_bytes(target, path.read_bytes())


def main() -> int:
    """Parse the command line and save; exit status 2 and one sentence where that cannot be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default="embedded", help="name of a file under studies/, or a path")
    parser.add_argument("--run", help="folder of the run (default work/<study>)")
    parser.add_argument("--saved", help="folder of the saved jobs (default results/<study>/saved)")
    arguments = parser.parse_args()
    try:
        study, name = load_study(arguments.study), name_of(arguments.study)
        run = Run.at(arguments.run or f"work/{name}")
        saved = Run.at(arguments.saved) if arguments.saved else saved_jobs(name)
        if not run.records.is_dir():
            raise FileNotFoundError(f"{shown(run.folder)} holds no run: 'make reproduce' makes one")
        with disk.told():
            finished = save(run, saved=saved, study=study)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"saved: {finished} finished jobs in {shown(saved.folder)}; commit them, and another clone goes on from there"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
