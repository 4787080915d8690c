"""A model without chosen layers is scored as one that was cut by hand, and leaves nothing but its scores."""

import pytest

from sdd_utils.models import store
from sdd_utils.steps import cut_models, evaluation, fidelity, pruning

CHOICES = [
    {"strategy": "deepest_but_last", "draw": 0, "block_size": 2, "removed": [2, 3]},
    {"strategy": "random", "draw": 1, "block_size": 2, "removed": [0, 4]},
]
SCORING = {"tasks": {"facts": 6}, "shots": {}, "chat_tasks": [], "batch_size": 4}
ANSWERS = {"d": [{"id": "1", "prompt": "one and", "text": " two", "finish": "stop"}]}


@pytest.fixture
def scored(model_folder, tmp_path):
    places = {"folder": lambda name: tmp_path / "cut" / name, "scores": lambda name: tmp_path / f"{name}.jsonl"}
    return lambda: list(cut_models.scored_without(model_folder, CHOICES, answers=ANSWERS, **places, **SCORING))


def test_scores_and_fidelity_are_those_of_a_model_cut_by_hand(scored, model_folder):
    for found, choice in zip(scored(), CHOICES, strict=True):
        original, tokenizer = store.load_model(model_folder)
        cut = pruning.remove_layers(store.load_model(model_folder)[0], choice["removed"])
        by_hand = dict(evaluation.score_loaded_model(cut, tokenizer, **SCORING))
        measures = ("accuracy", "choice_probability", "gold_bits_per_byte")
        for measure in measures:
            documents = found["scores"]["facts"][measure]["documents"]
            assert documents == pytest.approx(by_hand["facts"][measure]["documents"], abs=1e-5)
        faithful = fidelity.measure_fidelity(original, cut, tokenizer, ANSWERS)["d"]
        assert found["fidelity"]["d"]["kl"] == pytest.approx(faithful["kl"], rel=1e-4)
        assert choice.items() >= {key: found[key] for key in ("strategy", "draw", "removed")}.items()


def test_the_models_are_gone_and_a_rerun_reads_what_was_scored(scored, tmp_path, monkeypatch):
    first = scored()
    assert list((tmp_path / "cut").iterdir()) == []
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == [
        "n2-deepest_but_last-0.jsonl",
        "n2-random-1.jsonl",
    ]
    monkeypatch.setattr(evaluation, "score_loaded_model", lambda *_, **__: pytest.fail("scored again"))
    assert scored() == first
