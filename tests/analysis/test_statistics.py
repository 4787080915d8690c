"""Intervals cover the truth as often as they say; families of comparisons make no more false claims than allowed."""

import numpy as np
import pytest
from study_records import measured

from sdd_utils.analysis.statistics import (
    averaged_tasks,
    estimate,
    estimate_ratio,
    healed_parts,
    holm,
    left_out,
    recovery_parts,
    shows_loss,
)

SIZES = (200, 100, 60)  # documents per task
DOCUMENT, ARM_BY_DOCUMENT, SEED_BY_DOCUMENT = 1.0, 0.5, 0.5  # standard deviations, in logits
ORIGINAL, OURS, OTHER = 0.9, 0.3, 0.0  # abilities, in logits


def true_score(ability, spread):
    """P(correct) of a model over documents and seeds: the mean of a logistic of a normal variable."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    return float(weights @ (1 / (1 + np.exp(-(ability + spread * nodes)))) / weights.sum())


def draw(rng, *, arms, seeds, seed_spread):
    """Answers, right or wrong, of the original and of several arms, to documents of shared difficulty.

    Returns the original's scores and, per arm, a list of scores over seeds, in the records' layout.
    """
    abilities = np.array(arms)[:, None] + rng.normal(0, seed_spread, (len(arms), seeds))
    original, per_arm = {}, [[{} for _ in range(seeds)] for _ in arms]
    for task, n in enumerate(SIZES):
        difficulty = rng.normal(0, DOCUMENT, n)
        logits = abilities[..., None] - difficulty + rng.normal(0, ARM_BY_DOCUMENT, (len(arms), 1, n))
        logits = logits + rng.normal(0, SEED_BY_DOCUMENT, logits.shape)
        original[f"task {task}"] = score(rng.random(n) < 1 / (1 + np.exp(difficulty - ORIGINAL)))
        right = rng.random(logits.shape) < 1 / (1 + np.exp(-logits))
        for arm, seed in np.ndindex(len(arms), seeds):
            per_arm[arm][seed][f"task {task}"] = score(right[arm, seed])
    return original, per_arm


def score(documents):
    return {"chance": 0.0, "accuracy": measured(documents)}


def truths(seed_spread):
    spread = np.sqrt(DOCUMENT**2 + ARM_BY_DOCUMENT**2 + SEED_BY_DOCUMENT**2 + seed_spread**2)
    base = true_score(ORIGINAL, DOCUMENT)
    ours, other = (true_score(ability, spread) / base for ability in (OURS, OTHER))
    return ours, ours - other


@pytest.mark.parametrize(("seeds", "seed_spread"), [(3, 0.1), (3, 0.4), (1, 0.0)])
def test_intervals_of_recovery_and_of_the_difference_cover_the_truth(seeds, seed_spread):
    rng, wanted, covered = np.random.default_rng(seeds), np.array(truths(seed_spread)), []
    for _ in range(1500):  # the share covered has a standard error of 0.6 %
        original, (ours, other) = draw(rng, arms=(OURS, OTHER), seeds=seeds, seed_spread=seed_spread)
        found = [recovery_parts(ours, original, minus=minus) for minus in (None, other)]
        low, high = np.array([estimate_ratio(*parts)["interval"] for parts in found]).T
        covered.append((low <= wanted) & (wanted <= high))
    assert np.all(np.abs(np.mean(covered, axis=0) - 0.95) < 0.02), np.mean(covered, axis=0)


@pytest.mark.parametrize("seed_spread", [0.05, 0.6])
def test_a_family_without_a_difference_makes_a_false_claim_once_in_twenty_at_most(seed_spread):
    rng, claims, families = np.random.default_rng(0), 0, 800
    for _ in range(families):  # four comparisons on the same documents, as a grid has
        original, arms = draw(rng, arms=[OTHER] * 8, seeds=3, seed_spread=seed_spread)
        pairs = zip(arms[::2], arms[1::2], strict=True)
        found = [estimate(recovery_parts(a, original, minus=b)[0])["p"] for a, b in pairs]
        claims += min(holm(found)) < 0.05
    assert 0.005 < claims / families < 0.05 + 2 * np.sqrt(0.05 * 0.95 / families)


def test_the_mean_over_cells_covers_at_least_as_often():
    """Four cells, seeds of their own, the same documents; one cell varies more with the seed than the others."""
    rng, covered = np.random.default_rng(6), []
    for _ in range(1500):
        values = rng.normal(0, [[[0.1]], [[0.02]], [[0.02]], [[0.05]]], (4, 3, 1))
        values = values + rng.normal(0, 0.5, 200) + rng.normal(0, 0.5, (4, 1, 200)) + rng.normal(0, 1, (4, 3, 200))
        low, high = estimate([values])["interval"]
        covered.append(low <= 0 <= high)
    assert 0.94 < np.mean(covered) < 0.98, np.mean(covered)


def test_power_is_what_it_says():
    """Differences as large as `detectable` are found in four simulations of five."""
    rng, found, smallest = np.random.default_rng(2), 0, []
    for repetition in range(800):
        noise = rng.normal(0, 0.02, (6, 1)) + rng.normal(0, 1, 400) + rng.normal(0, 1, (6, 400))
        if repetition < 50:
            smallest.append(estimate([noise])["detectable"])
        else:
            found += estimate([noise + np.mean(smallest)])["p"] < 0.05
    assert found / 750 == pytest.approx(0.8, abs=0.045)


def bits(rng, *, lost, healed, seeds, documents=(120, 60)):
    """Bits per byte of the original, the pruned model and two arms, in the records' layout.

    Documents lose much or little (their loss is a random share of the mean), and what an arm wins back of it varies.
    """
    original, no_ft, arms = {}, {}, [[{} for _ in range(seeds)] for _ in healed]
    shifts = rng.normal(0, 0.05, (len(healed), seeds)) * (seeds > 1)  # one seed says nothing of seeds
    for task, n in enumerate(documents):
        base, loss = rng.gamma(4, 0.3, n), rng.normal(lost, 0.3, n)
        original[task], no_ft[task] = ({"gold_bits_per_byte": measured(values)} for values in (base, base + loss))
        for arm, seed in np.ndindex(len(healed), seeds):
            won = loss * (healed[arm] + rng.normal(0, 0.2, n)) + lost * shifts[arm, seed] + rng.normal(0, 0.1, n)
            arms[arm][seed][task] = {"gold_bits_per_byte": measured(base + loss - won)}
    return original, no_ft, arms


@pytest.mark.parametrize(("seeds", "lost"), [(3, 0.3), (3, 0.1), (1, 0.1)])
def test_intervals_of_the_healed_share_cover_the_truth(seeds, lost):
    """At a loss of 0.1 the denominator has z = 4 or so, where a linearised ratio begins to cover too little."""
    rng, covered, wanted = np.random.default_rng(seeds), [], np.array([0.4, 0.15])
    for _ in range(1500):
        original, no_ft, (ours, other) = bits(rng, lost=lost, healed=(0.4, 0.25), seeds=seeds)
        found = [healed_parts(ours, original, no_ft, minus=minus, tasks=[0, 1]) for minus in (None, other)]
        low, high = np.array([estimate_ratio(*parts)["interval"] for parts in found]).T
        covered.append((low <= wanted) & (wanted <= high))
    assert np.all(np.abs(np.mean(covered, axis=0) - 0.95) < 0.025), np.mean(covered, axis=0)


def test_the_ends_of_a_ratio_are_where_the_test_of_the_ratio_turns():
    """An independent reference: p of the numerator minus r times the denominator, one r after another."""
    original, no_ft, (ours, other) = bits(np.random.default_rng(7), lost=0.15, healed=(0.4, 0.25), seeds=1)
    for minus in (None, other):
        parts = healed_parts(ours, original, no_ft, minus=minus, tasks=[0, 1])
        low, high = estimate_ratio(*parts)["interval"]
        for end, inwards in ((low, 1), (high, -1)):
            step = inwards * 0.02 * (high - low)
            assert estimate_ratio(*parts, null=end + step)["p"] > 0.05 > estimate_ratio(*parts, null=end - step)["p"]


def test_where_nothing_was_lost_no_healed_share_is_ruled_out():
    original, no_ft, (ours, _) = bits(np.random.default_rng(8), lost=0.0, healed=(0.4, 0.25), seeds=3)
    parts = healed_parts(ours, original, no_ft, tasks=[0, 1])
    assert not shows_loss(parts[1])
    low, high = estimate_ratio(*parts)["interval"]
    assert low < -5 < 5 < high


def test_the_pruned_model_has_healed_nothing_and_the_original_all():
    original, no_ft, _ = bits(np.random.default_rng(9), lost=0.2, healed=(), seeds=1)
    shares = [estimate_ratio(*healed_parts([model], original, no_ft, tasks=[0, 1])) for model in (no_ft, original)]
    assert [share["estimate"] for share in shares] == pytest.approx([0, 1])
    assert shares[1]["interval"] == pytest.approx([1, 1])


def test_tasks_at_the_level_of_guessing_are_left_out_with_the_reason():
    rng = np.random.default_rng(10)
    guessed, known = (rng.random(100) < ability for ability in (0.25, 0.6))
    few = {"value": 1 / 12, "stderr": 1 / 12, "documents": [1] + [0] * 11}
    scores = {
        "guessed": {"chance": 0.25, "accuracy": task_measure(guessed)},
        "known": {"chance": 0.25, "accuracy": task_measure(known)},
        "one of twelve": {"chance": 0.0, "accuracy": few},
        "no accuracy": {"chance": 0.0, "gold_bits_per_byte": measured([1, 2])},
    }
    assert averaged_tasks(scores) == ["known"]
    assert averaged_tasks(scores, measure="gold_bits_per_byte") == ["no accuracy"]  # which has no floor
    assert set(left_out(scores)) == {"guessed", "one of twelve"}
    assert (
        left_out(scores)["one of twelve"]
        == "the original's accuracy of 0.083 [-0.100, …] is not clear of chance, 0.000"
    )
    del scores["known"]
    assert averaged_tasks(scores) == ["guessed", "one of twelve"]  # an average all the same, which says nothing
    assert all("so the average says nothing" in reason for reason in left_out(scores).values())


def test_a_task_of_a_single_document_counts_in_no_average():
    one, two = ({"chance": 0.0, "gold_bits_per_byte": measured(values)} for values in ([1], [1, 2]))
    assert averaged_tasks({"one": one, "two": two}, measure="gold_bits_per_byte") == ["two"]
    (why,) = left_out({"one": one, "two": two}, measure="gold_bits_per_byte").values()
    assert why == "it has a single document, which says nothing of others"
    assert averaged_tasks({"one": one}, measure="gold_bits_per_byte") == ["one"]
    assert "the average says nothing" in left_out({"one": one}, measure="gold_bits_per_byte")["one"]


def test_a_task_in_two_forms_counts_once():
    both = {"chance": 0.25, "accuracy": measured([1, 1]), "choice_probability": measured([0.5, 0.6])}
    scores = {"mmlu": both, "mmlu_continuation": both, "arc": both}
    assert averaged_tasks(scores) == ["mmlu", "arc"]
    assert averaged_tasks(scores, measure="choice_probability") == ["mmlu_continuation", "arc"]
    assert averaged_tasks({"mmlu_continuation": both}) == ["mmlu_continuation"]


def task_measure(right):
    return measured(right) | {"stderr": float(np.std(right, ddof=1) / np.sqrt(len(right)))}


def bootstrap_recovery(
    scores: dict[str, dict], original: dict[str, dict], *, draws: int = 2000, seed: int = 0
) -> np.ndarray:
    """(draws,) recovery over resamples of the documents, the same ones for both models: an independent reference."""
    rng = np.random.default_rng(seed)  # one seed for every call: differences between two arms are paired as well
    ours, theirs = np.zeros(draws), np.zeros(draws)
    for task in averaged_tasks(original):
        pair = np.array([model[task]["accuracy"]["documents"] for model in (scores, original)])
        n = pair.shape[1]
        counts = rng.multinomial(n, [1 / n] * n, size=draws) / n
        ours += counts @ pair[0]
        theirs += counts @ pair[1]
    return np.divide(ours, theirs, out=np.full(draws, np.nan), where=theirs > 0)


def test_one_seed_gives_the_standard_error_of_a_bootstrap_over_documents():
    original, (ours, other) = draw(np.random.default_rng(3), arms=(OURS, OTHER), seeds=1, seed_spread=0)
    drawn = [bootstrap_recovery(arm[0], original, draws=20000) for arm in (ours, other)]
    for draws, minus in ((drawn[0], None), (drawn[0] - drawn[1], other)):
        found = estimate_ratio(*recovery_parts(ours, original, minus=minus))
        assert found["se"] == pytest.approx(draws.std(), rel=0.03)
        assert found["estimate"] == pytest.approx(draws.mean(), abs=0.003)
    assert (found["seeds"], found["df"]["seeds"], found["seed_share"]) == (1, 0, 0)


def test_many_seeds_and_one_document_are_the_t_test_and_so_are_many_documents_and_one_seed():
    from scipy import stats

    sample = np.random.default_rng(4).normal(0.4, 1, 30)
    known = stats.ttest_1samp(sample, 0.1)
    for values in (sample[:, None], sample[None]):
        found = estimate([values], null=0.1)
        assert found["p"] == pytest.approx(known.pvalue)
        assert found["interval"] == pytest.approx(list(known.confidence_interval()))


def test_pairing_by_seed_removes_what_both_arms_share():
    rng = np.random.default_rng(5)
    shared, documents = rng.normal(0, 0.3, (3, 1)), rng.normal(0.5, 0.1, (2, 3, 200))
    original, pair = {"a": score(np.ones(200))}, [[{"a": score(s)} for s in arm] for arm in documents + shared]
    alone = estimate_ratio(*recovery_parts(pair[0], original))
    paired = estimate_ratio(*recovery_parts(pair[0], original, minus=pair[1]))
    assert paired["se"] < alone["se"] / 5
    assert paired["estimate"] == pytest.approx(np.mean(documents[0] - documents[1]))


def test_without_any_spread_there_is_no_test():
    found = estimate([np.full((3, 10), 0.25)])
    assert (found["estimate"], found["interval"], found["p"]) == (0.25, [0.25, 0.25], 1.0)
    with pytest.raises(ValueError, match="scores 0 on every task"):
        recovery_parts([{"a": score([1, 0])}], {"a": score([0, 0])})


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1 is 0.04, 0.06, 0.06, 0.04; never less than the one before
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1, 1]
