"""Recovery, the grid and its differences are the textbook's."""

import json

import numpy as np
import pytest
from study_records import measured, score, study_records

from sdd_utils.analysis import model_grid
from sdd_utils.analysis.published import NUMBERS, published_number
from sdd_utils.analysis.statistics import bootstrap_mean, recovery


def test_recovery_is_the_ratio_of_averages_and_leaves_losses_out():
    loss = {"metric": "bits_per_byte", "chance": 0.0, "gold_bits_per_byte": measured([3])}
    original = {"a": score([1, 1, 0, 1]), "b": score([1, 0]), "loss": loss}
    pruned = {"a": score([1, 0, 0, 1]), "b": score([0, 0]), "loss": loss}
    assert recovery(pruned, original) == pytest.approx((0.5 + 0) / (0.75 + 0.5))
    assert recovery(original, original) == 1
    with pytest.raises(ValueError, match="scores 0 on every task"):
        recovery(original, {"a": score([0, 0])})
    with pytest.raises(ValueError, match="no task has the measure 'accuracy'"):
        recovery(original, {"loss": loss})


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(1)
    covered = 0
    for repetition in range(300):
        low, high = bootstrap_mean(rng.normal(0.3, 1, 60), draws=400, seed=repetition)["interval"]
        covered += low <= 0.3 <= high
    assert 0.90 <= covered / 300 <= 0.98


def test_differences_are_paired_by_seed_whatever_the_order_of_the_records():
    records = study_records()
    more = [json.loads(json.dumps(records[-1])) for _ in range(2)]
    for seed, record in zip((2, 1), more, strict=True):
        record["params"]["seed"] = seed
        arms = record["metrics"]["arms"]
        arms["sft"]["scores"]["a"], arms["self_data_ft"]["scores"]["a"] = (
            score([1, 0, seed - 1, 0]),
            score([1, 1, seed - 1, 0]),
        )
    (entry,) = model_grid.differences(model_grid.model_grid([*records, *more]), model_grid.original_scores(records))
    assert (entry["seeds"], entry["documents"], entry["df"]["seeds"]) == (3, 4, 2)
    assert entry["difference"] == pytest.approx(0.25)
    assert entry["seed_share"] == 0  # the same difference at every seed
    assert entry["p_holm"] == entry["p"]
    del more[0]["metrics"]["arms"]["sft"]
    (entry,) = model_grid.differences(model_grid.model_grid([*records, *more]), model_grid.original_scores(records))
    assert entry["seeds"] == 2  # only seeds that both arms have


def test_several_seeds_are_averaged_by_document():
    records = study_records()
    second = json.loads(json.dumps(records[-1]))
    second["params"]["seed"] = 1
    second["metrics"]["arms"]["sft"]["scores"]["a"] = score([0, 0, 0, 0])
    row = next(row for row in model_grid.model_grid([*records, second]) if row["arm"] == "sft")
    assert (row["seeds"], row["scores"]["a"]["accuracy"]["documents"]) == (2, [0.5, 0, 0, 0])
    single = model_grid._mean_over_seeds([{"a": score([1])}, {"a": score([0])}])["a"]["accuracy"]
    assert (single["value"], single["stderr"]) == (0.5, 0.0)  # one document has no spread, not NaN


def test_published_numbers_have_sources():
    assert all(published.source and published.unit for published in NUMBERS)
    assert published_number("recovery_self_data_ft").value - published_number("recovery_sft").value == pytest.approx(
        9.5
    )


def test_fewer_rows_and_other_capacities_are_not_of_the_main_comparison():
    def tuned(rows, **params):
        made = {
            "block_size": 4,
            "data_set": "d",
            "capacity": "",
            "lora_rank": 16,
            "lora_alpha": 32,
            "lora_targets": "q",
        }
        return {
            "step": "finetuning",
            "params": made | params,
            "metrics": {"arms": {"sft": {"training": {"rows": rows}}}},
        }

    every, few, wide = tuned(48), tuned(12), tuned(48, capacity="r64", lora_rank=64)
    other = tuned(12, data_set="e")
    assert model_grid.main_finetunings([few, every, wide, other]) == [every, other]
    assert model_grid.main_finetunings([few, every, wide], lora=(64, 32, "q")) == [wide]
