"""Recovery over a part of the tasks, and forgetting, against the textbook's formulas."""

import numpy as np
import pytest
from study_records import measured, score

from sdd_utils.analysis.forgetting import with_domains
from sdd_utils.analysis.statistics import recovery
from sdd_utils.report.tables import domain_table


def row(arm, data_set="", bits=(), **documents):
    scores = {task: score(values) for task, values in documents.items()}
    scores["loss"] = {"metric": "gold_bits_per_byte", "chance": 0.0, "gold_bits_per_byte": measured(bits)}
    found = {"arm": arm, "block_size": 2 * (arm != "original"), "data_set": data_set, "scores": scores}
    return found | {"by_seed": {0: scores}}


ROWS = [
    row("original", bits=[1.0, 1.1, 1.2], a=[1, 1, 1, 1], b=[1, 1], c=[1, 0, 1, 0]),
    row("no_ft", bits=[2.0, 2.3, 2.1], a=[0, 0, 0, 1], b=[1, 0], c=[1, 0, 1, 0]),
    row("sft", "d", bits=[1.5, 1.8, 1.6], a=[1, 1, 0, 1], b=[0, 0], c=[1, 0, 0, 0]),
    row("self_data_ft", "d", bits=[2.1, 2.4, 2.2], a=[1, 0, 0, 1], b=[1, 1], c=[1, 0, 1, 0]),
    row("merged", "d + e", bits=[1.0, 1.0, 1.0], a=[1, 0, 0, 1], b=[1, 1], c=[1, 0, 1, 0]),
]
ORIGINAL = ROWS[0]["scores"]


def test_domains_part_the_averaged_tasks():
    original, no_ft, sft, self_data, merged = with_domains(ROWS, ORIGINAL, {"d": ["a"]})
    assert "forgetting" not in original | no_ft | merged
    assert (sft["in_domain"]["tasks"], sft["out_of_domain"]["tasks"]) == (["a"], ["b", "c"])
    assert sft["in_domain"]["recovery"] == 0.75 / 1
    assert sft["out_of_domain"]["recovery"] == pytest.approx((0 + 0.25) / (1 + 0.5))
    assert sft["forgetting"]["value"] == pytest.approx(
        ((0.5 - 0) + (0.5 - 0.25)) / 2
    )  # lost a half of b, a quarter of c
    assert self_data["forgetting"]["value"] == pytest.approx((0.5 - 1) / 2)
    low, high = sft["forgetting"]["interval"]
    assert low <= sft["forgetting"]["value"] <= high
    assert sft["healed_in_domain"] is None
    assert (sft["healed_out_of_domain"]["tasks"], sft["healed_out_of_domain"]["share"]) == (
        ["loss"],
        pytest.approx((0.5 + 0.5 + 0.5) / (1.0 + 1.2 + 0.9)),
    )
    assert self_data["healed_out_of_domain"]["share"] == pytest.approx(-0.3 / 3.1)
    *_, sft, _, _ = with_domains(ROWS, ORIGINAL, {"d": ["a", "loss"]})
    assert (sft["healed_in_domain"]["tasks"], sft["healed_out_of_domain"]) == (["loss"], None)


def test_forgetting_has_the_interval_of_a_mean_of_differences():
    rng = np.random.default_rng(0)
    before, after = rng.integers(0, 2, (2, 400))
    few = {"bits": [1.0, 1.2]}
    rows = [ROWS[0], row("no_ft", a=before.tolist(), **few), row("sft", "d", a=after.tolist(), **few)]
    (forgetting,) = [r["forgetting"] for r in with_domains(rows, {"a": score([1] * 400)}, {}) if r["arm"] == "sft"]
    spread = (before - after).std() / np.sqrt(400)
    expected = (before - after).mean() + np.array([-1.96, 1.96]) * spread
    assert forgetting["interval"] == pytest.approx(expected, abs=0.2 * spread)
    same = with_domains([ROWS[0], rows[1], row("sft", "d", a=before.tolist(), **few)], {"a": score([1] * 400)}, {})
    assert same[-1]["forgetting"] == {"value": 0, "interval": [0, 0]}  # paired: the same documents have no spread


def test_nothing_in_domain_and_an_original_at_zero_are_blanks():
    *_, sft, _, _ = with_domains(ROWS, ORIGINAL, {})
    assert sft["in_domain"] is None
    assert sft["out_of_domain"]["recovery"] == pytest.approx(recovery(sft["scores"], ORIGINAL))
    *_, sft, _, _ = with_domains(ROWS, ORIGINAL | {"a": score([0, 0, 0, 0])}, {"d": ["a"]})
    assert sft["in_domain"] is None
    *_, sft, _, _ = with_domains(ROWS, ORIGINAL, {"d": ["a", "b", "c"]})
    assert (sft["out_of_domain"], sft["forgetting"]) == (None, None)
    table = domain_table(with_domains(ROWS, ORIGINAL, {"d": ["a"]}))
    assert table["model"].tolist() == ["Favours", "SFT", "Self-Data FT"]
    assert table["forgotten, points"][1].startswith("+37.5 [")
