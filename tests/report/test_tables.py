"""Every table's cells come from the records."""

import json

import numpy as np
from study_records import score, study_records

from sdd_utils.analysis import model_grid
from sdd_utils.report.tables import (
    capacity_table,
    fidelity_table,
    merging_table,
    recovery_table,
    scaling_table,
    score_table,
    training_table,
)


def test_grid_and_tables_come_from_the_records():
    rows = model_grid.model_grid(study_records())
    found = {row["arm"]: row["recovery"] for row in rows}
    assert found == {"original": 1.0, "no_ft": 0.25, "sft": 0.25, "self_data_ft": 0.5}
    original = model_grid.original_scores(study_records())
    table = recovery_table(rows, original)
    assert table["Self-Data FT - SFT (points)"][0].startswith("+25.0 [")
    assert list(table)[-2:] == ["p (Holm)", "detectable (points)"]
    scores = score_table(rows)
    assert list(scores["model"]) == ["Chance", "Original", "No FT", "SFT", "Self-Data FT"]
    assert list(scores["a (acc)"])[:2] == ["0.250", "1.000 ± 0.100"]
    generated = [row | {"scores": {"a": row["scores"]["a"] | {"chance": 0.0}}} for row in rows]
    assert score_table(generated)["a (acc)"][0] == "-"


def test_fewer_rows_stand_in_the_scaling_table_and_not_in_the_grid():
    records = study_records()
    fewer = json.loads(json.dumps(records[-1]))
    for arm in fewer["metrics"]["arms"].values():
        arm["training"]["rows"] = 10
        arm["scores"]["a"] = score([0, 0, 0, 0])
    rows = model_grid.model_grid([*records, fewer])
    assert [row["recovery"] for row in rows] == [1.0, 0.25, 0.25, 0.5]
    scaled = model_grid.scaling([*records, fewer])
    assert [(row["arm"], row["rows"], row["recovery"]) for row in scaled] == [
        ("self_data_ft", 10, 0.0), ("self_data_ft", 40, 0.5), ("sft", 10, 0.0), ("sft", 40, 0.25)
    ]  # fmt: skip
    assert list(scaling_table(scaled)["rows"]) == [10, 40]


def test_fidelity_is_averaged_over_seeds_of_the_main_comparison():
    records = study_records()
    for record in records:
        each = record["metrics"].get("arms", {"": record["metrics"]}).values()
        for index, metrics in enumerate(each):
            metrics["fidelity"] = {"d": {"nll": 1.0 + index, "kl": record["params"]["block_size"] / 4}}
    second, fewer = (json.loads(json.dumps(records[-1])) for _ in range(2))
    second["params"]["seed"] = 1
    second["metrics"]["arms"]["self_data_ft"]["fidelity"]["d"]["nll"] = 3.0
    fewer["metrics"]["arms"]["sft"] |= {"training": {"rows": 10}, "fidelity": {"d": {"nll": 9.0, "kl": 9.0}}}
    fewer["metrics"]["arms"].pop("self_data_ft")
    table = fidelity_table([*records, second, fewer])
    assert table["model"].tolist() == ["Original", "No FT", "SFT", "Self-Data FT"]
    assert table["seeds"].tolist() == ["-", "-", 2, 2]
    assert table["NLL on d"].tolist() == ["1.000", "1.000", "1.000", "2.500"]
    assert table["KL on d"][0] == "0.000"


def test_other_capacities_stand_in_their_table_and_not_in_the_grid():
    records = study_records()
    records[-1]["params"] |= {"lora_rank": 16, "lora_alpha": 32, "lora_targets": "all-linear"}
    small = json.loads(json.dumps(records[-1]))
    small["params"] |= {"lora_rank": 8, "lora_alpha": 16, "lora_targets": "q_proj", "capacity": "r8a16-q_proj"}
    small["metrics"]["arms"]["sft"] |= {"training": {"rows": 40}, "scores": {"a": score([1, 1, 1, 0])}}
    fewer = json.loads(json.dumps(records[-1]))
    fewer["metrics"]["arms"]["sft"]["training"]["rows"] = 10
    found = [*records, small, fewer]
    assert [(row["arm"], row["recovery"]) for row in model_grid.model_grid(found)] == [
        (row["arm"], row["recovery"]) for row in model_grid.model_grid(records)
    ]
    rows = [row for row in model_grid.capacities(found) if row["arm"] == "sft"]
    assert [(row["rank"], row["targets"], row["seeds"]) for row in rows] == [(8, "q_proj", 1), (16, "all-linear", 1)]
    assert [row["recovery"] for row in rows] == [0.75, 0.25]
    table = capacity_table(model_grid.capacities(found))
    assert table["rank"].tolist() == [8, 16]
    assert table["SFT"][0].startswith("75.0 % [")


def test_the_training_table_says_what_each_arm_learnt_from():
    first = study_records()[-1]
    second = json.loads(json.dumps(first)) | {"params": first["params"] | {"seed": 1}}
    for record, tokens in ((first, 100), (second, 120)):
        for arm in record["metrics"]["arms"].values():
            arm["training"] = {"rows": 40, "steps": 10, "trained_tokens": tokens}
    table = training_table([first, second])
    assert table["model"].tolist() == ["SFT", "Self-Data FT"]
    assert table["seeds"].tolist() == [2, 2]
    assert table["response tokens"].tolist() == ["110", "110"]


def scores(documents):
    return {"task": {"value": float(np.mean(documents)), "documents": documents, "higher_is_better": True}}


def merged(**more):
    params = {"block_size": 4, "data_set": "a", "other_data_set": "b", "seed": 0}
    path = [{"t": t, "scores": scores([1, 1, 1, 0] * 5)} for t in (0.0, 0.5, 1.0)]
    return {"step": "merging", "params": params, "metrics": {"points": path, "lerp_share": 0.25} | more}


def test_the_table_has_lerp_and_mixture_and_a_dash_where_a_merge_has_none():
    original = {"step": "pruning", "params": {"block_size": 0}, "metrics": {"scores": scores([1] * 20)}}
    made = {"lerp_points": [{"t": 0.5, "scores": scores([1, 0] * 10)}], "mixture": {"scores": scores([0] * 20)}}
    table = merging_table([original, merged(**made), merged(lerp_points=[], mixture=None)])
    assert table["LERP, t = 0.5"].tolist() == ["50.0 % [26.0, 74.0]", "-"]  # 0.5 ± t(19) sd / sqrt(20), by hand
    assert table["trained on both"].tolist() == ["0.0 % [0.0, 0.0]", "-"]
    assert "LERP, t = 0" not in table
