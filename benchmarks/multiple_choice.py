"""Multiple choice with its continuous measures: each context read once, beside lm-eval's HFLM, once per choice."""

from os.path import commonprefix
from unittest import mock

import numpy as np
from lm_eval.models.huggingface import HFLM

from benchmarks import roofline, some_rows
from sdd_utils.base import precision
from sdd_utils.base.choices import unpacked
from sdd_utils.engine import lm_eval_model
from sdd_utils.models import store
from sdd_utils.steps import evaluation

NAME = "multiple choice"
FACTS = {"facts": 25}
ASKED = {"arc_challenge": 25, "hellaswag": 10} if some_rows.HUB else FACTS
FULL = {"shots": ASKED, "documents": 1, "batch_size": 4}
LARGE = {"shots": dict.fromkeys([*ASKED][:1], 10)}
DTYPE = "float32"  # so that the answers can be compared closely
SMALL = {"shots": {"facts": 2}, "documents": 3, "batch_size": 2}
MEASURES = ("accuracy", "choice_probability", "gold_bits_per_byte", "margin")
ALLOWED = {"float32": 1e-3, "bfloat16": 0.5}  # difference of a log-likelihood


def prepare(model, *, scratch, shots: dict[str, int], documents: int, batch_size: int) -> dict:
    loaded, tokenizer = store.load_model(model)
    evaluation.check_tasks(shots)  # makes lm-eval's index, which takes long
    settings = {"shots": shots, "chat_tasks": [], "batch_size": batch_size}
    return {"model": (loaded, tokenizer), "settings": settings | {"tasks": dict.fromkeys(shots, documents)}}


def ours(state) -> dict[str, dict]:
    """Scores by task, see `evaluation.evaluate_model`."""
    return dict(evaluation.score_loaded_model(*state["model"], **state["settings"]))


def hflm(state) -> dict[str, dict]:
    with mock.patch.object(evaluation, "SharedContextLM", HFLM):
        return ours(state)


PEERS = {"lm-eval HFLM": (hflm, 2)}


def least_seconds(model, state, answer) -> float:
    """Of the products of each context, as far as it is new, and of every choice, with the LM head on the choices."""
    asked = []

    def note(_, requests, **kwargs) -> list[tuple[float, bool]]:
        asked.extend((tuple(context), tuple(choice)) for _, context, choice in requests)
        return [(0.0, False)] * len(requests)

    with mock.patch.object(lm_eval_model.SharedContextLM, "_loglikelihood_tokens", note):
        ours(state)
    predicted = sum(len(choice) for _, choice in asked)
    tokens = _new_tokens({context for context, _ in asked}) + predicted - len(asked)
    flops = roofline.forward_flops(roofline.shape(model), tokens=tokens, predicted=predicted)
    return flops / roofline.product_rate(model)


def _new_tokens(contexts: set[tuple[int, ...]]) -> int:
    """How many tokens the contexts have where what several begin with counts once."""
    ordered = sorted(contexts)
    return sum(map(len, ordered)) - sum(len(commonprefix(pair)) for pair in zip(ordered, ordered[1:], strict=False))


def _nats(score: dict) -> np.ndarray:
    """The log-likelihoods of all documents' choices."""
    return np.concatenate([document["nats"] for document in unpacked(score["choices"])])


def same(state, ours, peer) -> tuple[bool, str]:
    """Log-likelihoods and every document's measures within rounding, and in float32 the same accuracies."""
    tasks, dtype = state["settings"]["tasks"], precision.dtype_name()
    gap = max(float(np.abs(_nats(ours[task]) - _nats(peer[task])).max()) for task in tasks)
    close = all(
        np.allclose(ours[task][name]["documents"], peer[task][name]["documents"], rtol=0, atol=ALLOWED[dtype])
        for task in tasks
        for name in MEASURES
        if name != "accuracy" or dtype == "float32"
    )
    asked = ", ".join(f"{task} {shots}-shot" for task, shots in state["settings"]["shots"].items())
    documents = f"{max(tasks.values())} documents each"
    return gap < ALLOWED[dtype] and close, f"{asked}, {documents}, largest difference of a log-likelihood {gap:.0e}"
