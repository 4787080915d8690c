"""Figures against their data: what is drawn is what was given, and stays readable without colour."""

from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from sdd_utils.data.arms import ARMS
from sdd_utils.report import figures

RANDOM = np.random.default_rng(0)
MAP = np.abs(np.subtract.outer(np.arange(7), np.arange(7))) / 10
BLOCKS = [{"block_size": 2, "start": 3, "distance": 0.2}, {"block_size": 4, "start": 1, "distance": 0.4}]
CURVES = {n: np.diagonal(MAP, n) for n in (2, 4)}
INFLUENCE = np.array([0.9, 0.05, 0.02, 0.3])
STATISTICS = {
    "rows": 8,
    "reasons": {"truncated": 2, "kept": 5, "no answer": 1},
    "words_original": [3, 9, 9, 20, 31, 31, 31, 40],
    "words_distilled": [5, 9, 9, 9, 22, 31, 60, 60],
    "nll": {"original": [2.0, 2.5, 3.0, 3.5], "distilled": [0.5, 0.5, 1.0, 3.0]},
}
LOSSES = {"sft": [[1, 3.0], [2, 2.5], [3, 2.7]], "self_data_ft": [[1, 2.0], [2, 1.5], [3, 1.25]]}
SIMILAR = {"sft": np.array([0.1, 0.5, 0.5, 1.0]), "self_data_ft": np.array([0.9, 0.9, 1.0, -0.2])}
SAMPLED = {"original": np.array([0.8, 0.9]), **SIMILAR}
PARENTS = [{"t": 0.0, "recovery": 0.5, "interval": [0.4, 0.7]}, {"t": 1.0, "recovery": 0.6, "interval": [0.5, 0.65]}]
PATH = [PARENTS[0], {"t": 0.5, "recovery": 0.7, "interval": [0.6, 0.8]}, PARENTS[1]]
CHORD = [{"t": 0.5, "recovery": 0.65, "interval": [0.6, 0.75]}]
MIXED = {"recovery": 0.55, "interval": [0.5, 0.6]}
MERGE = {"names": ("alpaca", "gsm8k"), "threshold": np.cos(np.pi / 60), "lerp_points": CHORD}
ANGLES = np.radians([1, 1, 5, 9, 9, 9]).tolist()
POINTS = [{"arm": arm, "similarity": RANDOM.random(), "lost": RANDOM.random() / 9} for arm in [*ARMS] * 3]


def row(arm, n, data_set="", **more):
    """A row of results with an interval that is wider above than below."""
    value = RANDOM.random()
    return {"arm": arm, "block_size": n, "data_set": data_set, "recovery": value} | more | {
        "interval": [value - 0.1 * RANDOM.random(), value + 0.2]
    }  # fmt: skip


def study(data_sets, *, arms=tuple(ARMS), sizes=(2, 4, 6)):
    """The rows of a study, not in order: the original, No FT and every arm on every data set, and a merge."""
    tuned = [row(arm, n, name) for name in data_sets for n in reversed(sizes) for arm in reversed(arms)]
    return [row("merged", sizes[0], "a + b"), *tuned, *(row("no_ft", n) for n in sizes), row("original", 0)]


def scores(arms):
    """Scores of these arms on two tasks, and a loss, which is no score."""
    task = {"stderr": 0.05, "chance": 0.25, "higher_is_better": True}
    return {
        arm: {
            "facts": task | {"value": 0.3 + 0.1 * i},
            "mmlu": task | {"value": 0.5 - 0.1 * i, "stderr": 0.02},
            "nll": task | {"value": 7.0, "higher_is_better": False},
        }
        for i, arm in enumerate(arms)
    }


SCALED = [row(arm, 6, name, rows=count) for name in "ab" for count in (48, 12, 24) for arm in ARMS]
DRAWN = {
    "similarity_heatmap": lambda: figures.similarity_heatmap(MAP, BLOCKS),
    "distance_curves": lambda: figures.distance_curves(CURVES, BLOCKS),
    "block_influence": lambda: figures.block_influence(INFLUENCE),
    "score_bars": lambda: figures.score_bars(scores(["no_ft", *ARMS])),
    "distillation_summary": lambda: figures.distillation_summary(STATISTICS),
    "loss_curves": lambda: figures.loss_curves(LOSSES),
    "recovery_grid": lambda: figures.recovery_grid(study(["a", "b", "c", "d", "openmathinstruct1"])),
    "scaling_curves": lambda: figures.scaling_curves(SCALED),
    "slerp_curve": lambda: figures.slerp_curve(PATH, ANGLES, mixture=MIXED, **MERGE),
    "embedding_histogram": lambda: figures.embedding_histogram(SIMILAR, SAMPLED),
    "shift_scatter": lambda: figures.shift_scatter(POINTS),
}


@pytest.fixture(autouse=True)
def _no_figure_stays_open():
    yield
    plt.close("all")


@cache
def drawn_once(name):
    return DRAWN[name]()


def intervals(container):
    """The (low, high) ends of an errorbar container's bars."""
    (bars,) = container.lines[2]
    return np.array([segment[:, 1] for segment in bars.get_segments()])


def lines(axis):
    """The errorbar containers of an axis by name."""
    return {container.get_label(): container for container in axis.containers}


def outline(line):
    """The counts that a step line shows."""
    return line.get_ydata()[:-1]


def legends(drawn):
    return [*drawn.legends, *(axis.get_legend() for axis in drawn.axes if axis.get_legend())]


# Every figure


@pytest.mark.parametrize("name", DRAWN)
def test_every_axis_is_named_and_every_figure_has_a_title(name):
    drawn = drawn_once(name)
    for axis in drawn.axes:
        if axis.get_label() == "<colorbar>":
            assert axis.get_ylabel()
            continue
        assert axis.get_title()
        assert axis.get_xlabel()
        shared = axis.get_shared_y_axes().get_siblings(axis)
        bars_with_names = name == "distillation_summary" and axis is drawn.axes[0]
        assert bars_with_names or any(sibling.get_ylabel() for sibling in shared)


@pytest.mark.parametrize("name", DRAWN)
def test_legends_cover_no_data_and_nothing_is_cut_off(name):
    drawn = drawn_once(name)
    drawn.draw_without_rendering()
    if name != "similarity_heatmap":  # its legend lies in the masked triangle
        for legend in legends(drawn):
            boxes = [axis.get_window_extent() for axis in drawn.axes]
            assert not any(legend.get_window_extent().overlaps(box) for box in boxes)
    inches, size = drawn.get_tightbbox(), drawn.get_size_inches()
    assert (inches.min > -0.01).all()
    assert (inches.max < size + 0.01).all()
    assert size[0] <= 9  # legible at the width of a README


def test_heatmaps_legend_lies_in_the_masked_triangle():
    drawn = figures.similarity_heatmap(np.ones((33, 33)), [{"block_size": n, "start": 9} for n in range(2, 12, 2)])
    drawn.draw_without_rendering()
    axis = drawn.axes[0]
    box = axis.get_legend().get_window_extent().transformed(axis.transData.inverted())
    assert box.x1 < min(box.y0, box.y1)  # its lower right corner lies above the diagonal


@pytest.mark.parametrize("name", DRAWN)
def test_legends_name_each_thing_once(name):
    for legend in legends(drawn_once(name)):
        names = [text.get_text() for text in legend.get_texts()]
        assert names
        assert len(set(names)) == len(names)


def test_no_arm_is_known_by_colour_alone():
    for looks in (figures.NAMES, figures.COLOURS, figures.MARKERS, figures.HATCHES, figures.LINES):
        assert list(looks) == ["original", "no_ft", *ARMS, "merged"]
        assert len(set(looks.values())) == len(looks)


def test_the_same_data_give_the_same_bytes_without_traces_of_the_machine(tmp_path):
    draw = DRAWN["embedding_histogram"]
    drawn = draw()
    paths = [figures.save(one, tmp_path / "new", name) for one, name in ((drawn, "a"), (drawn, "b"), (draw(), "c"))]
    assert len({path.read_bytes() for path in paths}) == 1
    assert sorted((tmp_path / "new").iterdir()) == paths == [tmp_path / "new" / f"{name}.png" for name in "abc"]
    with Image.open(paths[0]) as image:
        assert set(image.info) == {"dpi"}
        assert image.width == 1350


# One by one


def test_heatmap_shows_the_map_above_the_diagonal_only():
    axis = figures.similarity_heatmap(MAP, BLOCKS).axes[0]
    cells = axis.collections[0].get_array().reshape(MAP.shape)
    above = np.triu(np.ones_like(MAP, dtype=bool), 1)
    np.testing.assert_array_equal(np.ma.getmaskarray(cells), ~above)
    np.testing.assert_array_equal(cells[above], MAP[above])
    assert not axis.yaxis_inverted()  # layer 0 is at the bottom
    marks = {line.get_label(): line for line in axis.lines}
    assert {name: tuple(line.get_xydata()[0]) for name, line in marks.items()} == {
        "n = 2: [3, 5)": (5.5, 3.5),  # the middle of the cell in row 3 and column 5
        "n = 4: [1, 5)": (5.5, 1.5),
    }
    assert len({line.get_marker() for line in marks.values()}) == 2


def test_distance_curves_ring_the_chosen_blocks():
    axis = figures.distance_curves(CURVES, BLOCKS).axes[0]
    two, four, rings = axis.lines
    np.testing.assert_array_equal(two.get_ydata(), CURVES[2])
    np.testing.assert_array_equal(four.get_ydata(), CURVES[4])
    assert two.get_marker() != four.get_marker()
    assert rings.get_xydata().tolist() == [[3, 0.2], [1, 0.4]]
    assert axis.get_yscale() == "log"


def test_block_influence_has_a_mark_per_layer():
    (line,) = figures.block_influence(INFLUENCE).axes[0].lines
    np.testing.assert_array_equal(line.get_xydata(), np.stack([np.arange(4), INFLUENCE], axis=1))


def test_bars_are_as_high_as_the_scores_and_carry_their_own_intervals():
    given = scores(["original", "no_ft", "sft"])
    axis = figures.score_bars(given).axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["facts", "mmlu"]
    bars, errors = axis.containers[:3], axis.containers[3:]
    for arm, bar, error in zip(given, bars, errors, strict=True):
        shown = [given[arm][task] for task in ("facts", "mmlu")]
        assert bar.get_label() == figures.NAMES[arm]
        assert [patch.get_height() for patch in bar] == pytest.approx([score["value"] for score in shown])
        assert {patch.get_hatch() or "" for patch in bar} == {figures.HATCHES[arm]}
        ends = [[score["value"] + sign * 1.96 * score["stderr"] for sign in (-1, 1)] for score in shown]
        np.testing.assert_allclose(intervals(error), ends)
        middles = [segment[0, 0] for segment in error.lines[2][0].get_segments()]
        np.testing.assert_allclose(middles, [patch.get_x() + patch.get_width() / 2 for patch in bar])
    chance = next(lines for lines in axis.collections if lines.get_label() == "chance")
    assert [segment[0, 1] for segment in chance.get_segments()] == [0.25, 0.25]


def test_the_originals_bars_stay_open_as_no_interval_shows_on_black_ones():
    bars = figures.score_bars(scores(["original", "sft"])).axes[0].containers
    assert {bar.get_facecolor()[:3] for bar in bars[0]} == {(1, 1, 1)}
    assert {to_hex(bar.get_facecolor()).upper() for bar in bars[1]} == {figures.COLOURS["sft"]}


def test_distillation_counts_reasons_lengths_and_losses():
    rates, lengths, losses = figures.distillation_summary(STATISTICS).axes
    assert [label.get_text() for label in rates.get_yticklabels()] == ["kept", "truncated", "no answer"]
    assert [bar.get_width() for bar in rates.patches] == [62.5, 25, 12.5]
    assert [text.get_text() for text in rates.texts] == ["5", "2", "1"]
    pairs = [
        (lengths, STATISTICS["words_original"], STATISTICS["words_distilled"]),
        (losses, STATISTICS["nll"]["original"], STATISTICS["nll"]["distilled"]),
    ]
    for axis, original, distilled in pairs:
        bins = np.histogram_bin_edges(original + distilled, 20)
        assert [bar.get_height() for bar in axis.patches] == np.histogram(original, bins)[0].tolist()
        assert outline(axis.lines[0]).tolist() == np.histogram(distilled, bins)[0].tolist()


def test_loss_curves_have_a_line_style_and_a_marker_per_arm():
    lines = figures.loss_curves(LOSSES).axes[0].lines
    assert [line.get_xydata().tolist() for line in lines] == [*LOSSES.values()]
    assert [line.get_label() for line in lines] == ["SFT", "Self-Data FT"]
    assert [line.get_marker() for line in lines] == [figures.MARKERS[arm] for arm in LOSSES]
    assert [line.get_linestyle() for line in lines] == [figures.LINES[arm] for arm in LOSSES]


def test_long_losses_get_some_markers_not_one_per_step():
    (line,) = figures.loss_curves({"sft": [[step, 1 / (step + 1)] for step in range(1000)]}).axes[0].lines
    assert line.get_markevery() == 50


def test_recovery_has_a_panel_per_data_set_with_the_given_intervals():
    rows = study(["a", "b"])
    axes = figures.recovery_grid(rows).axes
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
    axis = figures.recovery_grid(study(["a"])).axes[0]
    (line,) = [line for line in axis.lines if line.get_linestyle() == "--" and list(line.get_ydata()) == [1, 1]]
    (text,) = axis.texts
    assert line.get_color() == "black"
    assert (text.get_text(), text.xy) == ("original", (1, 1))


def test_recovery_points_of_one_block_size_stand_apart():
    axis = figures.recovery_grid(study(["a"])).axes[0]
    places = np.sort(np.concatenate([container[0].get_xdata() for container in lines(axis).values()]))
    assert np.diff(places).min() > 0.1


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (3, 3, 1), (4, 2, 2), (5, 3, 2)])
def test_many_data_sets_are_shown_in_rows(count, columns, rows):
    axes = figures.recovery_grid(study([f"set {i}" for i in range(count)], arms=["sft"], sizes=(4,))).axes
    assert len(axes) == count
    assert axes[0].get_gridspec().get_geometry() == (rows, columns)


def test_arms_that_one_data_set_lacks_are_in_the_legend():
    rows = study(["a"], arms=["sft"]) + [row("mixed_ft", 4, "b")]
    (legend,) = figures.recovery_grid(rows).legends
    assert [text.get_text() for text in legend.get_texts()] == ["No FT", "SFT", "Mixed FT"]


def test_scaling_is_drawn_where_it_was_asked_for():
    """Not at the largest block size, which has one number of rows."""
    rows = [row("sft", n, "a", rows=count) for n, count in ((6, 16), (6, 8), (10, 16))]
    (axis,) = figures.scaling_curves(rows).axes
    assert list(axis.lines[0].get_xdata()) == [8, 16]
    np.testing.assert_allclose(intervals(axis.containers[0]), [rows[1]["interval"], rows[0]["interval"]])
    assert axis.get_title().endswith("n = 6")
    assert [label.get_text() for label in axis.get_xticklabels()] == ["8", "16"]


def test_merges_show_slerp_lerp_and_the_mixture():
    axis = figures.slerp_curve(PATH, ANGLES, mixture=MIXED, **MERGE).axes[0]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["trained on both sets", "SLERP", "LERP"]
    shown = lines(axis)
    np.testing.assert_allclose(shown["SLERP"][0].get_xydata(), [[0, 0.5], [0.5, 0.7], [1, 0.6]])
    np.testing.assert_allclose(shown["LERP"][0].get_xydata(), [[0, 0.5], [0.5, 0.65], [1, 0.6]])
    np.testing.assert_allclose(intervals(shown["SLERP"]), [point["interval"] for point in PATH])
    np.testing.assert_allclose(intervals(shown["LERP"])[1], CHORD[0]["interval"])
    band = axis.patches[0]
    assert [band.get_y(), band.get_y() + band.get_height()] == pytest.approx(MIXED["interval"])


def test_a_merge_without_a_mixture_or_parents():
    axis = figures.slerp_curve(PATH[1:2], [0.1], mixture=None, **MERGE).axes[0]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["SLERP", "LERP"]


def test_angles_are_counted_in_degrees_beside_the_limit_of_lerp():
    axis = figures.slerp_curve(PATH, ANGLES, mixture=None, **MERGE).axes[1]
    bins = np.linspace(0, 1.05 * max(3, *np.degrees(ANGLES)), 40)
    assert [bar.get_height() for bar in axis.patches] == np.histogram(np.degrees(ANGLES), bins)[0].tolist()
    assert axis.lines[0].get_xdata() == pytest.approx([3, 3])
    assert axis.get_legend().get_texts()[0].get_text() == "below 3° SLERP is LERP"


def test_cosines_are_counted_per_arm_in_the_same_bins_with_their_means():
    drawn = figures.embedding_histogram(SIMILAR, SAMPLED)
    bins = np.linspace(-0.2, 1, 26)
    for axis, given in zip(drawn.axes, (SIMILAR, SAMPLED), strict=True):
        assert [bar.get_height() for bar in axis.patches] == np.histogram(given["sft"], bins)[0].tolist()
        means = [line for line in axis.lines if len(line.get_xdata()) == 2]
        assert [line.get_xdata()[0] for line in means] == [np.mean(values) for values in given.values()]
        assert [line.get_marker() for line in means] == [figures.MARKERS[arm] for arm in given]
        outlines = [outline(line).tolist() for line in axis.lines if len(line.get_xdata()) > 2]
        others = [values for arm, values in given.items() if arm != "sft"]
        assert outlines == [np.histogram(values, bins)[0].tolist() for values in others]
        names = [text.get_text() for text in axis.get_legend().get_texts()]
        assert names == [f"{figures.NAMES[arm]}, mean {np.mean(values):.2f}" for arm, values in given.items()]


def test_without_sampled_answers_one_panel_is_drawn_and_no_cosine_is_lost():
    rounded = {"sft": np.array([0.5, np.nextafter(1, 2)])}
    (axis,) = figures.embedding_histogram(rounded, {}).axes
    assert sum(bar.get_height() for bar in axis.patches) == 2


def test_scatter_has_a_mark_per_model():
    axis = figures.shift_scatter(POINTS).axes[0]
    shown = axis.collections[0].get_offsets()
    assert sorted(map(tuple, shown)) == sorted((point["similarity"], 100 * point["lost"]) for point in POINTS)
    names = [text.get_text() for text in axis.get_legend().get_texts()]
    assert names == [figures.NAMES[arm] for arm in ARMS]
    assert len({handle.get_marker() for handle in axis.get_legend().legend_handles}) == len(ARMS)
