"""What a study can see: the smallest difference that it detects, and the seeds and documents that halve it.

The variance of a measured comparison (`statistics.estimate`) has three parts, which fall with the size of a study:

    seeds        by 1 / (cells x seeds)                 each training is a draw of its own
    interaction  by 1 / (cells x seeds x documents)     of seeds and documents
    documents    by 1 / documents                       cells share their documents, so their number changes nothing

Degrees of freedom grow with the draws they count, and every task's documents in the same proportion. Detectable means
80 % power in a two-sided test at 5 %, before any correction for several comparisons.
"""

from bisect import bisect_left
from collections.abc import Callable
from math import ceil

from sdd_utils.analysis.statistics import detectable_difference

FEWEST_SEEDS = 2  # from which a study knows of seeds at all
_MOST = 1000  # times the seeds or documents: what takes more is out of reach
_KEPT = ("where", "estimate", "seed_se", "document_se", "interaction_se", "level", "df", "cells", "seeds", "documents")


def power_entries(answers: list[dict]) -> list[dict]:
    """What every measured comparison can see, for the record of 09.

    Args:
        answers: of `verdicts.judge_claims`. Parts that were counted, or of which no value differs, are left out.

    Returns:
        per part of a claim `base.records.Power`.
    """
    return [
        {"key": answer["key"], "what": part["what"], "unit": answer["unit"], "primary": answer["primary"]}
        | {name: part[name] for name in _KEPT}
        | {"detectable": part["detectable"], "half": sizes_for(part, part["detectable"] / 2)}
        for answer in answers
        for part in answer["parts"]
        if part["p"] is not None and part["se"] > 0
    ]


def detectable(measured: dict, *, seeds: int, documents: float, cells: int | None = None) -> float:
    """The smallest difference that a study of another size detects, in the unit of `measured`.

    Args:
        measured: of `statistics.estimate` or `estimate_ratio`, or an entry of `power_entries`.
        seeds: at least `FEWEST_SEEDS` where several were measured. One measured seed says nothing of seeds: then their
            number changes nothing, and what is detected is a difference on these trainings alone.
        cells: as many as were measured where it is left out.
    """
    cells = cells or measured["cells"]
    more_trainings = seeds * cells / (measured["seeds"] * measured["cells"])
    more_documents = documents / measured["documents"]
    interaction = measured["interaction_se"] ** 2
    by_seed = (measured["seed_se"] ** 2 - interaction + interaction / more_documents) / more_trainings
    more_df = (seeds - 1) * cells / (max(measured["seeds"] - 1, 1) * measured["cells"])
    return detectable_difference(
        by_seed,
        measured["document_se"] ** 2 / more_documents,
        seed_df=measured["df"]["seeds"] * more_df,
        document_df=max(measured["df"]["documents"] * more_documents, 1),
        level=measured["level"],
    )


def sizes_for(measured: dict, difference: float) -> dict:
    """The least sizes of a study that detects `difference`, more of one thing at a time and of both.

    Returns:
        {documents, seeds, both}: documents at the measured seeds, seeds at the measured documents, and [seeds,
        documents] in the measured proportion. None where that cannot be had so, and of seeds where one was measured.
    """
    seeds, documents = measured["seeds"], measured["documents"]

    def found(seeds: int, documents: int) -> bool:
        return detectable(measured, seeds=seeds, documents=documents) <= difference

    def together(documents_then: int) -> int:
        return ceil(seeds * documents_then / documents)

    alone = _least(lambda n: found(seeds, n), documents)
    if seeds < FEWEST_SEEDS:
        return {"documents": alone, "seeds": None, "both": None}
    both = _least(lambda n: found(together(n), n), documents)
    return {
        "documents": alone,
        "seeds": _least(lambda more: found(more, documents), seeds),
        "both": both and [together(both), both],
    }


def _least(enough: Callable[[int], bool], start: int) -> int | None:
    """The least number from `start` to `_MOST` times as much that is enough; None where that is not."""
    numbers = range(start, _MOST * start + 1)
    place = bisect_left(numbers, True, key=enough)
    return numbers[place] if place < len(numbers) else None
