"""Multiple choice with many shots: each context read once, beside lm-eval's HFLM, which reads it once per choice."""

import lm_eval
import numpy as np
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from benchmarks import some_rows
from sdd_utils.engine import lm_eval_model
from sdd_utils.models import store
from sdd_utils.steps import evaluation

NAME = "multiple choice"
FACTS = {"facts": 25}
ASKED = {"arc_challenge": 25, "hellaswag": 10} if some_rows.HUB else FACTS
FULL = {"tasks": ASKED, "limit": 4, "batch_size": 4}
MEMORY = {"limit": 2}  # one batch
DTYPE = "float32"  # so that the answers can be compared closely
SMALL = {"tasks": FACTS | {"facts": 2}, "limit": 3, "batch_size": 2}


def prepare(model, *, scratch, tasks: dict[str, int], limit: int, batch_size: int) -> dict:
    loaded, tokenizer = store.load_model(model)
    settings = {"pretrained": loaded, "tokenizer": tokenizer, "batch_size": batch_size, "device": str(loaded.device)}
    local = set(tasks) <= set(evaluation.local_tasks())
    manager = TaskManager(include_path=str(evaluation.TASKS), include_defaults=not local)
    return {"tasks": tasks, "limit": limit, "settings": settings, "manager": manager}


def scores(state, kind: type[HFLM]) -> dict:
    """By task: lm-eval's values and, per document, its responses."""
    wrapped, found = kind(**state["settings"]), {}
    for task, shots in state["tasks"].items():
        asked = {"tasks": [task], "num_fewshot": shots, "limit": state["limit"], "task_manager": state["manager"]}
        results = lm_eval.simple_evaluate(wrapped, **asked, bootstrap_iters=0, log_samples=True, verbosity="ERROR")
        samples = sorted(results["samples"][task], key=lambda sample: (sample["filter"], sample["doc_id"]))
        values = {key: value for key, value in results["results"][task].items() if "," in key}
        found[task] = {
            "values": values,
            "resps": [s["resps"] for s in samples],
            "filtered": [s["filtered_resps"] for s in samples],
        }
    return found


def ours(state) -> dict:
    return scores(state, lm_eval_model.SharedContextLM)


def hflm(state) -> dict:
    return scores(state, HFLM)


PEERS = {"lm-eval HFLM": (hflm, 2)}


def _likelihoods(answer: dict) -> np.ndarray:
    return np.array([float(choice[0][0]) for task in answer.values() for resps in task["resps"] for choice in resps])


def same(state, ours, peer) -> tuple[bool, str]:
    gap = float(np.abs(_likelihoods(ours) - _likelihoods(peer)).max())
    accuracies = all(ours[task]["values"] == peer[task]["values"] for task in peer)
    tasks = ", ".join(f"{task} {shots}-shot" for task, shots in state["tasks"].items())
    return gap < 1e-3 and accuracies, f"{tasks}, {state['limit']} documents, largest difference {gap:.0e}"
