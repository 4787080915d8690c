"""Figures of scores against their data, and axes that stay readable where intervals do not."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from figure_data import healed, intervals, lines, row, scores, study

from sdd_utils.data.arms import ARMS
from sdd_utils.report import figures, score_figures

TASKS = ["facts", "gsm8k", "pydoc_gold"]
MEASURES = ["accuracy", "choice_probability", "gold_bits_per_byte"]


@pytest.fixture(autouse=True)
def _no_figure_stays_open():
    yield
    plt.close("all")


def drawn_healed(rows):
    return score_figures.healed_shares(score_figures.healed_points(rows))


def named_lines(axis):
    """Where the dashed lines lie that are named beside the panel, by their names."""
    at = {text.xy[1]: text.get_text() for text in axis.texts if text.xy[0] == 1 and text.get_text()[0].isalpha()}
    drawn = [line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == "--" and line.get_color() == "black"]
    return {at[y]: y for y in drawn}


# Each measure, task by task


def test_each_measure_has_a_panel_with_the_given_values_and_intervals():
    given = scores(["original", "no_ft", "sft"])
    axes = score_figures.score_dots(given).axes
    assert [axis.get_title() for axis in axes] == ["accuracy", "choice probability", "bits per byte"]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == TASKS
    assert axes[0].yaxis_inverted()  # the first task is at the top
    for axis, measure in zip(axes, MEASURES, strict=True):
        places = [place for place, task in enumerate(TASKS) if measure in given["sft"][task]]
        assert [*lines(axis)] == ["Original", "No FT", "SFT"]
        for arm, by_task in given.items():
            container = lines(axis)[figures.NAMES[arm]]
            measured = [by_task[TASKS[place]][measure] for place in places]
            assert container[0].get_xdata().tolist() == [one["value"] for one in measured]
            ends = [[one["value"] + sign * 1.96 * one["stderr"] for sign in (-1, 1)] for one in measured]
            np.testing.assert_allclose(intervals(container), ends)
            assert np.abs(container[0].get_ydata() - places).max() < 0.5  # in the row of its task
            assert container[0].get_marker() == figures.MARKERS[arm]


def test_dots_of_one_task_stand_apart_in_the_order_of_the_arms():
    axis = score_figures.score_dots(scores(["no_ft", *ARMS])).axes[0]
    places = [container[0].get_ydata()[0] for container in lines(axis).values()]
    assert places == sorted(places)
    assert np.diff(places).min() > 0.05


def test_chance_is_marked_where_guessing_has_a_score():
    axes = score_figures.score_dots(scores(["sft"])).axes
    marks = [[c for c in axis.collections if c.get_label() == "chance"] for axis in axes]
    assert [len(found) for found in marks] == [1, 1, 0]  # bits per byte have no such score
    for (found,) in marks[:2]:
        (segment,) = found.get_segments()  # gsm8k, whose answers are written, has none
        assert segment[:, 0].tolist() == [0.25, 0.25]
        assert segment[0, 1] < 0 < segment[1, 1]


def test_a_measure_that_no_task_has_gets_no_panel():
    accuracies = {"sft": {"gsm8k": scores(["sft"])["sft"]["gsm8k"]}}
    assert [axis.get_title() for axis in score_figures.score_dots(accuracies).axes] == ["accuracy"]


def test_a_study_shows_the_original_and_no_ft_beside_the_arms_of_each_data_set():
    rows = [line | {"scores": scores([line["arm"]])[line["arm"]]} for line in study(["b", "a"], sizes=(4, 6))]
    for line in rows:
        if (line["arm"], line["block_size"], line["data_set"]) == ("sft", 6, "b"):
            line["scores"]["facts"]["accuracy"]["value"] = 0.875
    axes = score_figures.study_scores(rows, block_size=6).axes
    assert [axis.get_ylabel() for axis in axes] == ["fine-tuned on a", "", "", "fine-tuned on b", "", ""]
    for axis in axes:
        assert [*lines(axis)] == [figures.NAMES[arm] for arm in ("original", "no_ft", *ARMS)]
    found = [lines(axes[i])["SFT"][0].get_xdata()[0] for i in (0, 3)]
    assert found == [0.3, 0.875]


# Healed share


def test_points_are_the_healed_shares_that_there_are():
    rows = healed(["a", "b"])
    points = score_figures.healed_points(rows)
    assert len(points) == 4 + 2  # b has no tasks of its domain
    for point in points:
        (line,) = [r for r in rows if (r["arm"], r["data_set"]) == (point["arm"], point["data_set"])]
        assert point["value"] == line[point["domain"]]["share"]
        assert point["interval"] == line[point["domain"]]["interval"]


def test_at_one_block_size_the_domains_stand_side_by_side():
    rows = healed(["a", "b"])
    axes = drawn_healed(rows).axes
    assert [axis.get_title() for axis in axes] == ["fine-tuned on a, n = 6", "fine-tuned on b, n = 6"]
    for axis, name, count in zip(axes, "ab", (2, 1), strict=True):
        for arm in ("sft", "self_data_ft"):
            (line,) = [r for r in rows if (r["arm"], r["data_set"]) == (arm, name)]
            shares = [line[domain] for domain in ("healed_out_of_domain", "healed_in_domain") if line[domain]]
            container = lines(axis)[figures.NAMES[arm]]
            np.testing.assert_allclose(container[0].get_ydata(), [share["share"] for share in shares])
            np.testing.assert_allclose(intervals(container), [share["interval"] for share in shares])
            assert np.round(container[0].get_xdata()).tolist() == [0, 1][:count]
            assert container[0].get_linestyle() == "None"  # two domains are no curve
            for share in shares:
                assert f"{100 * share['share']:.1f} %" in [text.get_text() for text in axis.texts]
        out, own = [label.get_text().replace("\n", " ") for label in axis.get_xticklabels()]
        assert out == "other tasks: facts"
        assert own.startswith("tasks of its domain (favour SFT): ")
        assert own.endswith("own_task" if name == "a" else "none, or nothing was lost")


def test_at_several_block_sizes_each_domain_has_panels_of_its_own():
    rows = healed(["a", "b"], sizes=(4, 6))
    axes = drawn_healed(rows).axes
    assert [axis.get_title().split(",\n") for axis in axes] == [
        ["fine-tuned on a", "scored on other tasks"],
        ["fine-tuned on b", "scored on other tasks"],
        ["fine-tuned on a", "scored on tasks of its domain (favour SFT)"],
    ]
    by_size = {r["block_size"]: r["healed_in_domain"] for r in rows if (r["arm"], r["data_set"]) == ("sft", "a")}
    container = lines(axes[2])["SFT"]
    np.testing.assert_allclose(container[0].get_ydata(), [by_size[n]["share"] for n in (4, 6)])
    np.testing.assert_allclose(intervals(container), [by_size[n]["interval"] for n in (4, 6)])


@pytest.mark.parametrize("sizes", [(6,), (4, 6)])
def test_no_ft_and_the_original_are_named_lines(sizes):
    for axis in drawn_healed(healed(["a"], sizes=sizes)).axes:
        assert named_lines(axis) == {"No FT": 0, "original": 1}
        low, high = axis.get_ylim()
        assert low < 0 < 1 < high


# Recovery


def test_recovery_has_a_panel_per_data_set_with_the_given_intervals():
    rows = study(["a", "b"])
    axes = score_figures.recovery_grid(rows).axes
    assert [axis.get_title() for axis in axes] == ["fine-tuned on a", "fine-tuned on b"]
    for axis, name in zip(axes, "ab", strict=True):
        assert [*lines(axis)] == [figures.NAMES[arm] for arm in ("no_ft", *ARMS)]  # always in this order
        for arm in ("no_ft", *ARMS):
            shown = [line for line in rows if line["arm"] == arm and line["data_set"] in ("", name)]
            shown = sorted(shown, key=lambda line: line["block_size"])
            container = lines(axis)[figures.NAMES[arm]]
            np.testing.assert_allclose(container[0].get_ydata(), [line["recovery"] for line in shown])
            np.testing.assert_allclose(intervals(container), [line["interval"] for line in shown])
            assert container[0].get_marker() == figures.MARKERS[arm]
            assert np.abs(container[0].get_xdata() - [2, 4, 6]).max() < 0.5  # beside its block size
        assert axis.get_xticks().tolist() == [2, 4, 6]


def test_recovery_names_the_original_at_one():
    assert named_lines(score_figures.recovery_grid(study(["a"])).axes[0]) == {"original": 1}


def test_recovery_points_of_one_block_size_stand_apart():
    axis = score_figures.recovery_grid(study(["a"])).axes[0]
    places = np.sort(np.concatenate([container[0].get_xdata() for container in lines(axis).values()]))
    assert np.diff(places).min() > 0.08


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (3, 3, 1), (4, 2, 2), (5, 3, 2)])
def test_many_data_sets_are_shown_in_rows(count, columns, rows):
    axes = score_figures.recovery_grid(study([f"set {i}" for i in range(count)], arms=["sft"], sizes=(4,))).axes
    assert len(axes) == count
    assert axes[0].get_gridspec().get_geometry() == (rows, columns)


def test_arms_that_one_data_set_lacks_are_in_the_legend():
    rows = study(["a"], arms=["sft"]) + [row("mixed_ft", 4, "b")]
    (legend,) = score_figures.recovery_grid(rows).legends
    assert [text.get_text() for text in legend.get_texts()] == ["No FT", "SFT", "Mixed FT"]


def arrows(axis):
    """Marks at the edges of the axis, as (where, edge)."""
    return [tuple(xy) for line in axis.lines for xy in line.get_xydata() if xy[1] in axis.get_ylim()]


def test_an_interval_that_nobody_could_read_is_cut_and_an_arrow_says_so():
    rows = study(["a"], arms=["sft"], sizes=(4,))
    (wide,) = [line for line in rows if line["arm"] == "sft"]
    wide["interval"] = [wide["recovery"] - 60, wide["recovery"] + 50]
    (axis,) = score_figures.recovery_grid(rows).axes
    low, high = axis.get_ylim()
    assert high - low < 3  # not the 110 of the interval
    assert low < min(line["recovery"] for line in rows if line["arm"] in ("sft", "no_ft")) <= 1 < high
    (place,) = lines(axis)["SFT"][0].get_xdata()
    assert sorted(arrows(axis)) == [(place, low), (place, high)]
    assert axis.get_ylabel().endswith("arrow: it goes on)")


def test_intervals_that_can_be_read_are_whole():
    rows = study(["a"], arms=["sft"])
    (axis,) = score_figures.recovery_grid(rows).axes
    low, high = axis.get_ylim()
    tuned = [line["interval"] for line in rows if line["arm"] in ("sft", "no_ft")]
    assert low < min(ends[0] for ends in tuned)
    assert max(ends[1] for ends in tuned) < high
    assert arrows(axis) == []
    assert axis.get_ylabel() == "recovery (95 % interval)"


def test_scaling_is_drawn_where_it_was_asked_for():
    """Not at the largest block size, which has one number of rows."""
    rows = [row("sft", n, "a", rows=count) for n, count in ((6, 16), (6, 8), (10, 16))]
    (axis,) = score_figures.scaling_curves(rows).axes
    assert list(axis.lines[0].get_xdata()) == [8, 16]
    np.testing.assert_allclose(intervals(axis.containers[0]), [rows[1]["interval"], rows[0]["interval"]])
    assert axis.get_title().endswith("n = 6")
    assert [label.get_text() for label in axis.get_xticklabels()] == ["8", "16"]
