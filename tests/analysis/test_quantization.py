"""The front of quality against bytes, and what a smaller original gives instead of a pruned model."""

import numpy as np
import pytest

from sdd_utils.analysis import quantization

MB = 10**6


def stored(arm, kind, size, kl, choice):
    documents = {"tokens": 10, "nll": 1.0, "documents": []}
    scores = {"facts": {"choice_probability": {"value": choice, "stderr": 0.03}}, "gold": {}}
    scores["other"] = {"choice_probability": {"value": choice - 0.1, "stderr": 0.04}}
    fidelity = {name: documents | {"kl": kl + more} for name, more in (("a", -0.1), ("b", 0.1))}
    seconds = {"decoding": 0.02, "reading": 0.4}
    model = {"arm": arm, "block_size": 6 * (arm != "original"), "data_set": "", "format": kind, "bytes": size * MB}
    return model | {"scores": scores, "fidelity": fidelity, "seconds": seconds}


MODELS = [
    stored("original", "bf16", 270, 0.0, 0.6), stored("original", "nf4", 110, 0.4, 0.5),
    stored("no_ft", "bf16", 225, 1.0, 0.4), stored("no_ft", "int8", 135, 1.1, 0.41),
    stored("no_ft", "nf4", 95, 2.0, 0.3),
]  # fmt: skip
METRICS = {"read_tokens": 128, "models": {str(i): model for i, model in enumerate(MODELS)}}
ROWS = quantization.stored_models(METRICS)


def test_rows_are_means_over_answers_and_tasks_smallest_first():
    assert [row["bytes"] / MB for row in ROWS] == [95, 110, 135, 225, 270]
    largest = ROWS[-1]
    assert largest["kl"] == pytest.approx(0.0)
    assert largest["choice_probability"] == pytest.approx(0.55)  # 0.6 and 0.5; a task without choices has none
    assert largest["stderr"] == pytest.approx(np.hypot(0.03, 0.04) / 2)
    assert (largest["decoding"], largest["reading"]) == (pytest.approx(50), pytest.approx(320))


@pytest.mark.parametrize(("measure", "better"), [("kl", np.less), ("choice_probability", np.greater)])
def test_the_front_is_what_no_smaller_model_equals(measure, better):
    kept = quantization.front(ROWS, measure=measure)
    for row in ROWS:
        smaller = [other for other in ROWS if other["bytes"] <= row["bytes"] and other is not row]
        assert (row in kept) == all(better(row[measure], other[measure]) for other in smaller)
    assert [row["bytes"] / MB for row in kept] == [95, 110, 270]


def test_of_two_models_of_one_size_the_better_one_is_on_the_front():
    worse, better = ROWS[0] | {"kl": 3.0}, ROWS[0]
    assert quantization.front([worse, better], measure="kl") == [better]
    assert quantization.front([worse | {"bytes": better["bytes"] - 5}, better], measure="kl") == [better]


def test_a_smaller_original_stands_beside_a_pruned_model():
    by_size = {row["bytes"] // MB: row for row in ROWS}
    assert quantization.smaller_original(by_size[225], ROWS)["bytes"] == 110 * MB
    assert quantization.smaller_original(by_size[95], ROWS) is None
    said = [quantization.choice_in_words(by_size[size], ROWS) for size in (225, 95)]
    assert said[0].endswith("the original in nf4 has 110 MB and KL 0.400, so it is closer.")
    assert said[1].endswith("no format of the original is as small.")


def test_a_study_without_choices_has_no_choice_probability():
    models = {name: model | {"scores": {"gold": {}}} for name, model in METRICS["models"].items()}
    assert {row["choice_probability"] for row in quantization.stored_models(METRICS | {"models": models})} == {None}
