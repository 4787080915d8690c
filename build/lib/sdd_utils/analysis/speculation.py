"""What a draft model gains, from how often its tokens are accepted and what a pass costs (arXiv 2211.17192, section 3).

In speculative decoding the draft proposes some tokens, one pass each. One pass of the original reads them all, accepts
the first ones, and adds a token of its own. The formulas take each token to be accepted independently.
"""

from collections.abc import Iterator

import numpy as np

from sdd_utils.analysis.statistics import estimate, stacked
from sdd_utils.base.number_format import percent
from sdd_utils.base.records import of_step

LONGEST = 16  # drafted tokens that are considered
MEASURES = ("greedy_acceptance", "sampling_acceptance")


def tokens_per_pass(acceptance: float, draft_tokens: int) -> float:
    """Expected tokens per pass of the original, its own one included: (1 - a^(g+1)) / (1 - a), equation 1."""
    return sum(acceptance**accepted for accepted in range(draft_tokens + 1))


def speed_up(acceptance: float, *, draft_tokens: int, cost_ratio: float, verification: float = 1.0) -> float:
    """Expected tokens per second over those of plain decoding: (1 - a^(g+1)) / ((1 - a)(g c + 1)), theorem 3.8.

    Args:
        acceptance: probability a that a drafted token is accepted.
        draft_tokens: g, drafted per pass of the original; 0 is plain decoding.
        cost_ratio: c, time of a draft's pass over that of the original.
        verification: time of the original's pass over all drafted tokens, over that of one token; the paper takes 1.
    """
    cost = draft_tokens * cost_ratio + (verification if draft_tokens else 1.0)
    return tokens_per_pass(acceptance, draft_tokens) / cost


def best_draft(acceptance: float, *, cost_ratio: float) -> tuple[int, float]:
    """(draft tokens, expected speed-up) of the optimum; (0, 1.0) where no draft pays, so where a is not above c."""
    gains = [speed_up(acceptance, draft_tokens=g, cost_ratio=cost_ratio) for g in range(LONGEST + 1)]
    best = int(np.argmax(gains))
    return best, gains[best]


def gain_in_words(acceptance: float, *, cost_ratio: float) -> str:
    """Whether a draft pays at its best length, and how much one of this cost could gain at all."""
    drafted, gain = best_draft(acceptance, cost_ratio=cost_ratio)
    said = (
        f"{percent(acceptance)} of the tokens are accepted, and a pass costs {percent(cost_ratio)} of the original's: "
    )
    if drafted:
        return f"{said}{drafted} drafted tokens are best, and decode {gain:.2f} times as fast."
    bound = f"were every token accepted, it would decode {1 / cost_ratio:.2f} times as fast at most"
    return f"{said}it does not pay, as the first is not above the second ({bound})."


def cost_ratios(metrics: dict) -> dict[int, dict[str, float]]:
    """By block size {measured, parameters}: a pass of the pruned model over one of the original, by time and by the
    weights that multiply a token.

    Args:
        metrics: of the record of 07.
    """
    return {
        cost["block_size"]: {
            "measured": cost["seconds"]["draft"] / cost["seconds"]["original"],
            "parameters": cost["matmul_share"],
        }
        for cost in metrics["costs"]
    }


def pooled_acceptance(metrics: dict, *, measure: str) -> list[dict]:
    """Acceptance by arm and block size, over data sets, seeds and all of the original's answers.

    Args:
        metrics: of the record of 07.
        measure: one of `MEASURES`.

    Returns:
        {arm, block_size, seeds, acceptance, interval, by_answers}, a row each, block sizes in order; `by_answers` has
        the acceptance on each data set's answers.
    """
    rows = []
    for (arm, n), drafts in _by_model(metrics).items():
        cells = stacked([acceptance_values(by_seed, measure=measure) for by_seed in drafts.values()])
        found = estimate(cells)
        row = {"arm": arm, "block_size": n, "seeds": found["seeds"], "acceptance": found["estimate"]}
        names = next(iter(metrics["drafts"].values()))["acceptance"]
        by_answers = {name: float(values.mean()) for name, values in zip(names, cells, strict=True)}
        rows.append(row | {"interval": found["interval"], "by_answers": by_answers})
    return sorted(rows, key=lambda row: row["block_size"])


def _by_model(metrics: dict) -> dict[tuple[str, int], dict[str, dict[int, dict]]]:
    """Drafts by seed, by the data set they were fine-tuned on, by (arm, block size)."""
    models: dict = {}
    for draft in metrics["drafts"].values():
        by_set = models.setdefault((draft["arm"], draft["block_size"]), {})
        by_set.setdefault(draft["data_set"], {})[draft["seed"]] = draft
    return models


def drafts_of(records: list[dict]) -> Iterator[dict]:
    """The drafts that 07 measured, if it did."""
    for record in of_step(records, "speculative_decoding"):
        yield from record["metrics"]["drafts"].values()


def acceptance_values(by_seed: dict[int, dict], *, measure: str) -> list[np.ndarray]:
    """Per data set of answers (seeds, answers) values whose mean is the acceptance per token of these drafts.

    That is a ratio of sums, over an answer's tokens and over all answers; it is linearised (delta method).
    """
    drafts, column = [by_seed[seed] for seed in sorted(by_seed)], MEASURES.index(measure)
    values = []
    for name in drafts[0]["acceptance"]:
        documents = np.array([draft["acceptance"][name]["documents"] for draft in drafts], dtype=float)
        sums, tokens = documents[..., column], documents[..., 2]
        ratio = sums.sum(axis=1, keepdims=True) / tokens.sum(axis=1, keepdims=True)
        values.append(ratio + (sums - ratio * tokens) / tokens.mean(axis=1, keepdims=True))
    return values
