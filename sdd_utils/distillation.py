"""Self-data distillation: the unpruned model rewrites every response, and a rewrite is kept only if it is right.

The template, the banned phrases and the conditional selection follow SDFT (Yang et al. 2402.13669), the parent
method the paper builds on (arXiv 2410.09982). Nothing is dropped: a rejected rewrite falls back to the original
response, so the distilled set has exactly the rows of the original.
"""

import re
from collections import Counter
from decimal import Decimal
from pathlib import Path

import numpy as np

from sdd_utils.generation import generate_file, render
from sdd_utils.models import load_tokenizer, sha256

BANNED_PHRASES = ("reference answer", "your response", "my response", "your own response", "now it's your turn")

_GENERAL = (
    "Below are an instruction that describes a task and a reference answer. Use the reference answer as a guide "
    "and write your own response to the instruction.\n\n"
    "### Instruction:\n{instruction}\n\n### Reference Answer:\n{response}\n\n### Response:\n"
)
_MATH_SYSTEM = "You are an expert in math. Below are a math question and its reference answer."
_MATH = (
    "Write your own step-by-step solution, with the reference answer as a guide. {ending}\n\n"
    "### Question:\n{instruction}\n\n### Reference Answer:\n{response}\n"
)
_MATH_ALONE_SYSTEM = "You are an expert in math. Below is a math question."
_MATH_ALONE = "Write your own step-by-step solution. {ending}\n\n### Question:\n{instruction}\n"
_ENDINGS = {"number": "End with '#### ' and the number.", "boxed": "Put the final answer into \\boxed{}."}
_MATH_OPENING = "Let's solve this step by step:\n"  # the parent method opens the math turn too; the wording is ours

# Not glued to a letter, digit or point on its left ("v2", "1.2.3") nor an exponent's mantissa; a unit may follow.
_NUMBER = re.compile(
    r"(?<![\w.])[-−]?\$?(?:\d{1,3}(?:,\d{3})+(?![\d,]*\d)|\d+)(?:\.\d+)?(?!\d|\.\d|[eE][-+]?\d)|(?<![\w.])[-−]?\$?\.\d+(?!\d)"
)
_PLAIN_NUMBER = re.compile(r"[-−$]*[\d.,]+%?")


def question_of(row: dict) -> str:
    """The instruction, with its context below it where there is one."""
    return f"{row['instruction']}\n\n{row['context']}" if row["context"] else row["instruction"]


def check_of(row: dict) -> str:
    """How a rewrite of this row is checked: "boxed" or "number" (mathematics), "text", or "" (not at all)."""
    if not row["answer"]:
        return ""
    if "\\boxed" in row["response"]:
        return "boxed"
    return "number" if _PLAIN_NUMBER.fullmatch(row["answer"].strip()) else "text"


def rewrite_messages(row: dict) -> list[dict]:
    """The conversation that asks the unpruned model for its own version of a response."""
    fields = {"instruction": question_of(row), "response": row["response"]}
    ending = _ENDINGS.get(check_of(row))
    if ending is None:
        return [{"role": "user", "content": _GENERAL.format(**fields)}]
    return [
        {"role": "system", "content": _MATH_SYSTEM},
        {"role": "user", "content": _MATH.format(**fields, ending=ending)},
        {"role": "assistant", "content": _MATH_OPENING},
    ]


def answer_messages(row: dict) -> list[dict]:
    """The conversation that asks the unpruned model for a response of its own, without the reference answer.

    Mathematics gets the rewrite's template but for the reference, so that answers can be checked as rewrites are.
    """
    ending = _ENDINGS.get(check_of(row))
    if ending is None:
        return [{"role": "user", "content": question_of(row)}]
    return [
        {"role": "system", "content": _MATH_ALONE_SYSTEM},
        {"role": "user", "content": _MATH_ALONE.format(instruction=question_of(row), ending=ending)},
        {"role": "assistant", "content": _MATH_OPENING},
    ]


ASKED_BY = {"distilled": rewrite_messages, "self_generated": answer_messages}


def opening(row: dict) -> str:
    """The pre-filled start of the assistant's turn, which belongs to the response."""
    return _MATH_OPENING if check_of(row) in _ENDINGS else ""


def last_number(text: str) -> Decimal | None:
    """The last number in a text: thousands commas, decimals, signs and `$` understood; None if there is none.

    "5 10" ends in 10, "1,234.50." in 1234.5 and "$-3" or "-$3" in -3; a hyphen after a digit or letter
    ("10-5") is no sign.
    """
    matches = list(_NUMBER.finditer(text.replace("$-", "-$").replace("$−", "-$")))
    if not matches:
        return None
    return Decimal(re.sub(r"[$,]", "", matches[-1].group()).replace("−", "-"))


def same_answer(row: dict, text: str) -> bool | None:
    """Whether a text comes to the row's answer; None if it comes to none.

    Mathematics in LaTeX is compared by lm-eval's MATH rules on the last \\boxed{}, numbers by value, and any other
    answer must stand in the text, not within a word.
    """
    check = check_of(row)
    if check == "text":
        # "no" does not stand in "know"; ASCII, as in scripts that put no spaces between words a word has no edges.
        whole = rf"(?<![a-z0-9_]){re.escape(row['answer'].casefold())}(?![a-z0-9_])"
        return re.search(whole, text.casefold()) is not None
    if check == "boxed":
        return _same_boxed(row["answer"], text)
    number = last_number(text)
    return None if number is None else number == last_number(row["answer"])


def _same_boxed(answer: str, text: str) -> bool | None:
    from lm_eval.tasks.hendrycks_math import utils  # here, for its import takes seconds

    boxed = utils.last_boxed_only_string(text) if "\\boxed" in text else None
    if boxed is None:
        return None
    try:
        found = utils.remove_boxed(boxed).strip()
    except AssertionError:  # \boxed without braces, as in \boxed\frac{1}{2}
        return None
    if _PLAIN_NUMBER.fullmatch(found) and _PLAIN_NUMBER.fullmatch(answer):
        return last_number(found) == last_number(answer)
    return utils.is_equiv(found, answer)


def select(row: dict, *, text: str, finish: str) -> tuple[str, str]:
    """Conditional selection: the response to train on, and the reason of the choice.

    Reasons: `kept`, or why the original is used: `truncated`, `empty`, `banned phrase`, `no answer`, `wrong answer`.
    """
    reason = _verdict(row, text=text.strip(), finish=finish)
    return (text.strip() if reason == "kept" else row["response"]), reason


def _verdict(row: dict, *, text: str, finish: str) -> str:
    if finish != "stop":
        return "truncated"
    if not text.removeprefix(opening(row).strip()).strip():
        return "empty"
    if any(phrase in text.lower() for phrase in BANNED_PHRASES):
        return "banned phrase"
    if not row["answer"]:
        return "kept"
    right = same_answer(row, text)
    return "no answer" if right is None else "kept" if right else "wrong answer"


def distill(model: str | Path, rows: list[dict], *, path: Path, which: str = "distilled", **settings) -> list[dict]:
    """Have the model write every response anew and write the set, one JSON line per row as it finishes.

    A rerun keeps the finished lines and generates the rest; see `generation.generate` for `settings`.

    Args:
        which: "distilled", with sight of the original response, or "self_generated", without it.

    Returns:
        rows {id, response, source: "distilled" | "original", reason, finish, n_tokens, seed, rewrite}, in the order
        of `rows`.
    """
    by_id = {row["id"]: row for row in rows}
    tokenizer = load_tokenizer(model)
    prompts = {id_: render(tokenizer, ASKED_BY[which](row)) for id_, row in by_id.items()}
    return generate_file(
        model,
        prompts,
        path=path,
        finish_row=lambda output: _distilled_row(by_id[output["id"]], output),
        depends_on=[rows, sha256(Path(__file__))],
        speculate=True,
        **settings,
    )


def _distilled_row(row: dict, output: dict) -> dict:
    text = opening(row) + output["text"]
    answered = until_answer(text) if check_of(row) == "number" else None
    if answered:
        text, output = answered, output | {"finish": "stop"}
    response, reason = select(row, text=text, finish=output["finish"])
    source = "distilled" if reason == "kept" else "original"
    kept = {name: output[name] for name in ("finish", "n_tokens", "seed")}
    return {"id": row["id"], "response": response, "source": source, "reason": reason, **kept, "rewrite": text}


def until_answer(text: str) -> str | None:
    """A worked solution up to its first finished "#### number" line, or None if it has none.

    Small models repeat that line until they run out of tokens; what stands before is a whole answer.
    """
    match = re.search(r"^####[^\n]*\d[^\n]*(?=\n)", text, flags=re.MULTILINE)
    return text[: match.end()] if match else None


def ngram_overlap(text: str, reference: str, *, n: int = 8) -> float:
    """Share of a text's word n-grams that also stand in the reference, 0..1; 0 for a text shorter than n words."""

    def grams(words: list[str]) -> list[tuple]:
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    own, known = grams(text.split()), set(grams(reference.split()))
    return sum(gram in known for gram in own) / len(own) if own else 0.0


def statistics(rows: list[dict], distilled: list[dict]) -> dict:
    """Rates (0..1) and lengths (words) that say what distillation changed.

    `copy` is the share of *all* rows whose training response is word for word the original's although it counts
    as distilled: where it is high, the two arms train on the same data.
    """
    pairs = list(zip(rows, distilled, strict=True))
    if any(row["id"] != other["id"] for row, other in pairs):
        raise ValueError("the distilled set does not belong to these rows: delete it and run 03 again")
    kept = [(row, other) for row, other in pairs if other["source"] == "distilled"]
    copies = [row["response"].split() == other["response"].split() for row, other in kept]
    return {
        "rows": len(pairs),
        "fallback_rate": 1 - len(kept) / len(pairs),
        "copy_rate": sum(copies) / len(pairs),
        "truncation_rate": sum(other["finish"] == "length" for other in distilled) / len(pairs),
        "overlap_8gram": float(np.mean([ngram_overlap(o["response"], r["response"]) for r, o in kept] or [0.0])),
        "reasons": dict(sorted(Counter(other["reason"] for other in distilled).items())),
        "words_original": [len(row["response"].split()) for row in rows],
        "words_distilled": [len(other["response"].split()) for other in distilled],
    }
