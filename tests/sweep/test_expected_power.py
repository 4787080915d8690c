"""What the plan promises is what the committed variances say for the planned seeds, cells and documents."""

import json
from types import SimpleNamespace

import pytest

from sdd_utils.analysis.power import detectable, sizes_for
from sdd_utils.base.records import SCHEMA
from sdd_utils.sweep import expected_power

STUDY = {
    "data_sets": {"gsm_symbolic": 48, "pydoc": 48}, "finetune_block_sizes": [4, 6], "seeds": [0, 1, 2],
    "arms": ["sft", "self_data_ft"], "tasks": {"facts": 200, "gsm_symbolic_mc": 64}, "model": "m", "in_domain": {},
}  # fmt: skip


def entry(key, *, primary):
    known = {"seed_se": 0.01, "document_se": 0.02, "interaction_se": 0.005, "level": 0.95, "estimate": 0.1}
    known |= {"df": {"seeds": 8.0, "documents": 262.0}, "cells": 4, "seeds": 3, "documents": 264}
    known["detectable"] = detectable(known, seeds=3, documents=264)
    half = sizes_for(known, known["detectable"] / 2)
    return known | {"key": key, "what": f"the {key}", "where": "", "unit": "points", "primary": primary, "half": half}


ENTRIES = [entry("question", primary=True), entry("recovers_more", primary=False), entry("other", primary=False)]


def commit(results, name, *, entries=None, model="m", **changes):
    """Committed records of 09, with `ENTRIES` or these, measured on the tasks of `STUDY`, and of the original."""
    grid = [{"arm": "original", "scores": {task: {"n": n} for task, n in STUDY["tasks"].items()}}]
    provenance = {"commit": "", "dirty": False, "versions": {}, "device": "cpu", "dtype": "float32", "threads": 1}
    provenance |= {"seed": None, "started": "", "wall_s": 1.0, "peak_rss_mb": 1}
    metrics = {"grid": grid, "differences": [], "shift": {}, "power": entries or ENTRIES}
    record = {"schema": SCHEMA, "step": "results", "study": name, "params": {"study": name, "run": "work/x"}}
    record |= {"metrics": metrics, "provenance": provenance}
    folder = results / name / "records"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(record | changes))
    counts = dict.fromkeys(("block_size", "layers", "parameters", "flops_per_token_2p", "flops_per_token_matmul"), 0)
    counts |= {"cut_parameters": 0.0, "cut_matmul": 0.0}
    original = {"weights": "", "start": 0, "kept_layers": [], "accounting": counts, "scores": {}, "fidelity": {}}
    original["answers"] = {}
    params = record["params"] | {"model": model}
    (folder / "pruning-n0.json").write_text(
        json.dumps(record | {"step": "pruning", "params": params, "metrics": original})
    )


def lines(results, *, name="mine", seeds_of="", **changes):
    study = SimpleNamespace(**STUDY | changes)
    return expected_power.report(study, name=name, seeds_of=seeds_of, results=results).splitlines()


def shown(said):
    """The detectable differences of a plan, in points."""
    return [float(line.split("  ")[-2]) for line in said if line.startswith("the ")]


def test_a_study_like_the_committed_one_detects_what_that_did(tmp_path):
    commit(tmp_path, "embedded")
    said = lines(tmp_path)
    size, basis = said[0].split("; variances of ")
    assert size.endswith("with 3 seeds, 4 cells (block size x data set) and 264 documents")
    assert basis == "results/embedded, another study, so this is a guess"
    assert [line.split("  ")[0] for line in said if line.startswith("the ")] == ["the question", "the recovers_more"]
    assert shown(said) == [pytest.approx(100 * ENTRIES[0]["detectable"], abs=0.05)] * 2


def test_its_own_variances_go_before_those_of_the_embedded_study(tmp_path):
    commit(tmp_path, "embedded")
    commit(tmp_path, "mine")
    assert lines(tmp_path)[0].endswith("variances of results/mine")


def test_a_pilot_goes_before_the_embedded_study_and_its_lacking_seeds_are_those_of_the_model_elsewhere(tmp_path):
    one_seed = [one | {"seed_se": 0.0, "interaction_se": 0.0, "seeds": 1, "cells": 2} for one in ENTRIES]
    one_seed = [one | {"df": {"seeds": 0.0, "documents": 131.0}, "documents": 132} for one in one_seed]
    commit(tmp_path, "embedded", model="another")
    commit(tmp_path, "mine-pilot", entries=one_seed)
    assert lines(tmp_path)[0].endswith("variances of results/mine-pilot, so this is a guess")
    commit(tmp_path, "older", schema=3)
    commit(tmp_path, "same-model")
    commit(tmp_path, "same-model-2")
    said, other = lines(tmp_path), lines(tmp_path, seeds_of="same-model-2")
    basis = "variances of results/mine-pilot, of seeds those of results/same-model{}, so this is a guess"
    assert [text[0].endswith(basis.format(end)) for text, end in ((said, ""), (other, "-2"))] == [True, True]
    interaction = 0.005**2 * 2  # at half the documents
    joined = one_seed[0] | {"seeds": 3, "cells": 4, "df": {"seeds": 8.0, "documents": 131.0}}
    joined |= {"interaction_se": interaction**0.5, "seed_se": (0.01**2 + 0.005**2) ** 0.5}
    assert shown(said)[0] == pytest.approx(100 * detectable(joined, seeds=3, documents=132), abs=0.05)


def test_seeds_cells_and_documents_are_the_planned_ones(tmp_path):
    commit(tmp_path, "embedded")
    twice = {task: 2 * n for task, n in STUDY["tasks"].items()}
    for changes, size in (
        ({"seeds": [0, 1, 2, 3, 4]}, {"seeds": 5, "documents": 264}),
        ({"finetune_block_sizes": [4]}, {"seeds": 3, "documents": 264, "cells": 2}),
        ({"tasks": twice}, {"seeds": 3, "documents": 528}),
    ):
        assert shown(lines(tmp_path, **changes))[0] == pytest.approx(100 * detectable(ENTRIES[0], **size), abs=0.05)


def test_more_documents_of_the_larger_task_alone_help_little(tmp_path):
    commit(tmp_path, "embedded")
    (before, _), (large, _), (small, _) = (
        shown(lines(tmp_path, tasks=STUDY["tasks"] | changes))
        for changes in ({}, {"facts": 200 + 300}, {"gsm_symbolic_mc": 64 + 300})
    )
    assert before - large < 0.5 * (before - small)


def test_a_healed_share_counts_documents_of_tasks_out_of_every_domain_alone(tmp_path):
    shares = [one | {"unit": "% of the loss"} for one in ENTRIES]
    commit(tmp_path, "embedded", entries=shares)
    own = {"in_domain": {"pydoc": ["gsm_symbolic_mc"]}}
    fewer = lines(tmp_path, **own, tasks=STUDY["tasks"] | {"gsm_symbolic_mc": 1000})
    none_more = lines(tmp_path, **own)
    assert shown(fewer) == shown(none_more)
    assert shown(lines(tmp_path, **own, tasks=STUDY["tasks"] | {"facts": 400})) < shown(none_more)


def test_fewer_seeds_than_claims_need_are_told(tmp_path):
    commit(tmp_path, "embedded")
    said = lines(tmp_path, seeds=[0])
    assert said[1] == "1 seed(s), as the study has, leave every claim about training inconclusive"
    assert shown(said) == shown(lines(tmp_path))


@pytest.mark.parametrize(
    ("changes", "study", "said"),
    [
        (None, {}, "results/embedded holds no variances: results.json does not exist yet"),
        ({"schema": 3}, {}, "results/embedded holds no variances: results.json has record schema 3, this version"),
        ({}, {"arms": ["sft"]}, "the study has not both SFT and Self-Data FT to compare"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_one_line(changes, study, said, tmp_path):
    if changes is not None:
        commit(tmp_path, "embedded", **changes)
    (line,) = lines(tmp_path, **study)
    assert line.startswith(f"detectable differences: unknown, as {said}")
