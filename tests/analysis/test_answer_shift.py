"""How far answers moved: the tables of embedding similarity, and its correlation with the accuracy lost."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from study_records import score

from sdd_utils.analysis import answer_shift
from sdd_utils.report.job_tables import answers_table, embedding_table
from sdd_utils.steps import answer_similarity

ARMS = ("sft", "self_data_ft")


def scored(share):
    return {"facts": score([1.0] * round(100 * share) + [0.0] * (100 - round(100 * share)))}


def own(mean):
    return {"mean": mean, "interval": [mean - 0.1, mean + 0.1], "n": 2, "similarities": [mean, mean]}


def study(losses, cosines, *, sampled=0.7):
    """Records of an original at 0.9 and, per seed, of the two arms with these losses and cosines."""
    params = {"block_size": 4, "data_set": "alpaca", "capacity": ""}
    original = {"step": "pruning", "params": {"block_size": 0}, "metrics": {"scores": scored(0.9)}}
    pruned = {"step": "pruning", "params": {"block_size": 4}, "metrics": {"scores": scored(0.2)}}
    records = [original, pruned]
    for seed, (lost, moved) in enumerate(zip(losses, cosines, strict=True)):
        arms = {
            arm: {"scores": scored(0.9 - part), "training": {"rows": 8}} for arm, part in zip(ARMS, lost, strict=True)
        }
        records.append({"step": "finetuning", "params": params | {"seed": seed}, "metrics": {"arms": arms}})
        arms = {arm: {"greedy": own(c), "sampled": own(c / 2)} for arm, c in zip(ARMS, moved, strict=True)}
        metrics = {"arms": arms, "original_sampled": own(sampled)}
        records.append({"step": "embedding_similarity", "params": params | {"seed": seed}, "metrics": metrics})
    return records


def test_correlation_is_spearmans_over_the_fine_tuned_models():
    random = np.random.default_rng(0)
    losses, cosines = random.integers(1, 80, (5, 2)) / 100, random.random((5, 2)).round(3)
    points = answer_shift.shift_points(study(losses, cosines))
    assert [(p["arm"], p["seed"]) for p in points] == [(arm, seed) for seed in range(5) for arm in ARMS]
    assert [p["lost"] for p in points] == pytest.approx(losses.ravel())
    found = answer_shift.shift_correlation(points)
    assert found["rho"] == pytest.approx(spearmanr(cosines.ravel(), losses.ravel()).statistic)
    assert (found["models"], found["trainings"]) == (10, 5)
    assert found["interval"][0] < found["rho"] < found["interval"][1]


def test_a_clear_correlation_is_told_with_its_direction():
    cosines = np.arange(12).reshape(6, 2) / 20 + 0.3
    found = answer_shift.shift_correlation(answer_shift.shift_points(study(0.8 - cosines, cosines)))
    assert (found["rho"], found["interval"]) == (pytest.approx(-1), pytest.approx([-1, -1]))
    assert answer_shift.shift_sentence(found).endswith("Models that moved further lost more.")


@pytest.mark.parametrize(
    ("losses", "cosines"),
    [
        ([[0.2, 0.2]] * 4, [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8]]),  # no model lost more than another
        ([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], [[0.5, 0.5]] * 3),  # no model moved further than another
        ([[0.1, 0.2], [0.3, 0.4]], [[0.1, 0.2], [0.3, 0.4]]),  # two trainings
    ],
)
def test_nothing_is_told_where_nothing_can_be(losses, cosines):
    found = answer_shift.shift_correlation(answer_shift.shift_points(study(losses, cosines)))
    assert (found["rho"], found["interval"]) == (None, None)
    assert "the correlation is inconclusive" in answer_shift.shift_sentence(found)


def test_draws_without_variation_are_left_out():
    losses, cosines = [[0.1, 0.1], [0.1, 0.1], [0.3, 0.4]], [[0.9, 0.9], [0.9, 0.9], [0.2, 0.3]]
    found = answer_shift.shift_correlation(answer_shift.shift_points(study(losses, cosines)))
    assert np.isfinite([found["rho"], *found["interval"]]).all()


def test_sampled_answers_stand_beside_greedy_ones_with_the_originals_as_ceiling():
    table = embedding_table(study([[0.1, 0.2]], [[0.6, 0.8]], sampled=0.7))
    cells = {line["model"]: line for _, line in table[table["seed"] == 0].iterrows()}
    assert list(cells) == ["Original", "SFT", "Self-Data FT"]
    assert cells["Original"]["mean cosine, greedy"] == "-"  # its own greedy answers are what all are compared with
    assert cells["Original"]["mean cosine, sampled"].startswith("0.700 [")
    assert cells["SFT"]["mean cosine, greedy"].startswith("0.600 [")
    assert cells["Self-Data FT"]["mean cosine, sampled"].startswith("0.400 [")


def test_answers_longer_than_the_encoder_reads_are_counted():
    assert answer_similarity.cut_share(["short", "word " * 600, "also short", ""], encoder="all-MiniLM-L6-v2") == 0.25


def test_foreign_text_stands_beside_how_far_it_moved_a_model():
    records = study([[0.1, 0.2], [0.1, 0.2]], [[0.5, 0.6], [0.5, 0.6]])
    tuned = [record for record in records if record["step"] == "finetuning"]
    for kl, record in zip((1.0, 3.0), tuned, strict=True):
        for arm, more in (("sft", 0.0), ("self_data_ft", 0.5)):
            record["metrics"]["arms"][arm]["fidelity"] = {
                name: {"kl": kl + more + far} for name, far in (("a", 0), ("b", 2))
            }
    nll = {"original": [1.0, 3.0], "distilled": [0.5, 0.7]}
    records.append({"step": "distillation", "params": {"data_set": "alpaca"}, "metrics": {"nll": nll}})
    where = {"block_size": 4, "data_set": "alpaca"}
    points = answer_shift.foreignness_points(records)
    assert sorted(points, key=lambda point: point["kl"]) == [
        {"arm": "sft", **where, "nll": 2.0, "kl": pytest.approx(3.0)},  # over two seeds and two sets of answers
        {"arm": "self_data_ft", **where, "nll": pytest.approx(0.6), "kl": pytest.approx(3.5)},
    ]
    for model in tuned[0]["metrics"]["arms"].values():
        model["fidelity"] = {}
    assert answer_shift.foreignness_points(records) == []


def test_answers_stand_beside_each_other_unselected():
    records = study([[0.1, 0.2], [0.1, 0.2]], [[0.5, 0.6], [0.5, 0.6]])
    for record in records[:2]:
        record["metrics"]["accounting"] = {"cut_parameters": 0.1}
    assert answers_table(records).empty
    moved = [record for record in records if record["step"] == "embedding_similarity"]
    for record in moved:
        texts = {"original": "a\nb", "no_ft": f"seed {record['params']['seed']}", "sft": "", "self_data_ft": "d"}
        record["metrics"]["answers"] = [{"question": f"q{i}", **texts} for i in range(3)]
    table = answers_table(records)
    assert [*table.columns] == ["fine-tuned on", "n", "question", "Original", "No FT", "SFT", "Self-Data FT"]
    assert table["question"].tolist() == ["q0", "q1", "q2"]  # of one seed
    assert {*table["No FT"]} == {"seed 0"}
    assert {*table["Original"]} == {"a b"}
