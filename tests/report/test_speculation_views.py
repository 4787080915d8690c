"""Tables and figure of speculative decoding show what the record holds, and what the formulas make of it."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from figure_data import intervals, lines, speculation

from sdd_utils.analysis.speculation import best_draft, pooled_acceptance, speed_up
from sdd_utils.base.records import SpeculationMetrics
from sdd_utils.report import speculation_views
from sdd_utils.report.figures import NAMES

METRICS = speculation()
GREEDY = pooled_acceptance(METRICS, measure="greedy_acceptance")


@pytest.fixture
def panels():
    yield speculation_views.speculation_figure(METRICS).axes
    plt.close("all")


def test_acceptance_of_every_arm_stands_beside_the_cost_ratio_that_it_has_to_beat(panels):
    for axis, measure in zip(panels, ("greedy_acceptance", "sampling_acceptance"), strict=False):
        rows, drawn = pooled_acceptance(METRICS, measure=measure), lines(axis)
        assert set(drawn) == {"No FT", "SFT", "Self-Data FT"}
        for arm in ("no_ft", "sft", "self_data_ft"):
            own = [row for row in rows if row["arm"] == arm]
            at = drawn[NAMES[arm]]
            assert at.lines[0].get_ydata().tolist() == pytest.approx([row["acceptance"] for row in own])
            assert np.round(at.lines[0].get_xdata()).tolist() == [row["block_size"] for row in own]
            assert intervals(at) == pytest.approx(np.array([row["interval"] for row in own]))
        ratios = {line.get_label(): line.get_ydata() for line in axis.lines if "cost" in line.get_label()}
        assert ratios["cost ratio, timed"] == pytest.approx([1 - n / 40 for n in (3, 6, 9)])
        assert ratios["cost ratio, by weights"] == pytest.approx([1 - n / 38 for n in (3, 6, 9)])


def test_gains_are_those_of_the_formula_at_the_fine_tuned_block_size_with_their_optimum(panels):
    drawn = panels[2].lines
    assert "n = 6" in panels[2].get_title()
    for row in (row for row in GREEDY if row["block_size"] == 6):
        a, (curve, star) = row["acceptance"], _pair(drawn, row["arm"])
        expected = [speed_up(a, draft_tokens=g, cost_ratio=0.85) for g in range(17)]
        assert curve.get_ydata().tolist() == pytest.approx(expected)
        assert (*star.get_xdata(), *star.get_ydata()) == pytest.approx(best_draft(a, cost_ratio=0.85))
    bound = next(line for line in drawn if line.get_label() == "every token accepted")
    assert bound.get_ydata().max() < 1 / 0.85


def _pair(drawn, arm):
    """The curve of an arm, and the star behind it."""
    place = next(i for i, line in enumerate(drawn) if line.get_label() == NAMES[arm])
    return drawn[place], drawn[place + 1]


def test_the_table_says_which_arm_is_favoured_and_what_is_best():
    table = speculation_views.acceptance_table(METRICS)
    favours, *rows = table.to_dict("records")
    assert favours["model"] == "Favours"
    assert favours["greedy acceptance"] == favours["greedy, a"] == "Self-Data FT"
    assert favours["cost ratio"] == favours["expected speed-up"] == "-"
    assert [(row["n"], row["model"], row["seeds"]) for row in rows] == [
        (3, "No FT", 1), (6, "No FT", 1), (6, "SFT", 3), (6, "Self-Data FT", 3), (9, "No FT", 1)
    ]  # fmt: skip
    for row, pooled in zip(rows, GREEDY, strict=True):
        drafted, gain = best_draft(pooled["acceptance"], cost_ratio=1 - row["n"] / 40)
        assert (row["best draft tokens"], row["expected speed-up"]) == (drafted, f"{gain:.2f}")
        assert row["greedy acceptance"].startswith(f"{100 * pooled['acceptance']:.1f} % [")
        assert row["cost ratio"] == f"{1 - row['n'] / 40:.2f}"


def test_decoding_stands_beside_its_forecast():
    (column,) = speculation_views.decoding_table(METRICS).to_dict("records")
    assert column["tokens per pass"] == "1.778"  # 320 / 180
    assert column["tokens per pass by the formula"] == "1.938"  # 1 + 1/2 + 1/4 + 1/8 + 1/16
    assert column["speed-up"] == "0.71"  # 10 / 14
    assert column["speed-up by the formula"] == f"{1.9375 / (4 * 0.85 + 1):.2f}"
    assert column["speed-up by the formula, verification as timed"] == f"{1.9375 / (4 * 0.85 + 1.5):.2f}"
    assert column["prompts, same texts"] == "8, 8"


def test_the_data_of_these_tests_are_a_record():
    from pydantic import TypeAdapter

    assert TypeAdapter(SpeculationMetrics).validate_python(METRICS)
