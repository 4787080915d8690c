"""What a study detects, as table and figure: every number follows from the entries of the record."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest

from sdd_utils.analysis.power import detectable, sizes_for
from sdd_utils.report.power_views import power_curves, power_table


def entry(*, seeds=3, seed_se=0.01, document_se=0.02, interaction_se=0.005, unit="% of the loss", what="SFT heals"):
    known = {"seed_se": seed_se, "document_se": document_se, "interaction_se": interaction_se, "level": 0.95}
    known |= {"df": {"seeds": seeds - 1, "documents": 199}, "cells": 1, "seeds": seeds, "documents": 200}
    known |= {"what": what, "where": "n = 6 on pydoc", "unit": unit, "primary": True}
    known["detectable"] = detectable(known, seeds=seeds, documents=200)
    return known | {"half": sizes_for(known, known["detectable"] / 2)}


ONE_SEED = entry(seeds=1, seed_se=0.0, interaction_se=0.0)


@pytest.fixture(autouse=True)
def _no_figure_stays_open():
    yield
    plt.close("all")


def test_the_table_says_what_is_detected_and_what_would_see_half_of_it():
    halved = entry(seed_se=0.004, interaction_se=0.002)
    seeds_differ, in_nats = entry(seed_se=0.05), entry(unit="nats per token", document_se=0.2)
    cells = power_table([halved, seeds_differ, in_nats, ONE_SEED]).to_dict("records")
    assert cells[0]["comparison"] == "SFT heals, n = 6 on pydoc"
    assert cells[0]["detectable"] == f"{100 * halved['detectable']:.1f}"
    assert cells[0]["half of it: documents"] == f"{halved['half']['documents']:,}"
    assert cells[0]["half of it: both"] == "{} seeds, {:,} documents".format(*halved["half"]["both"])
    assert cells[1]["half of it: documents"] == "not by documents alone"
    assert cells[1]["half of it: seeds"] == str(seeds_differ["half"]["seeds"])
    assert cells[2]["detectable"] == f"{in_nats['detectable']:.3f}"
    assert cells[2]["half of it: seeds"] == "not by seeds alone"
    assert [cells[3][f"half of it: {what}"] for what in ("seeds", "both")] == ["unknown from one seed"] * 2


def test_curves_fall_with_documents_and_seeds_and_meet_the_study():
    measured = entry()
    (axis,) = power_curves([measured]).axes
    *lines, study = axis.lines
    assert [line.get_label() for line in lines] == ["3 seeds", "5 seeds", "10 seeds"]
    for seeds, line in zip((3, 5, 10), lines, strict=True):
        documents, differences = line.get_xydata().T
        wanted = [100 * detectable(measured, seeds=seeds, documents=n) for n in documents]
        assert differences == pytest.approx(wanted)
        assert (np.diff(differences) < 0).all()
    assert study.get_xydata().tolist() == [[200, pytest.approx(100 * measured["detectable"])]]
    assert study.get_xydata()[0] == pytest.approx(lines[0].get_xydata()[3])  # measured with three seeds
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")


def test_lines_are_told_apart_without_colour():
    lines = power_curves([entry()]).axes[0].lines
    assert len({line.get_marker() for line in lines}) == len({line.get_linestyle() for line in lines}) == len(lines)


def test_one_seed_has_one_line_that_falls_as_one_over_the_root():
    (axis,) = power_curves([ONE_SEED]).axes
    line, _ = axis.lines
    assert line.get_label() == "1 seed"
    documents, differences = line.get_xydata().T
    assert differences[-1] / differences[-2] == pytest.approx(math.sqrt(documents[-2] / documents[-1]), rel=1e-3)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_panels_are_named_with_units_and_nothing_is_cut_off_or_covered(count):
    what = "Self-Data FT - SFT in the share of the lost bits per byte that is won back"
    drawn = power_curves([entry(what=what)] * count)
    drawn.draw_without_rendering()
    assert len(drawn.axes) == count
    for axis in drawn.axes:
        assert axis.get_title().replace("\n", " ") == what
        assert axis.get_xlabel() == "documents"
    assert drawn.axes[0].get_ylabel() == "detectable difference (% of the loss)"
    box, inches, size = drawn.legends[0].get_window_extent(), drawn.get_tightbbox(), drawn.get_size_inches()
    assert not any(box.overlaps(axis.get_window_extent()) for axis in drawn.axes)
    assert (inches.min > -0.01).all()
    assert (inches.max < size + 0.01).all()


def test_units_that_differ_are_named_in_every_panel():
    axes = power_curves([entry(), entry(unit="cosine")]).axes
    assert [axis.get_ylabel().split("(")[1] for axis in axes] == ["% of the loss)", "cosine)"]
