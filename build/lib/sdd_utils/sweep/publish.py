"""Make a finished run the committed results of its study: `python -m sdd_utils.sweep.publish embedded`.

Nothing else writes into `results/<study>/`, which later runs are compared with (see `analysis.verification`).
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from sdd_utils import ROOT
from sdd_utils.base import disk
from sdd_utils.base.files import whole_folder
from sdd_utils.base.records import records_by_file
from sdd_utils.report.redraw import redraw
from sdd_utils.report.topics import StudyReport
from sdd_utils.study.jobs import other_keys, study_jobs
from sdd_utils.study.paths import Run, committed_results, shown
from sdd_utils.study.schema import load_study, name_of
from sdd_utils.sweep.reproduce import locked
from sdd_utils.sweep.run_notebook import kept_notebook


def publish(run: Run, *, out: Path, study) -> None:
    """Copy a finished run's records and executed notebooks, then draw what follows from the records.

    Raises:
        ValueError: the run is not finished, or is one of other keys than the study has now.
    """
    names = [job.name for job in study_jobs(study)]
    _check_finished(run, study=study)
    with whole_folder(out / "records") as records, whole_folder(out / "notebooks") as notebooks:
        for name in names:
            shutil.copy(run.records / f"{name}.json", records)
            executed = run.notebooks / f"{name}.ipynb"
            (notebooks / executed.name).write_text(kept_notebook(executed), encoding="utf-8")
    redraw(out)


def _check_places(run: Path, *, out: Path) -> None:
    """Publishing empties folders of its own: they must not be those of the run, or of the repository."""
    if not (run / "records").is_dir():
        raise FileNotFoundError(f"{shown(run)} holds no run: 'make reproduce' makes one")
    if run.is_relative_to(out) or out.is_relative_to(run) or ROOT.is_relative_to(out):
        raise ValueError(f"--results {out} holds the run or the repository, or lies in the run: name another folder")


def _check_finished(run: Run, *, study) -> None:
    jobs, place = study_jobs(study), shown(run.folder)
    fix = "let 'make reproduce' come to its end first"
    places = {job.name: (run.records / f"{job.name}.json", run.notebooks / f"{job.name}.ipynb") for job in jobs}
    missing = [name for name, paths in places.items() if not all(path.is_file() for path in paths)]
    if missing:
        raise ValueError(f"{place} is no finished run, {len(missing)} of {len(jobs)} jobs are missing: {fix}")
    records = records_by_file(run.records, names=[f"{job.name}.json" for job in jobs])
    for job in jobs:
        if other := other_keys(records[f"{job.name}.json"]["params"], job=job, study=study):
            raise ValueError(f"{job.name} in {place} was made with another {other[0]} than the study has now: {fix}")
    results = records.pop("results.json")
    if len(precisions := sorted({record["provenance"]["dtype"] for record in records.values()})) > 1:
        raise ValueError(
            f"{place} holds jobs in {' and '.join(precisions)}, which are not comparable: set SDD_DTYPE, {fix}"
        )
    report = StudyReport(records, in_domain=study.in_domain, folder=run.folder)
    if json.loads(json.dumps(report.summary())) != results["metrics"]:
        raise ValueError(f"results.json in {place} does not follow from the records beside it: {fix}")


def main() -> int:
    """Parse the command line and publish; exit status 2 and one sentence where that cannot be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default="embedded", help="name of a file under studies/, or a path")
    parser.add_argument("--run", help="folder of the run (default work/<study>)")
    parser.add_argument("--results", type=Path, help="folder of the committed results (default results/<study>)")
    arguments = parser.parse_args()
    try:
        study, name = load_study(arguments.study), name_of(arguments.study)
        run, out = Run.at(arguments.run or f"work/{name}"), arguments.results or committed_results(name)
        _check_places(run.folder.resolve(), out=out.resolve())
        with disk.told(), locked(run.folder):
            publish(run, out=out, study=study)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"published: {shown(out)}; look at what changed, and commit it")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
