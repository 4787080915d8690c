"""Every table's cells come from the records."""

import json

import numpy as np
import pytest
from study_records import measured, score, study_records

from sdd_utils import ROOT
from sdd_utils.analysis import forgetting, model_grid
from sdd_utils.report import across_studies
from sdd_utils.report.job_tables import budget_table, embedding_table, study_budget_table, training_table
from sdd_utils.report.tables import (
    bits_table,
    capacity_table,
    choice_table,
    claims_table,
    domain_table,
    fidelity_table,
    headline_claims_table,
    measure_table,
    merging_table,
    recovery_table,
    scaling_table,
    score_table,
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
    assert list(scores["a (acc)"])[:2] == ["-", "1.000 ± 0.010"]  # guessing has no score there
    choices = [row | {"scores": {"a": row["scores"]["a"] | {"chance": 0.25}}} for row in rows]
    assert score_table(choices)["a (acc)"][0] == "0.250"


def test_budgets_are_means_over_trainings_and_left_out_where_records_do_not_say():
    assert study_budget_table(study_records()).empty
    training = {"rows": 40, "steps": 10, "trained_tokens": 500, "seen_tokens": 900, "loss": []}
    budget = {"teacher_tokens": 500, "generated_tokens": 0, "flops": 3_000_000_000_000}
    second = {"training": training | {"trained_tokens": 300}, "budget": budget | {"flops": 2_000_000_000_000}}
    table = budget_table({"logit_kd": [{"training": training, "budget": budget}, second]}, {"logit_kd": [3.0, 6.0]})
    assert table.to_dict("records") == [
        {"model": "Logit KD", "rows": "40", "steps": "10", "trained tokens": "400", "scored tokens": "500",
         "generated tokens": "0", "TFLOP": "2.5", "seconds": "4"}
    ]  # fmt: skip


def test_a_measure_favours_those_arms_of_a_study_that_learn_what_it_measures():
    pruned, tuned = study_records()[:2], study_records()[2]
    arms = tuned["metrics"]["arms"]
    arms |= {name: json.loads(json.dumps(arms["sft"])) for name in ("logit_kd", "on_policy", "mixed_ft")}
    for record in pruned:
        record["metrics"]["fidelity"] = {"d": {"nll": 1.0, "kl": 0.0}}
    for model in arms.values():
        model["fidelity"] = {"d": {"nll": 1.0, "kl": 0.5}}
    assert fidelity_table([*pruned, tuned])["KL on d"][0] == "Self-Data FT, Logit KD, On-policy KD"
    arms.pop("logit_kd"), arms.pop("on_policy")
    assert fidelity_table([*pruned, tuned])["KL on d"][0] == "Self-Data FT"


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
    assert table["model"].tolist() == ["Favours", "Original", "No FT", "SFT", "Self-Data FT"]
    assert table["seeds"].tolist() == ["-", "-", "-", 2, 2]
    assert table["NLL on d"].tolist() == ["Self-Data FT", "1.000", "1.000", "1.000", "2.500"]
    assert table["KL on d"].tolist()[:2] == ["Self-Data FT", "0.000"]


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
    return {"task": score(documents)}


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
    vectors = {"points": [{"t": t, "scores": scores([0] * 20)} for t in (0.0, 0.5, 1.0)], "lerp_share": 0.0}
    table = merging_table([original, merged(**made, task_vectors=vectors)])
    assert table["task vectors, t = 0.5"].tolist() == ["0.0 % [0.0, 0.0]"]
    assert table["LERP share of task vectors"].tolist() == ["0.0 %"]


# Tables of several measures. Two tasks: `quiz` has choices, `gold` is a worked answer of the domain of data set `d`.

DOMAINS = {"d": ["gold"], "other": []}


def measures(*, choice, quiz_bits, gold_bits):
    """Scores by task; bits differ between documents by the same steps in each model."""
    steps = np.array([-0.2, -0.1, 0.1, 0.2])
    quiz = score([1, 1, 1, 1], chance=0.25) | {"choice_probability": measured(choice + steps / 100)}
    quiz |= {"gold_bits_per_byte": measured(quiz_bits + steps)}
    gold = {"metric": "gold_bits_per_byte", "n": 4, "chance": 0.0}
    return {"quiz": quiz, "gold": gold | {"gold_bits_per_byte": measured(gold_bits + steps)}}


@pytest.fixture
def records():
    """A study of one block size: SFT heals a quarter of the quiz and more than all of its own domain."""
    first, pruned, tuned = study_records()
    first["metrics"]["scores"] = measures(choice=0.8, quiz_bits=1.0, gold_bits=1.0)
    pruned["metrics"]["scores"] = measures(choice=0.4, quiz_bits=1.8, gold_bits=2.0)
    arms = tuned["metrics"]["arms"]
    arms["sft"]["scores"] = measures(choice=0.6, quiz_bits=1.6, gold_bits=0.5)
    arms["self_data_ft"]["scores"] = measures(choice=0.7, quiz_bits=1.2, gold_bits=1.5)
    return [first, pruned, tuned]


@pytest.fixture
def rows(records):
    original = model_grid.original_scores(records)
    return forgetting.with_domains(model_grid.model_grid(records), original, DOMAINS)


def test_domains_have_the_healed_share_and_say_whom_it_favours(rows):
    table = domain_table(rows)
    assert table["model"].tolist() == ["Favours", "SFT", "Self-Data FT"]
    assert table["healed, own tasks"][0] == "SFT"
    assert set(table.iloc[0].drop(["model", "healed, own tasks"])) == {"-"}
    shares = {name: [cell.split(" [")[0] for cell in table[name][1:]] for name in table if name.startswith("healed")}
    assert shares == {"healed, other tasks": ["25.0 %", "75.0 %"], "healed, own tasks": ["150.0 %", "50.0 %"]}
    assert table["recovery, own tasks"].tolist() == ["-", "-", "-"]  # a worked answer has no accuracy
    assert table["forgotten, points"][1].startswith("+0.0 [")


def test_a_domain_without_tasks_or_loss_has_no_healed_share(records):
    records[2]["params"]["data_set"] = "other"
    records[1]["metrics"]["scores"] = records[0]["metrics"]["scores"]  # pruning lost nothing
    original = model_grid.original_scores(records)
    table = domain_table(forgetting.with_domains(model_grid.model_grid(records), original, DOMAINS))
    assert table["healed, own tasks"].tolist() == ["SFT", "-", "-"]
    assert table["healed, other tasks"].tolist() == ["-", "-", "-"]


def test_bits_of_the_training_domain_favour_sft_on_that_data_set(rows):
    table = bits_table(rows, DOMAINS)
    assert table["model"].tolist() == ["Favours", "Original", "No FT", "SFT", "Self-Data FT"]
    assert table["gold"].tolist() == ["SFT on d", *(f"{bits:.3f} ± 0.010" for bits in (1.0, 2.0, 0.5, 1.5))]
    assert table["quiz"][0] == "-"
    assert bits_table(rows, {"d": ["gold"], "e": ["gold"]})["gold"][0] == "SFT on d, e"


def test_choice_probability_has_the_tasks_with_choices_and_its_own_recovery(rows):
    table = choice_table(rows)
    assert "gold" not in table
    assert table["quiz"].tolist() == ["0.250", *(f"{p:.3f} ± 0.010" for p in (0.8, 0.4, 0.6, 0.7))]
    assert [cell.split(" [")[0] for cell in table["recovery"]] == ["-", "100.0 %", "50.0 %", "75.0 %", "87.5 %"]
    assert choice_table([row | {"choice_recovery": None} for row in rows]).empty


def test_recovery_of_choice_probability_stands_in_a_table_like_that_of_accuracy(records, rows):
    original = model_grid.original_scores(records)
    accuracy, choice = (recovery_table(rows, original, **more) for more in ({}, {"measure": "choice_probability"}))
    assert list(accuracy) == list(choice)
    shown = {name: choice[name][0].split(" [")[0] for name in ("No FT", "SFT", "Self-Data FT")}
    assert shown == {"No FT": "50.0 %", "SFT": "75.0 %", "Self-Data FT": "87.5 %"}
    assert choice["Self-Data FT - SFT (points)"][0].startswith("+12.5 [")
    assert accuracy["No FT"][0].startswith("100.0 % [")


def test_a_notebooks_table_has_a_line_per_task_and_measure(rows):
    by_model = {row["arm"]: row["scores"] for row in rows}
    table = measure_table(by_model)
    assert [*table.index] == [
        ("quiz", "accuracy"), ("quiz", "choice probability"), ("quiz", "bits per byte"), ("gold", "bits per byte")
    ]  # fmt: skip
    assert table["sft"].tolist() == ["1.000 ± 0.010", "0.600 ± 0.010", "1.600 ± 0.010", "0.500 ± 0.010"]


def test_cosines_to_the_originals_answers_favour_self_data_ft():
    cosines = {"mean": 0.5, "interval": [0.4, 0.6], "n": 2, "similarities": [0.4, 0.6]}
    moved = {arm: {"greedy": cosines, "sampled": cosines} for arm in ("sft", "self_data_ft")}
    params = {"block_size": 2, "data_set": "d", "seed": 0}
    metrics = {"arms": moved, "original_sampled": cosines}
    table = embedding_table([{"step": "embedding_similarity", "params": params, "metrics": metrics}])
    assert table["model"][0] == "Favours"
    assert table.iloc[0][["mean cosine, greedy", "mean cosine, sampled"]].tolist() == ["Self-Data FT"] * 2
    assert table["mean cosine, greedy"][1:].str.startswith("0.500 [").any()


def answer(key, **more):
    """A claim's answer as `verdicts.judge_claims` gives it."""
    numbers = {"estimate": 0.25, "interval": [0.125, 0.375], "p_holm": 0.5, "n": {"seeds": 3, "documents": 40}}
    base = {"key": key, "claim": key, "verdict": "inconclusive", "unit": "points", "primary": False, "favours": ""}
    return base | numbers | more


def test_claims_say_whom_their_measure_favours():
    table = claims_table([answer("a"), answer("b", favours="SFT"), answer("c", estimate=None, interval=None)])
    assert table["favours"].tolist() == ["-", "SFT", "-"]
    assert table["ours"].tolist() == ["+25.0 points [+12.5, +37.5]"] * 2 + ["-"]
    assert table["seeds"].tolist() == ["3", "3", "-"]


def test_the_headline_begins_with_the_primary_claims_in_their_order():
    missing = {"estimate": None, "interval": None, "p_holm": None, "n": None}
    answers = [
        answer("vague", p_holm=0.9), answer("clear", p_holm=0.1), answer("decided", verdict="holds", p_holm=0.04),
        answer("lacking", **missing), answer("first", primary=True, p_holm=0.8),
        answer("second", primary=True, **missing), answer("vaguest", p_holm=1.0),
    ]  # fmt: skip
    assert headline_claims_table(answers)["claim"].tolist() == ["first", "second", "decided", "clear", "vague"]


def test_a_line_per_model_says_what_was_lost_and_healed():
    """The values of every document are made up so that SFT heals a fifth and Self-Data FT a half of the loss."""
    lost = {"original": 1.0, "no_ft": 2.0, "sft": 1.8, "self_data_ft": 1.5}
    spread = np.linspace(-0.1, 0.1, 20)
    bits = {arm: {"other": bits_of(level + spread), "own": bits_of(9 + spread)} for arm, level in lost.items()}
    records = study_records()
    for record, arm in zip(records[:2], ("original", "no_ft"), strict=True):
        record["metrics"]["scores"] = bits[arm]
        record["params"]["model"] = "org/Name-1B@main:name.gguf"
    for arm, model in records[2]["metrics"]["arms"].items():
        model["scores"] = bits[arm]
    made = {"sets": {"distilled": {"rows": 8, "attempts": [{"kept": 4}, {"kept": 2}]}}}
    records.append({"step": "distillation", "params": {"data_set": "d"}, "metrics": made})
    for record in records:
        record["provenance"] = {"wall_s": 60.0}
    (line,) = across_studies.study_lines(records, {"d": ["own"]})
    assert line["model"] == "Name-1B"
    assert (line["layers cut"], line["parameters cut"]) == ("2 of 5", "20.0 %")
    assert line["bits per byte: original, No FT"] == "1.000, 2.000"
    assert line["healed by SFT"].startswith("20.0 % [")
    assert line["healed by Self-Data FT"].startswith("50.0 % [")
    assert line["rewrites kept after each attempt"] == "50.0 %, 75.0 %"
    assert line["minutes of all jobs"] == "4"


def bits_of(values):
    return score([1.0] * len(values), gold_bits_per_byte=measured(values))


def test_the_committed_table_is_what_the_committed_records_give():
    table = across_studies.models_table()
    assert set(table["model"]) >= {"smollm2-135m-instruct"}
    assert (ROOT / "results" / "models.csv").read_text() == table.to_csv(index=False), "run 'make readme'"
