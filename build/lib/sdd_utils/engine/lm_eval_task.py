"""One task by lm-eval, with the log-likelihoods of every document's choices in a form of their own."""

from unittest import mock

import lm_eval
from lm_eval.tasks import TaskManager


def evaluate_task(lm, task: str, *, manager: TaskManager, limit: int, shots: int | None, chat: bool) -> dict:
    """What `lm_eval.simple_evaluate` returns for one task or group.

    Each of its samples has `choices` as well, see `base.choices`; None where a text was generated. `gold` is empty
    where a task has a rule of its own for what is right.

    Args:
        lm: a model as lm-eval knows it.
        limit: documents, the first ones; 0 is all.
        shots: few-shot examples; None is the task's own number.
        chat: whether to ask in the model's chat format.
    """
    loaded = manager.load([task])
    # After every call lm-eval would ask pip for all packages; records name the versions themselves.
    with mock.patch("lm_eval.evaluator.add_env_info"):
        results = lm_eval.simple_evaluate(
            lm,
            tasks=[loaded["groups"].get(task) or loaded["tasks"][task]],
            limit=limit or None,
            num_fewshot=shots,
            apply_chat_template=chat,
            task_manager=manager,
            bootstrap_iters=0,
            log_samples=True,
            verbosity="ERROR",
        )
    for leaf, samples in results["samples"].items():
        for sample in samples:
            sample["choices"] = _choices(loaded["tasks"][leaf], sample)
    return results


def _choices(task, sample: dict) -> dict | None:
    if task.OUTPUT_TYPE == "generate_until":
        return None
    # A task that asks for mutual information scores its choices once more, without their question.
    count = len(task.doc_to_choice(sample["doc"])) if task.OUTPUT_TYPE == "multiple_choice" else 1
    # A rolling text has its log-likelihood alone, any other (log-likelihood, is greedy).
    firsts = [responses[0] for responses in sample["resps"][:count]]
    nats = [first[0] if isinstance(first, tuple | list) else first for first in firsts]
    return {
        "gold": _gold(task, sample["doc"], count=count),
        "nats": [float(f"{value:.7g}") for value in nats],  # what float32 holds
        "bytes": [max(len(arguments[-1].encode()), 1) for arguments in sample["arguments"]][:count],
    }


def _gold(task, document: dict, *, count: int) -> list[int]:
    """Places of the right choices, as lm-eval's own scoring finds them."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return [0]
    if task.config.process_results:
        return []
    gold = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    choices = task.doc_to_choice(document)
    places = [choices.index(one) if one in choices else one for one in (gold if isinstance(gold, list) else [gold])]
    return [place for place in places if isinstance(place, int) and place < count]
