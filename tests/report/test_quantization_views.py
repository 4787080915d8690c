"""The table and the figure of quality against bytes show what the record holds."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from figure_data import intervals, lines, quantization
from pydantic import TypeAdapter

from sdd_utils.analysis.quantization import front, stored_models
from sdd_utils.base.records import QuantizationMetrics
from sdd_utils.report import quantization_views
from sdd_utils.report.figures import NAMES

METRICS = quantization()
ROWS = stored_models(METRICS)


@pytest.fixture
def panels():
    yield quantization_views.quantization_figure(METRICS).axes
    plt.close("all")


@pytest.mark.parametrize("measure", ["kl", "choice_probability"])
def test_each_model_is_a_line_through_its_formats_and_the_front_lies_under_them(panels, measure):
    axis = panels[["kl", "choice_probability"].index(measure)]
    drawn = lines(axis)
    assert set(drawn) == {"Original", "No FT", "Self-Data FT"}
    for arm in ("original", "no_ft", "self_data_ft"):
        own = [row for row in ROWS if row["arm"] == arm]
        line = drawn[NAMES[arm]].lines[0]
        assert line.get_xdata().tolist() == pytest.approx([row["bytes"] / 1e6 for row in own])
        assert line.get_ydata().tolist() == pytest.approx([row[measure] for row in own])
        spread = np.diff(intervals(drawn[NAMES[arm]]))[:, 0]
        assert spread == pytest.approx([0.0 if measure == "kl" else 2 * 1.96 * row["stderr"] for row in own])
    best = front(ROWS, measure=measure)
    (band,) = [line for line in axis.lines if line.get_label() == "best at this size"]
    assert band.get_ydata()[:-1].tolist() == pytest.approx([row[measure] for row in best])
    assert sorted(text.get_text() for text in axis.texts) == sorted(row["format"] for row in ROWS)


def test_models_of_two_data_sets_are_told_apart():
    again = {f"{name}-b": model | {"data_set": "b"} for name, model in METRICS["models"].items() if model["data_set"]}
    axis = quantization_views.quantization_figure(METRICS | {"models": METRICS["models"] | again}).axes[0]
    drawn = lines(axis)
    assert set(drawn) == {"Original", "No FT", "Self-Data FT, a", "Self-Data FT, b"}
    fills = [drawn[f"Self-Data FT, {name}"].lines[0].get_markerfacecolor() for name in "ab"]
    assert fills[1] == "white" != fills[0]
    plt.close("all")


def test_the_table_says_what_is_on_the_front_and_which_arm_is_favoured():
    favours, *rows = quantization_views.quantization_table(METRICS).to_dict("records")
    assert (favours["model"], favours["KL"], favours["choice probability"]) == ("Favours", "Self-Data FT", "-")
    assert [row["MB"] for row in rows] == [f"{row['bytes'] / 1e6:.1f}" for row in ROWS]
    assert rows[-1]["model"] == "Original"
    assert rows[-1]["on the front by"] == "kl, choice probability"
    assert rows[-1]["decoding, tokens/s"] == "50"
    assert rows[-1]["reading, tokens/s"] == "640"  # 128 in 0.2 s


def test_a_study_without_choices_has_one_panel():
    models = {name: model | {"scores": {}} for name, model in METRICS["models"].items()}
    metrics = METRICS | {"models": models}
    assert len(quantization_views.quantization_figure(metrics).axes) == 1
    assert set(quantization_views.quantization_table(metrics)["choice probability"]) == {"-"}
    plt.close("all")


def test_the_data_of_these_tests_are_a_record():
    assert TypeAdapter(QuantizationMetrics).validate_python(METRICS)
