"""Compare a run with the committed results of its study: `python -m sdd_utils.sweep.verify embedded [--jobs 2]`.

With a number of jobs, so many of the committed ones are drawn at random and run again, with what they need, in a folder
of their own; then these are compared. Interrupted, the same command goes on with the same jobs. Exit status 0 if all
numbers agree, 1 if not, 2 if they cannot be compared.
"""

import argparse
import json
import random
import shutil
import sys
from pathlib import Path

from sdd_utils.analysis import verification
from sdd_utils.base import disk
from sdd_utils.base.files import write_json
from sdd_utils.study.jobs import Job, other_keys, study_jobs, with_needs
from sdd_utils.study.paths import Run, committed_results, shown
from sdd_utils.study.schema import load_study, name_of
from sdd_utils.sweep import reproduce

NOTE = "verification.json"  # in the folder of jobs that are run again: which, and whether they were compared


def _drawn(study: str, *, run: str, results: Path, count: int, seed: int | None) -> verification.Comparison | int:
    """Run jobs that are drawn, and compare them; the exit status where that stopped.

    Raises:
        ValueError: the committed records are of other keys than the study has now, or of another schema.
    """
    committed = verification.records_of(results / "records")
    jobs = {job.name: job for job in study_jobs(load_study(study))}
    _check_keys(committed, jobs=jobs, study=study)
    folder = Run.at(run).folder
    drawn = _draw(folder, names=[name for name in committed if name != "results"], count=count, seed=seed)
    if status := reproduce.run_jobs(study, run=run, jobs=drawn):
        return status
    note = folder / NOTE
    write_json(note, json.loads(note.read_text()) | {"finished": True})
    made = with_needs(drawn, jobs)
    ours = verification.records_of(Run.at(run).records, names=made)
    return verification.compare(ours, {name: record for name, record in committed.items() if name in made})


def _check_keys(committed: dict[str, dict], *, jobs: dict[str, Job], study: str) -> None:
    keys = load_study(study)
    for name, record in committed.items():
        other = other_keys(record["params"], job=jobs[name], study=keys) if name in jobs else ["set of jobs"]
        if other:
            raise ValueError(
                f"the committed {name} was made with another {other[0]} than study {study!r} has now: "
                "take the study file that it was made with, or publish a run of this one"
            )


def _draw(folder: Path, *, names: list[str], count: int, seed: int | None) -> list[str]:
    """The names of jobs to run: those of a verification that was interrupted, or others, in an emptied folder."""
    with reproduce.locked(folder):
        former = json.loads((folder / NOTE).read_text()) if (folder / NOTE).is_file() else None
        goes_on = former and not former["finished"] and former["count"] == count and seed in (None, former["seed"])
        if not goes_on:
            _empty(folder)
        seed = former["seed"] if goes_on else random.SystemRandom().randrange(10**6) if seed is None else seed
        write_json(folder / NOTE, {"seed": seed, "count": count, "finished": False})
    drawn = random.Random(seed).sample(sorted(names), min(count, len(names)))
    print(f"seed {seed} draws {', '.join(drawn)}: they run in {shown(folder)}, with what they need", flush=True)
    return drawn


def _empty(folder: Path) -> None:
    """Remove what a former verification left. Raises ValueError where the folder holds something else."""
    found = [path for path in folder.iterdir() if path.name != ".lock"]
    if found and not (folder / NOTE).is_file():
        raise ValueError(f"{shown(folder)} holds another run: rename the study that it is of, or move it away")
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def main() -> int:
    """Parse the command line and compare; exit status 2 and one sentence where that cannot be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default="embedded", help="name of a file under studies/, or a path")
    parser.add_argument("--jobs", type=int, default=0, help="run so many random jobs again (default 0: compare a run)")
    parser.add_argument("--seed", type=int, help="draw the same jobs again (default: others each time)")
    parser.add_argument("--run", help="folder of the run (default work/<study>, with --jobs work/<study>-verify)")
    parser.add_argument("--results", type=Path, help="folder of the committed results (default results/<study>)")
    arguments = parser.parse_args()
    try:
        with disk.told():
            found = _verify(arguments)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if isinstance(found, int):
        return found
    print(found.text())
    return 0 if found.agrees else 1


def _verify(arguments: argparse.Namespace) -> verification.Comparison | int:
    study, name = arguments.study, name_of(arguments.study)
    results = arguments.results or committed_results(name)
    if not (results / "records").is_dir():
        raise FileNotFoundError(verification.NO_REFERENCE.format(study=study))
    if arguments.jobs < 0:
        raise ValueError(f"--jobs is {arguments.jobs}: ask for at least 1, or leave it out to compare a run as it is")
    if arguments.jobs:
        run = arguments.run or f"work/{name}-verify"
        return _drawn(study, run=run, results=results, count=arguments.jobs, seed=arguments.seed)
    return verification.compare_run(study, run=Run.at(arguments.run or f"work/{name}").folder, results=results)


if __name__ == "__main__":
    raise SystemExit(main())
