"""Fetch everything that a study reads from the hub: `python -m sdd_utils.prefetch paper-llama3.1-8b`.

For machines whose compute nodes have no network: run it on the login node, then the study with HF_HUB_OFFLINE=1. An
interrupted call goes on where it stopped. Data sets are kept under `work/data`, everything else in the hub's own
cache (HF_HOME).
"""

import argparse
import functools
import sys
from collections.abc import Callable, Iterator

from sdd_utils import study as studies


def main() -> int:
    """Parse the command line and fetch; 0 when everything is here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default="embedded", help="name of a file under studies/, or a path")
    try:
        study = studies.load(parser.parse_args().study)
        for what, fetch in parts(study):
            print(f"{what} ...", end=" ", flush=True)
            print(fetch() or "here")
    except (ValueError, OSError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 2
    print("everything is here: the study now runs with HF_HUB_OFFLINE=1")
    return 0


def parts(study: studies.Study) -> Iterator[tuple[str, Callable[[], str | None]]]:
    """What a study reads, smallest and likeliest to fail first: a name, and the call that fetches it."""
    from sdd_utils import data, embeddings, evaluation, models

    rule = {"own_data": study.own_data, "max_response_words": study.max_response_words}

    def rows(name: str) -> str:
        data.load(name, split="test", rows=study.answer_prompts, **rule)
        return f"{len(data.load(name, split='train', rows=study.data_sets[name], **rule))} rows"

    def texts() -> str:
        sets, count = study.calibration_sets, study.calibration_rows
        return f"{len(data.calibration(sets, rows=count, own_data=study.own_data))} rows"

    yield f"configuration of {study.model}", lambda: models.load_config(study.model) and None
    yield from ((f"data set {name}", functools.partial(rows, name)) for name in study.data_sets)
    yield f"calibration set, from {', '.join(study.calibration_sets)}", texts
    yield f"sentence encoder {study.encoder}", lambda: embeddings.encoder_path(study.encoder) and None
    yield f"tasks {', '.join(study.tasks)}", lambda: evaluation.fetch(study.tasks)
    yield f"model {study.model}", lambda: models.find(study.model) and None


if __name__ == "__main__":
    raise SystemExit(main())
