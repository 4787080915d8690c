"""What the power page promises is what simulated studies find."""

import copy
import math

import numpy as np
import pytest
from pydantic import TypeAdapter
from study_records import score, study_records

from sdd_utils.analysis.power import detectable, power_entries, sizes_for
from sdd_utils.analysis.statistics import estimate, estimate_ratio
from sdd_utils.analysis.verdicts import judge_claims
from sdd_utils.base.records import Power

SPREADS = {  # standard deviations of seeds, documents and their interaction, by what varies most
    "documents": (0.02, 1.0, 1.0),
    "seeds": (0.3, 1.0, 0.3),
    "interaction": (0.0, 0.5, 2.0),
    "all alike": (0.1, 1.0, 1.0),
}


def known(spreads, *, seeds, documents, cells=1):
    """What `estimate` would say of a study if it knew the spreads instead of estimating them."""
    of_seeds, of_documents, of_both = spreads
    interaction = of_both**2 / (seeds * documents * cells)
    variances = {"seed": of_seeds**2 / (seeds * cells) + interaction, "interaction": interaction}
    variances["document"] = of_documents**2 / documents
    df = {"seeds": cells * (seeds - 1), "documents": documents - 1}
    measured = {"level": 0.95, "df": df, "cells": cells, "seeds": seeds, "documents": documents}
    measured |= {f"{part}_se": math.sqrt(variance) for part, variance in variances.items()}
    return measured | {"detectable": detectable(measured, seeds=seeds, documents=documents)}


def draw(rng, spreads, *, seeds, documents, cells=1):
    """(cells, seeds, documents) differences whose mean is 0; cells share what documents do, not what seeds do."""
    of_seeds, of_documents, of_both = spreads
    values = rng.normal(0, of_seeds, (cells, seeds, 1)) + rng.normal(0, of_documents, documents)
    return values + rng.normal(0, of_both, (cells, seeds, documents))


def share_found(spreads, difference, *, studies, **size):
    rng = np.random.default_rng(5)
    return np.mean([estimate([difference + draw(rng, spreads, **size)])["p"] < 0.05 for _ in range(studies)])


@pytest.mark.parametrize("name", SPREADS)
def test_four_simulated_studies_of_five_find_a_difference_of_the_promised_size(name):
    """More documents, more seeds, both: 1000 studies each, so the share found has a standard error of 1.3 %."""
    measured = known(SPREADS[name], seeds=3, documents=80)
    half = sizes_for(measured, measured["detectable"] / 2)
    sizes = [(3, 80), (3, half["documents"]), (half["seeds"], 80), tuple(half["both"])]
    for seeds, documents in ((s, n) for s, n in sizes if s and n):
        difference = detectable(measured, seeds=seeds, documents=documents)
        assert difference == measured["detectable"] or difference <= measured["detectable"] / 2
        found = share_found(SPREADS[name], difference, studies=1000, seeds=seeds, documents=documents)
        assert found == pytest.approx(0.8, abs=0.05), (seeds, documents)


def test_more_cells_are_more_trainings():
    measured = known(SPREADS["all alike"], seeds=3, documents=80, cells=2)
    difference = detectable(measured, seeds=3, documents=120, cells=4)
    found = share_found(SPREADS["all alike"], difference, studies=800, seeds=3, documents=120, cells=4)
    assert found == pytest.approx(0.8, abs=0.05)


def test_the_parts_of_the_variance_are_measured_without_bias():
    rng, spreads = np.random.default_rng(1), (0.2, 1.0, 1.5)
    found = [estimate([draw(rng, spreads, seeds=10, documents=100)]) for _ in range(400)]
    truth = known(spreads, seeds=10, documents=100)
    for part in ("seed_se", "document_se", "interaction_se"):
        assert np.mean([one[part] ** 2 for one in found]) == pytest.approx(truth[part] ** 2, rel=0.08), part


def test_a_study_of_the_measured_size_detects_what_was_measured():
    rng = np.random.default_rng(2)
    for cells, seeds in ((1, 3), (1, 1), (4, 3)):
        values = draw(rng, SPREADS["all alike"], seeds=seeds, documents=50, cells=cells)
        losses = rng.normal(3, 1, (cells, 1, 50))
        for measured in (estimate([values], level=0.99), estimate_ratio([values], [losses])):
            again = detectable(measured, seeds=measured["seeds"], documents=measured["documents"])
            assert again == pytest.approx(measured["detectable"])


@pytest.mark.parametrize("name", SPREADS)
def test_sizes_are_the_least_that_are_enough(name):
    measured = known(SPREADS[name], seeds=3, documents=80)
    wanted = measured["detectable"] / 2
    sizes = sizes_for(measured, wanted)
    if sizes["documents"]:
        assert detectable(measured, seeds=3, documents=sizes["documents"] - 1) > wanted
    if sizes["seeds"]:
        assert detectable(measured, seeds=sizes["seeds"] - 1, documents=80) > wanted
    seeds, documents = sizes["both"]
    assert seeds == math.ceil(3 * documents / 80)
    assert detectable(measured, seeds=math.ceil(3 * (documents - 1) / 80), documents=documents - 1) > wanted


def test_what_one_part_of_the_variance_does_not_allow_is_none():
    seeds, documents = (known(SPREADS[name], seeds=3, documents=80) for name in ("seeds", "documents"))
    assert sizes_for(seeds, seeds["detectable"] / 2)["documents"] is None
    assert sizes_for(documents, documents["detectable"] / 2)["seeds"] is None
    alone = estimate([np.random.default_rng(3).normal(0, 1, (1, 100))])
    found = sizes_for(alone, alone["detectable"] / 2)
    assert (found["seeds"], found["both"]) == (None, None)  # one seed says nothing of seeds
    assert found["documents"] == pytest.approx(400, abs=10)


def test_every_measured_part_of_a_claim_has_an_entry_that_a_record_can_hold():
    records = {str(i): record for i, record in enumerate(study_records())}
    rng = np.random.default_rng(4)
    for arm in records["2"]["metrics"]["arms"].values():
        arm["fidelity"] = {}
    for seed in (1, 2):
        tuned = copy.deepcopy(records["2"])
        tuned["params"]["seed"] = seed
        for arm in tuned["metrics"]["arms"].values():
            arm["scores"]["a"] = score(rng.random(4))
        records[f"seed {seed}"] = tuned
    answers = judge_claims(records, in_domain={})
    entries = TypeAdapter(list[Power]).validate_python(power_entries(answers))
    measured = [(answer["key"], part["what"]) for answer in answers for part in answer["parts"]]
    assert [(entry["key"], entry["what"]) for entry in entries] == measured
    assert "recovers_more" in {entry["key"] for entry in entries}
    assert {entry["seeds"] for entry in entries} == {3}

    flat, counted = copy.deepcopy(answers[3]), copy.deepcopy(answers[3])
    flat["parts"][0]["se"], counted["parts"][0]["p"] = 0.0, None
    assert power_entries([flat, counted]) == []
