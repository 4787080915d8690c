"""Figures against their data: what is drawn is what was given, and stays readable without colour."""

from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import pytest
from figure_data import (
    RANDOM,
    damage_points,
    healed,
    intervals,
    lines,
    quantization,
    row,
    scores,
    speculation,
    study,
)
from PIL import Image

from sdd_utils.data.arms import ARMS
from sdd_utils.report import figures, quantization_views, score_figures, selection_views, speculation_views

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
VECTORS = {"points": [PARENTS[0], CHORD[0], PARENTS[1]], "angles": {str(i): np.radians(80 + i) for i in range(5)}}
VECTORS = MERGE | {"task_vectors": VECTORS}
FOREIGN = [
    {"arm": arm, "block_size": n, "data_set": name, "nll": nll, "kl": n + nll}
    for n, name in ((4, "alpaca"), (6, "openmathinstruct1")) for arm, nll in (("sft", 2.0), ("self_data_ft", 0.6))
]  # fmt: skip
POINTS = [{"arm": arm, "similarity": RANDOM.random(), "lost": RANDOM.random() / 9} for arm in [*ARMS] * 3]


SCALED = [row(arm, 6, name, rows=count) for name in "ab" for count in (48, 12, 24) for arm in ARMS]
HEALED = healed(["a", "b", "openmathinstruct1", "pydoc"], arms=tuple(ARMS), sizes=(4, 6), own=("a", "pydoc"))
SCORED = [line | {"scores": scores([line["arm"]])[line["arm"]]} for line in study(["alpaca", "openmathinstruct1"])]
DRAWN = {
    "similarity_heatmap": lambda: figures.similarity_heatmap(MAP, BLOCKS),
    "distance_curves": lambda: figures.distance_curves(CURVES, BLOCKS),
    "block_influence": lambda: figures.block_influence(INFLUENCE),
    "score_dots": lambda: score_figures.score_dots(scores(["no_ft", *ARMS])),
    "study_scores": lambda: score_figures.study_scores(SCORED, block_size=4),
    "healed_by_domain": lambda: score_figures.healed_shares(score_figures.healed_points(healed(["a", "pydoc"]))),
    "healed_by_size": lambda: score_figures.healed_shares(score_figures.healed_points(HEALED)),
    "distillation_summary": lambda: figures.distillation_summary(STATISTICS),
    "loss_curves": lambda: figures.loss_curves(LOSSES),
    "loss_curves_of_all": lambda: figures.loss_curves(dict.fromkeys(ARMS, LOSSES["sft"])),
    "recovery_grid": lambda: score_figures.recovery_grid(study(["a", "b", "c", "d", "openmathinstruct1"])),
    "scaling_curves": lambda: score_figures.scaling_curves(SCALED),
    "damage_curves": lambda: selection_views.damage_curves(damage_points()),
    "slerp_curve": lambda: figures.slerp_curve(PATH, ANGLES, mixture=MIXED, **MERGE),
    "embedding_histogram": lambda: figures.embedding_histogram(SIMILAR, SAMPLED),
    "speculation_figure": lambda: speculation_views.speculation_figure(speculation(arms=tuple(ARMS))),
    "quantization_figure": lambda: quantization_views.quantization_figure(quantization(arms=("no_ft", *ARMS))),
    "slerp_curve_of_task_vectors": lambda: figures.slerp_curve(PATH, ANGLES, mixture=MIXED, **VECTORS),
    "foreignness_lines": lambda: figures.foreignness_lines(FOREIGN),
    "shift_scatter": lambda: figures.shift_scatter(POINTS),
}


@pytest.fixture(autouse=True)
def _no_figure_stays_open():
    yield
    plt.close("all")


@cache
def drawn_once(name):
    return DRAWN[name]()


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


def test_merges_of_task_vectors_are_a_curve_and_have_angles_of_their_own():
    scores, histogram = figures.slerp_curve(PATH, ANGLES, mixture=None, **VECTORS).axes
    np.testing.assert_allclose(
        lines(scores)["SLERP of task vectors"][0].get_xydata(), [[0, 0.5], [0.5, 0.65], [1, 0.6]]
    )
    assert [text.get_text() for text in histogram.get_legend().get_texts()][:2] == ["weights", "task vectors"]
    assert sum(bar.get_height() for bar in histogram.patches) == len(ANGLES) + 5


def test_what_was_learnt_stands_against_what_was_forgotten_and_each_line_is_named():
    (axis,) = figures.foreignness_lines(FOREIGN).axes
    by_name = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert by_name["SFT"] == [[2.0, 6.0], [2.0, 8.0]]
    assert by_name["Self-Data FT"] == [[0.6, 4.6], [0.6, 6.6]]
    assert [text.get_text() for text in axis.texts] == ["alpaca, n = 4", "openmathinstruct1, n = 6"]


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
