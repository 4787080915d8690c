"""Generation tasks: the decode loop under lm-eval, beside lm-eval's HFLM."""

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from benchmarks import some_rows
from sdd_utils.engine import lm_eval_model
from sdd_utils.models import store
from sdd_utils.steps import evaluation

NAME = "generation tasks"
TASKS = {"gsm8k": 5} if some_rows.HUB else {"gsm_symbolic": 5}
FULL = {"tasks": TASKS, "limit": 2, "batch_size": 8, "new_tokens": 256}  # lm-eval's own limit
LARGE = {"limit": 1}
MEMORY = {"limit": 1}
SMALL = {"tasks": {"gsm_symbolic": 1}, "limit": 3, "batch_size": 2, "new_tokens": 32}
DTYPE = "float32"  # so that the answers can be compared closely


def prepare(model, *, scratch, tasks: dict[str, int], limit: int, batch_size: int, new_tokens: int) -> dict:
    loaded, tokenizer = store.load_model(model)
    settings = {"pretrained": loaded, "tokenizer": tokenizer, "batch_size": batch_size, "device": str(loaded.device)}
    local = set(tasks) <= set(evaluation.local_tasks())
    manager = TaskManager(include_path=str(evaluation.TASKS), include_defaults=not local)
    asked = {"limit": limit, "task_manager": manager, "gen_kwargs": {"max_gen_toks": new_tokens}}
    return {"tasks": tasks, "settings": settings, "asked": asked}


def scores(state, kind: type[HFLM]) -> dict:
    """By task: responses of every document, as they are and as the filters leave them."""
    wrapped, found = kind(**state["settings"]), {}
    for task, shots in state["tasks"].items():
        asked = {"tasks": [task], "num_fewshot": shots, **state["asked"]}
        results = lm_eval.simple_evaluate(wrapped, **asked, bootstrap_iters=0, log_samples=True, verbosity="ERROR")
        samples = sorted(results["samples"][task], key=lambda sample: (sample["filter"], sample["doc_id"]))
        found[task] = {"resps": [s["resps"] for s in samples], "filtered": [s["filtered_resps"] for s in samples]}
    return found


def ours(state) -> dict:
    return scores(state, lm_eval_model.SharedContextLM)


def hflm(state) -> dict:
    return scores(state, HFLM)


PEERS = {"lm-eval HFLM": (hflm, 1)}


def same(state, ours, peer) -> tuple[bool, str]:
    """The same extracted answers, by every filter; whole texts may differ where rounding decides between two tokens."""
    extracted = all(ours[task]["filtered"] == peer[task]["filtered"] for task in peer)
    differ = sum(a != b for task in peer for a, b in zip(ours[task]["resps"], peer[task]["resps"], strict=True))
    tasks = ", ".join(f"{task} {shots}-shot" for task, shots in state["tasks"].items())
    return extracted, f"{tasks}, {state['asked']['limit']} documents, {differ} texts differ (counted once per filter)"
