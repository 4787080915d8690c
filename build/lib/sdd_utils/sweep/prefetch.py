"""Fetch everything that a study reads from the hub: `python -m sdd_utils.sweep.prefetch paper-llama3.1-8b`.

For machines whose compute nodes have no network: run it on the login node, then the study with HF_HUB_OFFLINE=1. An
interrupted call goes on where it stopped. Data sets are kept under `work/data`, everything else in the hub's own
cache (HF_HOME).
"""

import argparse
import functools
import sys
from collections.abc import Callable, Iterator

from sdd_utils.base import disk
from sdd_utils.data.rows import calibration_set, load_rows
from sdd_utils.models import store
from sdd_utils.steps import answer_similarity, evaluation
from sdd_utils.study.schema import Study, load_study


def main() -> int:
    """Parse the command line and fetch; 0 when everything is here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default="embedded", help="name of a file under studies/, or a path")
    try:
        study = load_study(parser.parse_args().study)
        for what, fetch in parts(study):
            print(f"{what} ...", end=" ", flush=True)
            with disk.told():
                print(fetch() or "here")
    except (ValueError, OSError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 2
    print("everything is here: the study now runs with HF_HUB_OFFLINE=1")
    return 0


def parts(study: Study) -> Iterator[tuple[str, Callable[[], str | None]]]:
    """What a study reads, smallest and likeliest to fail first: a name, and the call that fetches it."""

    rule = {"own_data": study.own_data, "max_response_words": study.max_response_words}

    def rows(name: str) -> str:
        load_rows(name, split="test", rows=study.answer_prompts, **rule)
        return f"{len(load_rows(name, split='train', rows=study.data_sets[name], **rule))} rows"

    def texts() -> str:
        sets, count = study.calibration_sets, study.calibration_rows
        return f"{len(calibration_set(sets, rows=count, own_data=study.own_data))} rows"

    yield f"configuration of {study.model}", lambda: store.load_config(study.model) and None
    yield from ((f"data set {name}", functools.partial(rows, name)) for name in study.data_sets)
    yield f"calibration set, from {', '.join(study.calibration_sets)}", texts
    yield f"sentence encoder {study.encoder}", lambda: answer_similarity.encoder_path(study.encoder) and None
    yield f"tasks {', '.join(study.tasks)}", lambda: evaluation.fetch(study.tasks)
    yield f"model {study.model}", lambda: store.find_model(study.model) and None


if __name__ == "__main__":
    raise SystemExit(main())
