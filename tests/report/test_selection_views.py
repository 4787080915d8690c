"""Chosen layers and their damage as figures and table: what is shown is what was given, without colour as well."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from figure_data import damage_points, intervals, lines

from sdd_utils.base.strategies import DRAWS, STRATEGIES
from sdd_utils.report import selection_views

CHOICES = [
    {"strategy": "angular", "draw": 0, "block_size": 2, "removed": [3, 4], "agreement": 0.5},
    {"strategy": "random", "draw": 0, "block_size": 2, "removed": [0, 5], "agreement": None},
    {"strategy": "random", "draw": 1, "block_size": 2, "removed": [2, 3], "agreement": None},
    {"strategy": "angular", "draw": 0, "block_size": 4, "removed": [1, 2, 3, 4], "agreement": 1.0},
    {"strategy": "iterative", "draw": 0, "block_size": 4, "removed": [0, 2, 3, 6], "agreement": 0.75},
]


@pytest.fixture(autouse=True)
def _no_figure_stays_open():
    yield
    plt.close("all")


def test_a_dark_cell_is_a_layer_that_goes():
    two, four = selection_views.chosen_layers(CHOICES, 7).axes
    for axis, names, removed in (
        (two, ["angular block, the paper's", "random, draw 1", "random, draw 2"], [[3, 4], [0, 5], [2, 3]]),
        (four, ["angular block, the paper's", "iterative"], [[1, 2, 3, 4], [0, 2, 3, 6]]),
    ):
        assert [label.get_text() for label in axis.get_yticklabels()] == names
        cells = axis.collections[0].get_array().reshape(len(names), 7)
        assert [np.flatnonzero(row).tolist() for row in cells] == removed
        assert axis.yaxis_inverted()  # the first strategy is on top
    assert four.get_xlabel() == "layer (0-based)"


def test_nothing_of_many_panels_is_cut_off():
    choices = [
        {"strategy": strategy, "draw": draw, "block_size": n, "removed": [n]}
        for n in (2, 4, 6, 8)
        for strategy in STRATEGIES
        for draw in range(DRAWS if strategy == "random" else 1)
    ]
    drawn = selection_views.chosen_layers(choices, 32)
    drawn.draw_without_rendering()
    inches, size = drawn.get_tightbbox(), drawn.get_size_inches()
    assert (inches.min > -0.01).all()
    assert (inches.max < size + 0.01).all()


def test_curves_show_each_strategy_the_healed_arms_and_the_control_as_a_band():
    points = damage_points()
    drawn = selection_views.damage_curves(points)
    assert [axis.get_title() for axis in drawn.axes] == [
        "on right answers, out of domain",
        "on the original's answers (favour Self-Data FT)",
    ]
    for axis, measure in zip(drawn.axes, ("lost_bits_per_byte", "kl"), strict=True):
        own = [point for point in points if point["measure"] == measure]
        shown = lines(axis)
        for label, strategy, arm in (
            ("angular block, the paper's", "angular", "no_ft"),
            ("angular block, SFT", "angular", "sft"),
            ("iterative", "iterative", "no_ft"),
        ):
            group = [point for point in own if (point["strategy"], point["arm"]) == (strategy, arm)]
            xy = [[point["block_size"], point["value"]] for point in group]
            np.testing.assert_allclose(shown[label][0].get_xydata(), xy)
            np.testing.assert_allclose(intervals(shown[label]), [point["interval"] for point in group])
        band = [point for point in own if point["strategy"] == "random"]
        corners = {tuple(corner) for corner in axis.collections[0].get_paths()[0].vertices.round(9)}
        wanted = {(point["block_size"], round(pick(point["draws"]), 9)) for point in band for pick in (min, max)}
        assert wanted <= corners
        assert axis.get_yscale() == "log"


def test_lines_are_told_apart_without_colour():
    drawn = selection_views.damage_curves(damage_points())
    named = drawn.axes[0].containers
    assert len({line[0].get_marker() for line in named}) == len(named) == 6
    looks = [look[1:] for look in selection_views._LOOKS.values()]
    assert all(len({*map(str, column)}) == len(looks) for column in zip(*looks, strict=True))


def test_damage_below_zero_has_a_plain_scale_and_one_size_a_band():
    points = [point for point in damage_points() if point["block_size"] == 4]
    points[0] = points[0] | {"value": -0.1, "interval": [-0.2, 0.0]}
    axis = selection_views.damage_curves(points).axes[0]
    assert axis.get_yscale() == "linear"
    assert np.ptp(axis.collections[0].get_paths()[0].vertices[:, 0]) > 0


def test_the_table_names_the_layers_and_shows_draws_in_parentheses():
    points = [
        {"strategy": "random", "arm": "no_ft", "block_size": 2, "measure": "kl", "value": 2.0, "interval": [0.0, 4.0],
         "draws": [1.0, 3.0, 2.0]},
        {"strategy": "angular", "arm": "sft", "block_size": 2, "measure": "kl", "value": 0.5, "interval": [0.25, 0.75],
         "draws": [0.5] * 3},
        {"strategy": "angular", "arm": "no_ft", "block_size": 2, "measure": "kl", "value": 1.0, "interval": [0.5, 1.5],
         "draws": [1.0]},
    ]  # fmt: skip
    favours, *rows = selection_views.damage_table(points, CHOICES).to_dict("records")
    assert (favours["fine-tuning"], favours["KL, nats per token"]) == ("Favours", "Self-Data FT")
    assert {favours[name] for name in ("n", "bits per byte lost", "removed layers")} == {"-"}
    assert [(row["layers chosen by"], row["fine-tuning"]) for row in rows] == [
        ("angular block, the paper's", "No FT"),
        ("angular block, the paper's", "SFT"),
        ("random", "No FT"),
    ]
    assert [row["KL, nats per token"] for row in rows] == [
        "1.000 [0.500, 1.500]",
        "0.500 [0.250, 0.750]",
        "2.000 (1.000 to 3.000)",
    ]
    assert [row["bits per byte lost"] for row in rows] == ["-"] * 3
    assert [row["removed layers"] for row in rows] == ["3-4", "3-4", "3 draws"]
    assert [row["same by a second calibration set"] for row in rows] == ["50.0 %", "50.0 %", "-"]


def test_nothing_is_favoured_where_nothing_was_fine_tuned():
    points = [point for point in damage_points(sizes=(2,)) if point["arm"] == "no_ft"]
    choices = [choice | {"block_size": 2} for choice in CHOICES] + [
        {"strategy": name, "draw": 0, "block_size": 2, "removed": [0], "agreement": None}
        for name in ("block_influence", "deepest_but_last")
    ]
    table = selection_views.damage_table(points, choices)
    assert list(table["fine-tuning"]) == ["No FT"] * 5
    assert selection_views.damage_curves(points).axes[1].get_title() == "on the original's answers"


@pytest.mark.parametrize(
    ("layers", "said"), [([5], "5"), ([3, 4, 5], "3-5"), ([0, 2, 3, 9], "0, 2-3, 9"), ([1, 3], "1, 3")]
)
def test_layers_in_words(layers, said):
    assert selection_views.in_words(layers) == said


def test_every_strategy_has_a_look():
    assert list(selection_views.STRATEGY_NAMES) == list(STRATEGIES)
