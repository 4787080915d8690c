"""Self-data distillation: the unpruned model rewrites every response, and a rewrite is kept only if it is right.

The banned phrases and the conditional selection follow SDFT (Yang et al. 2402.13669), the parent method that the paper
builds on (arXiv 2410.09982). The wording is ours: the parent method shows the response as a "reference answer", and
small models then write these words, which are banned. Here the response is what the model has answered before, and is
asked to answer again. Nothing is dropped: a rejected rewrite falls back to the original response, so the distilled
set has exactly the rows of the original.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from sdd_utils.base.files import digest
from sdd_utils.data.rows import question_of
from sdd_utils.engine.generation import generate_file
from sdd_utils.models import chat_format
from sdd_utils.models.store import load_tokenizer
from sdd_utils.steps import answer_check

_AGAIN = "Answer the question again in your own words."
_MATH_AGAIN = "Explain the solution again step by step in your own words. {ending}"
_MATH_ALONE = "{instruction}\n\nSolve this step by step. {ending}"


def rewrite_messages(row: dict) -> list[dict]:
    """The conversation that asks the unpruned model for its own version of a response, as if it had given it before."""
    ending = answer_check.ENDINGS.get(answer_check.check_of(row))
    return [
        {"role": "user", "content": question_of(row)},
        {"role": "assistant", "content": chat_format.without_thinking(row["response"]) or row["response"]},
        {"role": "user", "content": _MATH_AGAIN.format(ending=ending) if ending else _AGAIN},
    ]


def answer_messages(row: dict) -> list[dict]:
    """The conversation that asks the unpruned model for a response of its own, without sight of the original one.

    Mathematics is asked for the same ending as in a rewrite, so that answers can be checked as rewrites are.
    """
    question, ending = question_of(row), answer_check.ENDINGS.get(answer_check.check_of(row))
    asked = _MATH_ALONE.format(instruction=question, ending=ending) if ending else question
    return [{"role": "user", "content": asked}]


ASKED_BY = {"distilled": rewrite_messages, "self_generated": answer_messages}


def rewrite(
    model: str | Path,
    rows: list[dict],
    *,
    path: Path,
    which: str = "distilled",
    attempts: int = 1,
    seed: int = 0,
    **settings,
) -> list[dict]:
    """Have the model write every response anew, into a file that a rerun only adds to.

    A row whose text is rejected is written again with another seed, up to so many times. Each attempt is a job of its
    own, over the rows that were rejected so far; a prompt that is too long is not tried again.

    Args:
        which: "distilled", with sight of the original response, or "self_generated", without it.
        attempts: how often a row is written at most.
        path, seed, settings: see `generation.generate_file`.

    Returns:
        the raw texts {id, key, text, finish, n_tokens, end_token, seed}, attempt by attempt, each in the order of
        `rows`: a row has as many of them as it has attempts.
    """
    tokenizer = load_tokenizer(model)
    prompts = {row["id"]: chat_format.render(tokenizer, ASKED_BY[which](row)) for row in rows}
    written, rejected = [], rows
    for attempt in range(1, attempts + 1):
        asked = {row["id"]: prompts[row["id"]] for row in rejected}
        drawn = {"seed": attempt_seed(seed, attempt), **settings}
        texts = generate_file(model, asked, path=path, speculate=True, **drawn) if asked else []
        rejected = [row for row, text in zip(rejected, texts, strict=True) if _may_try_again(row, text)]
        written += texts
    return written


def attempt_seed(seed: int, attempt: int) -> int:
    """The seed of an attempt, counted from 1. The first one's is the study's, so more attempts change no text."""
    return seed if attempt == 1 else int(digest("attempt", attempt, seed), 16) % 2**32


def _may_try_again(row: dict, output: dict) -> bool:
    return _judged(row, [output])["reason"] not in ("kept", "prompt too long")


def judge(rows: list[dict], written: list[dict]) -> list[dict]:
    """The set to train on, by conditional selection: a pure function of the rows and of what `rewrite` gave.

    Returns:
        rows {id, response, source: "distilled" | "original", reason, attempt, finish, n_tokens, seed, rewrite}, in the
        order of `rows`. All but `response` is about the first attempt that was kept, or about the last one.
    """
    attempts: dict[str, list[dict]] = {}
    for output in written:
        attempts.setdefault(output["id"], []).append(output)
    _check_pairs(rows, [{"id": id_} for id_ in attempts])
    return [_judged(row, attempts[row["id"]]) for row in rows]


def _check_pairs(rows: list[dict], others: list[dict]) -> None:
    if [row["id"] for row in rows] != [other["id"] for other in others]:
        raise ValueError("the generated set does not belong to these rows: run 03 again")


def _judged(row: dict, outputs: list[dict]) -> dict:
    """The first of a row's attempts that is kept, else its last one."""
    judged = {}
    for attempt, output in enumerate(outputs, start=1):
        text, finish = _without_rambling(row, output)
        response, reason = answer_check.select(row, text=text, finish=finish)
        source = "distilled" if reason == "kept" else "original"
        judged = {"id": row["id"], "response": response, "source": source, "reason": reason, "attempt": attempt}
        judged |= {"finish": finish, "n_tokens": output["n_tokens"], "seed": output["seed"], "rewrite": text}
        if reason == "kept":
            break
    return judged


def _without_rambling(row: dict, output: dict) -> tuple[str, str]:
    """Text and finish of a response, without thinking and without what follows its answer line."""
    text, finish = answer_check.answer_of(output["text"], output["finish"])
    if answer_check.check_of(row) == "number" and (whole := answer_check.until_answer(text)):
        return whole, "stop"
    return text, finish


def ngram_overlap(text: str, reference: str, *, n: int = 8) -> float:
    """Share of a text's word n-grams that also stand in the reference, 0..1; 0 for a text shorter than n words."""

    def grams(words: list[str]) -> list[tuple]:
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    text_grams, reference_grams = grams(text.split()), set(grams(reference.split()))
    return sum(gram in reference_grams for gram in text_grams) / len(text_grams) if text_grams else 0.0


def statistics(rows: list[dict], distilled: list[dict]) -> dict:
    """Rates (0..1) and lengths (words) that say what distillation changed.

    `copy_rate` is the share of *all* rows whose training response is word for word the original's although it counts
    as distilled: where it is high, the two arms train on the same data.
    """
    _check_pairs(rows, distilled)
    pairs = list(zip(rows, distilled, strict=True))
    kept = [(row, other) for row, other in pairs if other["source"] == "distilled"]
    copies = [row["response"].split() == other["response"].split() for row, other in kept]
    return {
        "rows": len(pairs),
        "fallback_rate": 1 - len(kept) / len(pairs),
        "copy_rate": sum(copies) / len(pairs),
        "truncation_rate": sum(other["finish"] == "length" for other in distilled) / len(pairs),
        "overlap_8gram": float(
            np.mean([ngram_overlap(other["response"], row["response"]) for row, other in kept] or [0.0])
        ),
        "reasons": dict(sorted(Counter(other["reason"] for other in distilled).items())),
        "attempts": _by_attempt(distilled),
        "words_original": [len(row["response"].split()) for row in rows],
        "words_distilled": [len(other["response"].split()) for other in distilled],
    }


def _by_attempt(judged: list[dict]) -> list[dict]:
    """How many rows were written in each attempt, from the first on, and how many of these texts were kept."""
    last = [row["attempt"] for row in judged]
    kept = Counter(row["attempt"] for row in judged if row["source"] == "distilled")
    return [
        {"rewritten": sum(attempt <= number for number in last), "kept": kept[attempt]}
        for attempt in range(1, max(last) + 1)
    ]
