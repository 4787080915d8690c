"""What it costs to evaluate one model of a study: `python -m benchmarks.evaluation_cost laptop --model FOLDER`.

Writes `evaluation_cost.json` and `.md` beside this file. Entries of other studies, models and processors stay. The
time holds neither the loading of the model nor that of lm-eval's index, but reading the tasks' documents.
"""

import argparse
import time
from pathlib import Path

import pandas as pd

from benchmarks import compare, run
from sdd_utils.base import precision
from sdd_utils.base.provenance import cpu_name
from sdd_utils.models import store
from sdd_utils.steps import evaluation
from sdd_utils.study.schema import load_study

OUT = Path(__file__).with_suffix(".json")


def measure(model: str, **settings) -> dict[str, dict]:
    """{documents, seconds} by task; the settings are those of `evaluation.score_loaded_model`."""
    loaded = store.load_model(model)
    evaluation.check_tasks(settings["tasks"])
    measured, start = {}, time.perf_counter()
    for task, score in evaluation.score_loaded_model(*loaded, **settings):
        measured[task] = {"documents": score["n"], "seconds": round(time.perf_counter() - start, 2)}
        start = time.perf_counter()
    return measured


def table(entries: list[dict]) -> pd.DataFrame:
    """A row per study, model and processor."""
    return pd.DataFrame(
        {
            "study": entry["study"],
            "model": entry["model"],
            "minutes": f"{sum(task['seconds'] for task in entry['tasks'].values()) / 60:.1f}",
            "seconds by task (documents)": ", ".join(
                f"{name} {task['seconds']:.0f} ({task['documents']})" for name, task in entry["tasks"].items()
            ),
            "precision": entry["dtype"],
            "processor": entry["processor"],
        }
        for entry in entries
    )


def add(entry: dict) -> None:
    """Put an entry in the place of the one of the same study, model and processor, and fill the page."""
    run.keep([entry], OUT, key=("study", "model", "processor"), table=table)


def main() -> None:
    """Evaluate a model by the tasks of a study, and keep what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="its name or file")
    parser.add_argument("--model", help="another model than the study's, as the study key `model` names them")
    given = parser.parse_args()
    study = load_study(given.study)
    model = given.model or study.model
    settings = {"shots": study.shots, "chat_tasks": study.chat_tasks, "batch_size": study.evaluation_batch}
    tasks = measure(model, tasks=study.tasks, **settings)
    entry = {"study": Path(given.study).name.removesuffix(".yaml"), "model": compare.model_name(model)}
    entry |= {"processor": cpu_name(), "dtype": precision.dtype_name(), "tasks": tasks}
    add(entry)
    print(run.as_markdown(table([entry])))


if __name__ == "__main__":
    main()
