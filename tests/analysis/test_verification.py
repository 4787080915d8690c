"""Whether two runs agree: to the last bit on one machine, within what the records allow on two."""

import copy
import json

import numpy as np
import pytest

from sdd_utils import ROOT
from sdd_utils.analysis import verification
from sdd_utils.analysis.record_numbers import EXACT, FOLLOWING, PAIRED, ROUNDED, SAMPLED, numbers_of
from sdd_utils.base.records import SCHEMA

COMMITTED = {
    path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "results/embedded/records").glob("*.json"))
}
MADE = {"device": "a", "dtype": "bfloat16", "threads": 1, "versions": {"torch": "2"}, "commit": "0" * 40}


def record(step="pruning", *, made=None, params=None, **metrics):
    own = {"study": "s", "run": "work/s"} | (params or {})
    return {"step": step, "params": own, "metrics": metrics, "provenance": MADE | (made or {})}


def measure(documents, **changes):
    """A task's score as a measure; `documents` are its values."""
    stderr = float(np.std(documents, ddof=1) / len(documents) ** 0.5)
    return {"value": float(np.mean(documents)), "stderr": stderr, "documents": [*map(float, documents)]} | changes


def compared(ours, committed, *, made=None, **about):
    """The comparison of one job's two records."""
    pair = [record(made=own, **about, **metrics) for own, metrics in ((made, ours), ({}, committed))]
    return verification.compare({"job": pair[0]}, {"job": pair[1]})


def agree(ours, committed, *, step="finetuning", **about):
    """Whether two records of different precisions agree."""
    return compared(ours, committed, made={"dtype": "float32"}, step=step, **about).agrees


@pytest.fixture
def copies():
    """The committed records, and a copy to change which says that another machine made it."""
    ours = copy.deepcopy(COMMITTED)
    for own in ours.values():
        own["provenance"]["device"] = "another"
    return ours, COMMITTED


def test_a_run_agrees_with_itself_to_the_last_bit_and_on_another_machine(copies):
    same, other = verification.compare(COMMITTED, COMMITTED), verification.compare(*copies)
    assert (same.agrees, same.same, other.agrees, other.same) == (True, True, True, False)
    assert len(same.numbers) > len(other.numbers) > 300
    first = f"compared with the committed results: {len(same.numbers)} of {len(same.numbers)} numbers agree to the last"
    assert same.text().startswith(first)
    assert other.text().endswith("numbers agree within tolerance")
    assert other.text().count("\n") == 0


@pytest.mark.parametrize("key", ["device", "dtype", "threads", "versions"])
def test_the_last_bit_counts_where_the_records_were_made_alike_and_only_there(key):
    documents = np.random.default_rng(0).normal(2, 0.5, 50)
    ours, committed = {"scores": {"t": measure(documents + 1e-12)}}, {"scores": {"t": measure(documents)}}
    alike = compared(ours, committed)
    assert (alike.agrees, alike.same) == (False, True)
    assert "to the last bit (same machine, versions and precision)" in alike.text()
    assert "1 of these agree within the tolerance of other machines" in alike.text()
    other = {"device": "b", "dtype": "float32", "threads": 2, "versions": {"torch": "3"}}[key]
    assert compared(ours, committed, made={key: other}).agrees


def test_another_engine_is_another_machine():
    ours, committed = ({"scores": {"t": measure([1, 2, value])}, "engine": engine} for value, engine in
                       ((3.0, "vllm 1"), (3.0001, "transformers 5")))  # fmt: skip
    assert compared(ours, committed).agrees
    assert not compared(ours, committed | {"engine": "vllm 1"}).agrees


def test_a_wrong_value_is_found_and_named_with_its_tolerance(copies):
    ours, committed = copies
    node = ours["pruning-n6"]["metrics"]["scores"]["facts"]["accuracy"]
    node["value"] += 0.2
    node["documents"] = [1.0] * 80 + node["documents"][80:]
    found = verification.compare(ours, committed)
    (wrong,) = [number for number in found.numbers if not number.agrees]
    assert wrong.name == "pruning-n6 scores.facts.accuracy"
    assert wrong.ours - wrong.committed == pytest.approx(0.2)
    lines = found.text().splitlines()
    assert lines[0].endswith(f"{len(found.numbers) - 1} of {len(found.numbers)} numbers agree within tolerance")
    assert (
        lines[1]
        == f"  {wrong.name}: {wrong.ours:.6g}, committed {wrong.committed:.6g}, tolerance {wrong.tolerance:.2g}"
    )
    assert not found.agrees


def test_no_more_than_ten_numbers_are_named():
    ours, committed = ({f"n{i}": {"rows": i + more} for i in range(14)} for more in (1, 0))
    lines = compared(ours, committed).text().splitlines()
    assert len([line for line in lines if "committed" in line and "tolerance 0" in line]) == 10
    assert "  and 4 more" in lines


def test_missing_and_further_jobs_are_named(copies):
    ours, committed = copies
    ours["pruning-n8"] = ours.pop("pruning-n6")
    found = verification.compare(ours, committed)
    assert found.left == {"pruning-n6": "only committed", "pruning-n8": "only here"}
    assert not found.agrees
    assert "  pruning-n6: only committed" in found.text()


def test_a_number_that_one_run_lacks_is_named():
    found = compared({"dropped": {"empty": 0}}, {"dropped": {"empty": 0, "too long": 0}})
    assert not found.agrees
    assert "job dropped.too long: only committed" in found.text()


def test_jobs_of_other_parameters_are_not_compared():
    ours, committed = (record(params={"epochs": n, "run": str(n)}, rows=n) for n in (1, 2))
    found = verification.compare({"job": ours}, {"job": committed})
    assert (found.left, found.numbers) == ({"job": "made with other parameters, epochs"}, [])
    assert not found.agrees


def test_nan_agrees_with_nothing():
    documents = [1.0, 2.0, 3.0]
    for made in ({}, {"dtype": "float32"}):
        wrong = {"scores": {"t": measure(documents, value=float("nan"))}}
        assert not compared(wrong, {"scores": {"t": measure(documents)}}, made=made).agrees


def test_counts_and_choices_are_exact():
    for metrics, other in (
        ({"accounting": {"parameters": 10}}, {"accounting": {"parameters": 11}}),
        ({"arms": {"sft": {"training": {"rows": 4, "trained_tokens": 9}}}},) * 2,
        ({"arms": {"sft": {"training": {"rows": 4}}}}, {"arms": {"sft": {"training": {"rows": 5}}}}),
        ({"kept_layers": [0, 1, 4]}, {"kept_layers": [0, 1, 3]}),
        ({"kept_layers": [0, 1, 4]}, {"kept_layers": [0, 1]}),
    ):
        assert agree(metrics, other) == (metrics == other)


def test_tokens_of_sampled_texts_follow_from_them():
    def tokens(arm, count):
        return {"arms": {arm: {"training": {"trained_tokens": count}}}}

    assert not agree(tokens("sft", 9), tokens("sft", 10))
    assert agree(tokens("self_data_ft", 9), tokens("self_data_ft", 10))
    assert agree(tokens("sft", 9), tokens("sft", 10), params={"equal_tokens": True})
    assert not compared(tokens("self_data_ft", 9), tokens("self_data_ft", 10)).agrees


def test_a_reason_that_only_one_run_met_is_a_share_of_none():
    def judged(reasons):
        rates = {"fallback_rate": 0.5, "copy_rate": 0.0, "truncation_rate": 0.0, "overlap_8gram": 0.1}
        return {"sets": {"distilled": {"rows": 48, "reasons": reasons} | rates}}

    few, many = judged({"kept": 24, "truncated": 24}), judged({"kept": 24, "truncated": 22, "banned phrase": 2})
    assert agree(few, many, step="distillation")
    assert agree(many, few, step="distillation")
    assert not agree(few, judged({"kept": 24, "banned phrase": 24}), step="distillation")
    assert not compared(few, many, step="distillation").agrees


def test_scores_of_untrained_models_are_compared_by_pairs_and_those_of_trained_ones_are_not():
    rng = np.random.default_rng(1)
    committed = rng.normal(5, 2, 200)
    for shift, step, right in (
        (0.0, "pruning", True), (0.2, "pruning", False), (0.2, "finetuning", True), (3.0, "finetuning", False)
    ):  # fmt: skip
        ours = committed + rng.normal(shift, 0.02, 200)
        found = agree(
            {"scores": {"t": {"margin": measure(ours)}}}, {"scores": {"t": {"margin": measure(committed)}}}, step=step
        )
        assert found == right, (shift, step)


def test_rounding_may_move_all_documents_together_by_an_epsilon():
    committed = np.random.default_rng(2).normal(5, 2, 400)
    for factor, right in ((1 + 2.0**-8, True), (1 + 2.0**-5, False)):
        pair = [{"scores": {"t": measure(values)}} for values in (committed * factor, committed)]
        assert agree(*pair, step="pruning") == right


def test_newcombe_is_the_reference_for_shares():
    """Example (a) of Newcombe (1998), method 10: 56/70 and 48/80 differ by 0.2, from 0.0524 to 0.3339."""
    shares = [
        numbers_of(record(step="finetuning", t=measure([1] * k + [0] * (n - k))))["t"] for k, n in ((56, 70), (48, 80))
    ]
    tolerance = verification._tolerance("t", *shares, epsilons=[0, 0], level=0.05)
    assert 0.2 - tolerance == pytest.approx(0.0524, abs=1e-4)
    shares.reverse()
    assert verification._tolerance("t", *shares, epsilons=[0, 0], level=0.05) == pytest.approx(tolerance)


def test_none_of_twelve_right_may_be_one_of_twelve_elsewhere():
    none, one, most = ({"t": measure([1] * k + [0] * (12 - k))} for k in (0, 1, 11))
    assert agree(none, one)
    assert not agree(none, most)


def test_honest_reruns_name_nothing_in_nineteen_of_twenty():
    """Sampled numbers that are drawn anew: shares and means of 48 rows, forty of them in a comparison."""
    rng, named = np.random.default_rng(3), 0
    for _ in range(200):
        runs = [
            {f"s{i}": measure(rng.random(48) < 0.3) for i in range(20)}
            | {f"m{i}": measure(rng.normal(2, 1, 48)) for i in range(20)}
            for _ in range(2)
        ]
        named += not agree(*runs)
    assert named <= 200 * 0.05 + 3 * (200 * 0.05 * 0.95) ** 0.5


def blocks(map_, *starts):
    chosen = [{"block_size": n, "start": at, "distance": map_[at][at + n], "stability": 1.0} for n, at in starts]
    return record("similarity", blocks=chosen, map=map_, block_influence=[0.1] * (len(map_) - 1), layers=len(map_) - 1)


def angular_map(**changes):
    map_ = [[0.1 * abs(i - j) for j in range(6)] for i in range(6)]
    for place, value in changes.items():
        i, j = map(int, place[1:])
        map_[i][j] = map_[j][i] = value
    return map_


def test_a_choice_between_blocks_that_tie_is_right_and_what_follows_is_not_compared():
    close, other = {"_13": 0.15, "_24": 0.1501}, {"dtype": "float32"}
    committed = {"similarity": blocks(angular_map(**close), (2, 1), (4, 0)), "results": record("results")}
    committed |= {f"pruning-n{n}": record(params={"block_size": n}, start=n) for n in (2, 4)}
    ours = copy.deepcopy(committed) | {"similarity": blocks(angular_map(_13=0.1501, _24=0.15), (2, 2), (4, 0))}
    ours["pruning-n2"]["metrics"]["start"] = 3
    for own in ours.values():
        own["provenance"] = own["provenance"] | other
    found = verification.compare(ours, committed)
    assert found.agrees
    assert found.apart == ["results", "pruning-n2"]
    assert "not compared, as other layers are removed: results, pruning-n2" in found.text()
    ours["similarity"]["metrics"] = blocks(angular_map(**close), (2, 3), (4, 0))["metrics"]  # no tie: 0.2
    wrong = [number.name for number in verification.compare(ours, committed).numbers if not number.agrees]
    assert wrong == ["similarity blocks.2.start", "similarity blocks.2.distance"]


def test_models_without_other_layers_are_not_compared():
    """Where Block Influences tie within rounding, two machines may choose other layers."""

    def selected(removed, documents, **about):
        cut = {"strategy": "iterative", "draw": 0, "removed": removed, "scores": {"facts": {"b": measure(documents)}}}
        return {"selection-n2": record("selection", models=[cut], **about)}

    committed, made = selected([1, 4], [1.0, 2.0, 3.0]), {"made": {"dtype": "float32"}}
    same = verification.compare(selected([1, 4], [9.0, 9.5, 9.9], **made), committed)
    assert (same.agrees, same.apart) == (False, [])
    assert [number.name for number in same.numbers] == [
        "selection-n2 models.iterative-0.removed[0]",
        "selection-n2 models.iterative-0.scores.facts.b",
    ]
    other = verification.compare(selected([1, 5], [9.0, 9.5, 9.9], **made), committed)
    assert (other.agrees, other.apart) == (True, ["selection-n2"])


@pytest.mark.parametrize(("moved", "right"), [(0.002, True), (0.01, False)])
def test_a_map_may_move_by_an_epsilon_of_its_precision(moved, right):
    pair = [blocks(angular_map(_04=0.4 + by), (2, 1)) for by in (moved, 0)]
    pair[0]["provenance"] = MADE | {"dtype": "float32"}
    found = verification.compare({"similarity": pair[0]}, {"similarity": pair[1]})
    (map_,) = [number for number in found.numbers if " map" in number.name]
    assert (map_.name, map_.agrees) == ("similarity map[0][4]", right)


def test_bfloat16_and_float32_give_maps_within_the_tolerance(model, tokenizer):
    """An independent case: a random model whose layers do much more than those of a trained one."""
    import torch

    from sdd_utils.steps.similarity import measure_similarity

    texts = [f"Sample {i}: {'word ' * (i + 3)}" for i in range(8)]
    wide = type(model)(type(model.config)(**model.config.to_dict() | {"hidden_size": 128, "head_dim": 32})).eval()
    maps = [
        measure_similarity(wide.to(dtype), tokenizer, texts, batch_size=4, max_length=64).map.tolist()
        for dtype in (torch.float32, torch.bfloat16)
    ]
    pair = [blocks(map_, (1, 0)) for map_ in maps]
    pair[0]["provenance"] = MADE | {"dtype": "float32"}
    numbers = verification.compare({"similarity": pair[0]}, {"similarity": pair[1]}).numbers
    (map_,) = [number for number in numbers if " map" in number.name]
    assert 0 < abs(map_.ours - map_.committed) <= map_.tolerance


def test_every_step_of_the_committed_records_has_numbers_of_its_kinds():
    kinds = {name: {number.kind for number in numbers_of(own).values()} for name, own in COMMITTED.items()}
    by_step = {COMMITTED[name]["step"]: found for name, found in kinds.items()}
    assert {ROUNDED, EXACT} <= by_step["similarity"]
    assert {PAIRED, SAMPLED, EXACT} <= by_step["pruning"]
    assert {ROUNDED, SAMPLED, EXACT} <= by_step["distillation"]
    assert {SAMPLED, EXACT} <= by_step["finetuning"] & by_step["merging"] & by_step["embedding_similarity"]
    assert by_step["results"] == {SAMPLED}


def test_rows_of_an_arm_that_leaves_some_out_follow_from_sampled_texts():
    arms = {arm: {"training": {"rows": 8, "steps": 4}} for arm in ("sft", "kept_rows_ft")}
    found = numbers_of({"step": "finetuning", "params": {}, "metrics": {"arms": arms}})
    kinds = {name: number.kind for name, number in found.items()}
    assert {kinds[f"arms.sft.training.{name}"] for name in ("rows", "steps")} == {EXACT}
    assert {kinds[f"arms.kept_rows_ft.training.{name}"] for name in ("rows", "steps")} == {FOLLOWING}


def test_acceptance_is_a_sample_of_answers_and_times_are_no_numbers():
    documents = [[3, 2.5, 4], [6, 5.0, 6], [0, 1.0, 2]]
    own = {"greedy_acceptance": 9 / 12, "sampling_acceptance": 8.5 / 12, "tokens": 12, "documents": documents}
    draft = {"arm": "sft", "block_size": 6, "data_set": "d", "seed": 1, "acceptance": {"d": own}}
    costs = [{"block_size": 6, "matmul_share": 0.8, "seconds": {"original": 0.1, "draft": 0.08}}]
    found = numbers_of(record(step="speculative_decoding", drafts={"n6-sft": draft}, costs=costs))
    at = "drafts.n6-sft.acceptance.d"
    assert {name: float(number.value) for name, number in found.items()} == {
        f"{at}.greedy_acceptance": pytest.approx(9 / 12), f"{at}.sampling_acceptance": pytest.approx(8.5 / 12),
        f"{at}.tokens": 12, "costs.6.matmul_share": 0.8,
    }  # fmt: skip
    assert found[f"{at}.greedy_acceptance"].kind == found[f"{at}.sampling_acceptance"].kind == SAMPLED
    slower = [costs[0] | {"seconds": {"original": 0.2, "draft": 0.1}}]
    assert compared({"costs": costs}, {"costs": slower}).agrees


def test_every_measure_of_a_score_is_a_number():
    """Whatever measures a task has, at whatever depth, and values per document as pairs (nats, words) as well."""
    deep = {
        "t": {"accuracy": measure([0, 1, 1]), "n": 3, "all": {"acc,none": 0.5}, "choices": "eJ"},
        "u": measure([1, 2, 4]),
    }
    pairs = {"value": 2.0, "stderr": 0.1, "documents": [[4.0, 2], [6.0, 3]]}
    found = numbers_of(record(step="finetuning", scores=deep | {"v": pairs}))
    assert {name: float(number.value) for name, number in found.items()} == {
        "scores.t.accuracy": pytest.approx(2 / 3), "scores.t.n": 3, "scores.u": pytest.approx(7 / 3), "scores.v": 2.0
    }  # fmt: skip


def test_records_are_read_by_name_and_of_this_schema_only(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no records"):
        verification.records_of(tmp_path)
    (tmp_path / "similarity.json").write_text(json.dumps({"schema": SCHEMA - 1}))
    with pytest.raises(ValueError, match=f"records of schema {SCHEMA - 1}, this version writes {SCHEMA}"):
        verification.records_of(tmp_path)
