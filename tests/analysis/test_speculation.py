"""The forecast of speculative decoding against simulated decoding, and acceptance against a plain ratio of sums."""

import numpy as np
import pytest

from sdd_utils.analysis import speculation

ANSWERS = {"a": [[3, 2.5, 4], [6, 5.0, 6]], "b": [[0, 1.0, 2], [4, 3.5, 8], [5, 5.0, 5]]}


def draft(arm, n, data_set, seed, *, more=0.0):
    acceptance = {
        name: {"documents": [[greedy, sampling + more, tokens] for greedy, sampling, tokens in documents]}
        for name, documents in ANSWERS.items()
    }
    return {"arm": arm, "block_size": n, "data_set": data_set, "seed": seed, "acceptance": acceptance}


def simulated(acceptance, *, draft_tokens, cost_ratio, passes=40_000):
    """Tokens per unit of time of decoding with a coin for each drafted token, over the 1 of plain decoding."""
    coins = np.random.default_rng(0).random((passes, draft_tokens)) < acceptance
    tokens = np.cumprod(coins, axis=1).sum() + passes
    return tokens / (passes * (draft_tokens * cost_ratio + 1))


@pytest.mark.parametrize(("acceptance", "draft_tokens"), [(0.3, 1), (0.8, 4), (0.95, 9)])
def test_speed_up_is_that_of_simulated_decoding(acceptance, draft_tokens):
    found = speculation.speed_up(acceptance, draft_tokens=draft_tokens, cost_ratio=0.3)
    closed = (1 - acceptance ** (draft_tokens + 1)) / ((1 - acceptance) * (draft_tokens * 0.3 + 1))
    assert found == pytest.approx(closed)
    assert found == pytest.approx(simulated(acceptance, draft_tokens=draft_tokens, cost_ratio=0.3), rel=0.02)


def test_a_draft_that_is_never_wrong_gains_up_to_the_inverse_of_its_cost():
    gains = [speculation.speed_up(1.0, draft_tokens=g, cost_ratio=0.84) for g in (0, 1, 1000)]
    assert gains == [1.0, pytest.approx(2 / 1.84), pytest.approx(1 / 0.84, rel=1e-3)]


def test_verification_that_takes_longer_lowers_the_gain():
    plain, timed = (speculation.speed_up(0.8, draft_tokens=4, cost_ratio=0.3, verification=v) for v in (1.0, 1.5))
    assert timed == pytest.approx(plain * (4 * 0.3 + 1) / (4 * 0.3 + 1.5))


@pytest.mark.parametrize("cost_ratio", [0.05, 0.4, 0.84])
def test_a_draft_pays_exactly_where_its_acceptance_is_above_its_cost_ratio(cost_ratio):
    for acceptance in np.linspace(0.01, 0.99, 50):
        drafted, gain = speculation.best_draft(acceptance, cost_ratio=cost_ratio)
        assert (drafted > 0, gain > 1) == (acceptance > cost_ratio,) * 2


def test_the_best_length_is_the_best_of_all_that_are_simulated():
    gains = [simulated(0.8, draft_tokens=g, cost_ratio=0.1) for g in range(17)]
    drafted, gain = speculation.best_draft(0.8, cost_ratio=0.1)
    assert gain == pytest.approx(max(gains), rel=0.02)
    assert gains[drafted] == pytest.approx(max(gains), rel=0.02)


def test_words_say_whether_it_pays():
    assert "2 drafted tokens" in speculation.gain_in_words(0.8, cost_ratio=0.4)
    said = speculation.gain_in_words(0.6, cost_ratio=0.8)
    assert "60.0 % of the tokens are accepted, and a pass costs 80.0 %" in said
    assert "it does not pay" in said
    assert "1.25 times as fast at most" in said


def test_acceptance_is_pooled_over_data_sets_seeds_and_answers():
    drafts = [draft("no_ft", 2, "", None), draft("no_ft", 4, "", None, more=-0.5)]
    drafts += [draft("sft", 4, name, seed, more=seed / 10) for name in ("a", "b") for seed in (0, 1, 2)]
    metrics = {"drafts": dict(enumerate(drafts))}
    greedy = speculation.pooled_acceptance(metrics, measure="greedy_acceptance")
    assert [(row["arm"], row["block_size"], row["seeds"]) for row in greedy] == [
        ("no_ft", 2, 1), ("no_ft", 4, 1), ("sft", 4, 3)
    ]  # fmt: skip
    assert greedy[0]["by_answers"] == {"a": pytest.approx(9 / 10), "b": pytest.approx(9 / 15)}
    assert greedy[0]["acceptance"] == pytest.approx((9 / 10 + 9 / 15) / 2)
    sampling = speculation.pooled_acceptance(metrics, measure="sampling_acceptance")
    expected = [(7.5 + 2 * 0.1) / 10, (9.5 + 3 * 0.1) / 15]  # of the middle seed, so of the mean
    assert [*sampling[2]["by_answers"].values()] == pytest.approx(expected)
    low, high = sampling[2]["interval"]
    assert low < sampling[2]["acceptance"] < high


def test_cost_ratios_are_of_time_and_of_weights():
    seconds = {"original": 0.02, "draft": 0.015, "verification": 0.03}
    metrics = {"costs": [{"block_size": 3, "matmul_share": 0.9, "seconds": seconds}]}
    assert speculation.cost_ratios(metrics) == {3: {"measured": pytest.approx(0.75), "parameters": 0.9}}
