"""Records are whole or absent and never hold NaN; recovery and its interval are the textbook's."""

import json

import numpy as np
import pytest

from sdd_utils import grid, paper, plots, report, results, side_tables
from sdd_utils.study import record_path

PARAMS = {"study": "tiny", "run": "r", "seed": 4, "tasks": {"facts": 3}}


def score(documents, **changes):
    base = {"metric": "acc", "higher_is_better": True, "documents": documents, "value": float(np.mean(documents))}
    return base | {"stderr": 0.1, "n": len(documents), "chance": 0.25} | changes


def test_record_says_how_it_was_made(tmp_path):
    path = results.write_record(
        tmp_path / "a.json", step="pruning", params=PARAMS, metrics={"map": [[1.5, 2.0], [3, 4]]}
    )
    record = results.read_record(path, made_by="02_pruning")
    assert record["params"] == PARAMS
    assert record["metrics"] == {"map": [[1.5, 2.0], [3, 4]]}
    made = record["provenance"]
    assert made["seed"] == 4
    assert {"commit", "dirty", "versions", "device", "threads", "started", "wall_s", "peak_rss_mb"} <= set(made)
    assert results.device_of(made).endswith(" in float32")
    assert results.device_of({"device": "of an older record"}) == "of an older record"
    assert made["versions"]["torch"].startswith("2.13")
    assert made["peak_rss_mb"] > 50


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), [1.0, float("nan")]])
def test_nan_is_refused_and_nothing_is_written(tmp_path, bad):
    with pytest.raises(ValueError, match="would hold NaN or infinity"):
        results.write_record(tmp_path / "a.json", step="pruning", params=PARAMS, metrics={"x": bad})
    assert list(tmp_path.iterdir()) == []


def test_missing_and_broken_records_name_the_mend(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a.json does not exist yet: run notebooks/02_pruning.ipynb first"):
        results.read_record(tmp_path / "a.json", made_by="02_pruning")
    (tmp_path / "a.json").write_text('{"step": ')
    with pytest.raises(ValueError, match="not complete JSON: delete it"):
        results.read_record(tmp_path / "a.json", made_by="02_pruning")


def test_recovery_is_the_ratio_of_averages_and_leaves_losses_out():
    original = {"a": score([1, 1, 0, 1]), "b": score([1, 0]), "nll": score([[3, 1]], higher_is_better=False)}
    pruned = {"a": score([1, 0, 0, 1]), "b": score([0, 0]), "nll": score([[9, 1]], higher_is_better=False)}
    assert results.recovery(pruned, original) == pytest.approx((0.5 + 0) / (0.75 + 0.5))
    assert results.recovery(original, original) == 1
    with pytest.raises(ValueError, match="scores 0 on every task"):
        results.recovery(original, {"a": score([0, 0])})


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(1)
    covered = 0
    for repetition in range(300):
        low, high = results.bootstrap_mean(rng.normal(0.3, 1, 60), draws=400, seed=repetition)["interval"]
        covered += low <= 0.3 <= high
    assert 0.90 <= covered / 300 <= 0.98


def study_records():
    def pruning(n, documents):
        accounting = {"layers": 5 - n, "parameters": 10 - n, "cut_parameters": n / 10, "cut_matmul": n / 10}
        metrics = {"scores": {"a": score(documents)}, "accounting": accounting}
        return {"step": "pruning", "params": {"block_size": n}, "metrics": metrics}

    documents, training = {"sft": [1, 0, 0, 0], "self_data_ft": [1, 1, 0, 0]}, {"rows": 40}
    arms = {arm: {"scores": {"a": score(own)}, "training": training} for arm, own in documents.items()}
    params = {"block_size": 2, "data_set": "d", "seed": 0}
    tuned = {"step": "finetuning", "params": params, "metrics": {"arms": arms}}
    return [pruning(0, [1, 1, 1, 1]), pruning(2, [0, 0, 0, 1]), tuned]


def test_grid_and_tables_come_from_the_records():
    rows = grid.grid(study_records())
    found = {row["arm"]: row["recovery"] for row in rows}
    assert found == {"original": 1.0, "no_ft": 0.25, "sft": 0.25, "self_data_ft": 0.5}
    original = grid.original_scores(study_records())
    table = report.recovery_table(rows, original)
    assert table["Self-Data FT - SFT (points)"][0].startswith("+25.0 [")
    assert list(table)[-2:] == ["p (Holm)", "detectable (points)"]
    scores = side_tables.score_table(rows)
    assert list(scores["model"]) == ["Chance", "Original", "No FT", "SFT", "Self-Data FT"]
    assert list(scores["a (acc)"])[:2] == ["0.250", "1.000 ± 0.100"]
    generated = [row | {"scores": {"a": row["scores"]["a"] | {"chance": 0.0}}} for row in rows]
    assert side_tables.score_table(generated)["a (acc)"][0] == "-"


def test_differences_are_paired_by_seed_whatever_the_order_of_the_records():
    records = study_records()
    more = [json.loads(json.dumps(records[-1])) for _ in range(2)]
    for seed, record in zip((2, 1), more, strict=True):
        record["params"]["seed"] = seed
        arms = record["metrics"]["arms"]
        arms["sft"]["scores"]["a"], arms["self_data_ft"]["scores"]["a"] = (
            score([1, 0, seed - 1, 0]),
            score([1, 1, seed - 1, 0]),
        )
    (entry,) = grid.differences(grid.grid([*records, *more]), grid.original_scores(records))
    assert (entry["seeds"], entry["documents"], entry["df"]["seeds"]) == (3, 4, 2)
    assert entry["difference"] == pytest.approx(0.25)
    assert entry["seed_share"] == 0  # the same difference at every seed
    assert entry["p_holm"] == entry["p"]
    del more[0]["metrics"]["arms"]["sft"]
    (entry,) = grid.differences(grid.grid([*records, *more]), grid.original_scores(records))
    assert entry["seeds"] == 2  # only seeds that both arms have


def test_several_seeds_are_averaged_by_document():
    records = study_records()
    second = json.loads(json.dumps(records[-1]))
    second["params"]["seed"] = 1
    second["metrics"]["arms"]["sft"]["scores"]["a"] = score([0, 0, 0, 0])
    row = next(row for row in grid.grid([*records, second]) if row["arm"] == "sft")
    assert (row["seeds"], row["scores"]["a"]["documents"]) == (2, [0.5, 0, 0, 0])
    single = grid._mean_over_seeds([{"a": score([1], stderr=0.0)}, {"a": score([0], stderr=0.0)}])
    assert (single["a"]["value"], single["a"]["stderr"]) == (0.5, 0.0)  # one document has no spread, not NaN


def test_fewer_rows_stand_in_the_scaling_table_and_not_in_the_grid():
    records = study_records()
    fewer = json.loads(json.dumps(records[-1]))
    for arm in fewer["metrics"]["arms"].values():
        arm["training"]["rows"] = 10
        arm["scores"]["a"] = score([0, 0, 0, 0])
    rows = grid.grid([*records, fewer])
    assert [row["recovery"] for row in rows] == [1.0, 0.25, 0.25, 0.5]
    scaled = grid.scaling([*records, fewer])
    assert [(row["arm"], row["rows"], row["recovery"]) for row in scaled] == [
        ("self_data_ft", 10, 0.0), ("self_data_ft", 40, 0.5), ("sft", 10, 0.0), ("sft", 40, 0.25)
    ]  # fmt: skip
    assert list(report.scaling_table(scaled)["rows"]) == [10, 40]


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
    table = side_tables.fidelity_table([*records, second, fewer])
    assert table["model"].tolist() == ["Original", "No FT", "SFT", "Self-Data FT"]
    assert table["seeds"].tolist() == [1, 1, 2, 2]
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
    assert [(row["arm"], row["recovery"]) for row in grid.grid(found)] == [
        (row["arm"], row["recovery"]) for row in grid.grid(records)
    ]
    rows = [row for row in grid.capacities(found) if row["arm"] == "sft"]
    assert [(row["rank"], row["targets"], row["seeds"]) for row in rows] == [(8, "q_proj", 1), (16, "all-linear", 1)]
    assert [row["recovery"] for row in rows] == [0.75, 0.25]
    table = side_tables.capacity_table(grid.capacities(found))
    assert table["rank"].tolist() == [8, 16]
    assert table["SFT"][0].startswith("75.0 % [")


def test_the_training_table_says_what_each_arm_learnt_from():
    first = study_records()[-1]
    second = json.loads(json.dumps(first)) | {"params": first["params"] | {"seed": 1}}
    for record, tokens in ((first, 100), (second, 120)):
        for arm in record["metrics"]["arms"].values():
            arm["training"] = {"rows": 40, "steps": 10, "trained_tokens": tokens}
    table = side_tables.training_table([first, second])
    assert table["model"].tolist() == ["SFT", "Self-Data FT"]
    assert table["seeds"].tolist() == [2, 2]
    assert table["response tokens"].tolist() == ["110", "110"]


def test_scaling_is_drawn_where_it_was_asked_for():
    """Not at the largest block size, which has one number of rows."""
    cell = {"arm": "sft", "data_set": "a", "recovery": 0.5, "interval": [0.4, 0.6]}
    rows = [cell | {"block_size": n, "rows": count} for n, count in ((6, 8), (6, 16), (10, 16))]
    (axis,) = plots.scaling_curves(rows).axes
    assert list(axis.lines[0].get_xdata()) == [8, 16]
    assert axis.get_title().endswith("n = 6")


def test_published_numbers_have_sources():
    assert all(published.source and published.unit for published in paper.NUMBERS)
    assert paper.number("recovery_self_data_ft").value - paper.number("recovery_sft").value == pytest.approx(9.5)


def test_record_names_are_for_people():
    path = record_path("r", "finetuning", block_size=4, data_set="pydoc", rows=48, seed=0)
    assert path.name == "finetuning-n4-pydoc-48rows-s0.json"
