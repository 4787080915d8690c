"""When Self-Data FT pays: the share of own words of each setting, and the lead of each cell alone."""

import pytest
from study_records import measured, score

from sdd_utils.analysis.acceptance import acceptance_points, own_words
from sdd_utils.report.across_studies import acceptance_figure

DISTILLED = {"rows": 10, "fallback_rate": 0.2, "copy_rate": 0.2, "attempts": [{"rewritten": 10, "kept": 6}]}


def test_own_words_are_kept_rewrites_without_copies():
    assert own_words(DISTILLED, "self_data_ft") == pytest.approx(0.6)
    assert own_words(DISTILLED, "kept_rows_ft") == pytest.approx(0.75)
    assert own_words(DISTILLED, "first_attempt_ft") == pytest.approx(0.6 * 0.75)
    assert own_words(DISTILLED | {"fallback_rate": 1.0, "copy_rate": 0.0}, "kept_rows_ft") == 0


def scores(bits):
    """One task out of every domain, whose documents differ by as much in each model."""
    steps = (-0.02, -0.01, 0.01, 0.02)
    return {"quiz": score([1] * 4) | {"gold_bits_per_byte": measured([bits + step for step in steps])}}


def tuned(n, data_set, **bits):
    arms = {arm: {"scores": scores(value), "training": {"rows": 8}} for arm, value in bits.items()}
    params = {"block_size": n, "data_set": data_set, "seed": 0, "capacity": ""}
    return {"step": "finetuning", "params": params, "metrics": {"arms": arms}}


def study():
    pruned = [(0, 1.0), (4, 2.0), (6, 3.0)]
    records = [
        {"step": "pruning", "params": {"block_size": n, "model": "m"}, "metrics": {"scores": scores(bits)}}
        for n, bits in pruned
    ]
    records += [
        {"step": "distillation", "params": {"data_set": name}, "metrics": {"sets": {"distilled": DISTILLED}}}
        for name in ("a", "b")
    ]
    records += [tuned(4, "a", sft=1.6, self_data_ft=1.5, kept_rows_ft=1.7), tuned(6, "b", sft=2.0, self_data_ft=1.0)]
    return records


def test_each_cell_and_setting_has_its_own_lead():
    points = {(p["block_size"], p["data_set"], p["arm"]): p for p in acceptance_points(study(), {})}
    assert {key: point["lead"] for key, point in points.items()} == {
        (4, "a", "self_data_ft"): pytest.approx(0.1),  # of a loss of 1 bit per byte
        (4, "a", "kept_rows_ft"): pytest.approx(-0.1),
        (6, "b", "self_data_ft"): pytest.approx(0.5),  # of 2
    }
    assert points[4, "a", "kept_rows_ft"]["own_words"] == pytest.approx(0.75)
    assert acceptance_points(study(), {"a": ["quiz"], "b": ["quiz"]}) == []  # no task is out of the domain


def test_the_figure_has_a_mark_for_each_point_at_its_place():
    points = [point | {"model": "m", "study": "s"} for point in acceptance_points(study(), {})]
    (axis,) = acceptance_figure(points).axes
    shown = {bars.get_label(): bars[0].get_xydata().tolist() for bars in axis.containers}
    assert shown["m, all attempts"] == [[pytest.approx(60), pytest.approx(10)], [pytest.approx(60), pytest.approx(50)]]
    assert shown["m, kept rows alone"] == [[pytest.approx(75), pytest.approx(-10)]]
    assert [text.get_text() for text in axis.texts] == ["s: a, n = 4", "s: b, n = 6", "s: a, n = 4"]
