"""The campaign of faults, run by hand: `python -m tests.faults.run [PART…] [--tries N]`, half an hour for all parts.

It disturbs studies in copies of the repository under work/faults, and counts in results/faults.json what survived.
Interrupted anywhere, the same command goes on; a part that was counted on this very commit is not run again. What an
older commit counted stays until the part is run again: `provenance` says by part which commit that was.
"""

import argparse
import json
import signal
import sys

from sdd_utils import ROOT
from sdd_utils.base.files import write_json
from sdd_utils.base.provenance import process_provenance
from tests.faults import disk_full, hub, interrupted, two_at_once

PATH = ROOT / "results" / "faults.json"
PARTS = {  # by name: what runs it, and how many tries it has
    "kills": (interrupted.kills, 20),
    "hub": (hub.hub, 4),
    "disk_full": (disk_full.disk_full, 14),
    "two_at_once": (two_at_once.two_at_once, 5),
    "sigterm": (interrupted.sigterm, 7),
}


def main() -> int:
    """Run the parts that are asked for; 0 if all survived and nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; none is all of them")
    parser.add_argument("--tries", type=int, help="in each part, in place of its own number")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"part {unknown.pop()!r} is unknown: use {', '.join(PARTS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended at exit
    for part in arguments.parts or PARTS:
        work, tries = PARTS[part]
        if not _is_counted(part):
            counts = work(arguments.tries or tries)
            print(f"{part}: {counts}", flush=True)
            found = _found()
            made = found.get("provenance", {}) | {part: process_provenance(seed=0)}
            write_json(PATH, found | {part: counts, "provenance": made})
    counts = [found for part, found in _found().items() if part in PARTS]
    return 0 if all(count["survived"] == count["tried"] and not count["rows_lost"] for count in counts) else 1


def _found() -> dict:
    """What the file holds: counts by part, and the provenance of each."""
    return json.loads(PATH.read_text()) if PATH.is_file() else {}


def _is_counted(part: str) -> bool:
    """Whether this very commit has counted the part."""
    now, then = process_provenance(seed=0), _found().get("provenance", {}).get(part, {})
    return not now["dirty"] and all(now[key] == then.get(key) for key in ("commit", "device", "dtype"))


if __name__ == "__main__":
    raise SystemExit(main())
