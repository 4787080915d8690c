"""Draw a study's tables, figures and page again from its records, without a model.

python -m sdd_utils.report.redraw embedded            # the committed results: tables, PNG figures, index.html
python -m sdd_utils.report.redraw embedded --pages    # also figures as PDF and notebooks as HTML pages
python -m sdd_utils.report.redraw work/embedded       # those of a run, or of any other folder
"""

import argparse
import shutil
import sys
from pathlib import Path

from sdd_utils import ROOT
from sdd_utils.base import disk
from sdd_utils.base.records import read_record, records_by_file
from sdd_utils.report import notebook_pages, page
from sdd_utils.report.topics import StudyReport
from sdd_utils.study.paths import committed_results, shown


def redraw(folder: Path, *, pages: bool = False) -> None:
    """Make everything in a study's folder that follows from the records that 09 read; former figures and tables go.

    Args:
        pages: also write what git does not keep: figures as PDF, executed notebooks as HTML.

    Raises:
        FileNotFoundError, ValueError: a record is missing or of another schema.
    """
    summary = read_record(folder / "records" / "results.json")
    named = records_by_file(folder / "records", names=summary["params"]["record_names"])
    report = StudyReport(named, in_domain=summary["params"]["in_domain"], folder=folder)
    for name in ("figures", "tables"):
        shutil.rmtree(folder / name, ignore_errors=True)
    report.write_all(suffixes=("png", "pdf") if pages else ("png",))
    page.build_page(report, summary)
    if pages:
        notebook_pages.write_pages(folder / "notebooks", folder / "html")


def main() -> int:
    """Parse the command line and redraw; exit status 2 and one sentence where records are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default="embedded", help="name of a folder under results/, or a path")
    parser.add_argument("--pages", action="store_true", help="also write PDF figures and HTML notebooks")
    arguments = parser.parse_args()
    study = arguments.study
    folder = ROOT / study if "/" in study else committed_results(study)
    try:
        if not (folder / "records").is_dir():
            fix = f"run 'make reproduce STUDY={study}' and 'make publish STUDY={study}', or name the folder of a run"
            raise FileNotFoundError(f"{shown(folder)} holds no records: {fix}, such as work/embedded")
        with disk.told():
            redraw(folder, pages=arguments.pages)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"drawn from the records: {folder / 'tables'}, {folder / 'figures'}, {folder / 'index.html'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
