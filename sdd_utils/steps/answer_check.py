"""Whether a rewrite is right: the answer it comes to, and the conditional selection of SDFT (2402.13669).

Everything here is a pure function of a row and a text, so a set can be judged again without generating anything.
"""

import re
from decimal import Decimal

BANNED_PHRASES = ("reference answer", "your response", "my response", "your own response", "now it's your turn")
ENDINGS = {"number": "End with '#### ' and the number.", "boxed": "Put the final answer into \\boxed{}."}
MATH_OPENING = "Let's solve this step by step:\n"  # the parent method also opens the math turn; the wording is ours

# Not glued to a letter, digit or point on its left ("v2", "1.2.3") nor an exponent's mantissa; a unit may follow.
_NUMBER = re.compile(
    r"(?<![\w.])[-−]?\$?(?:\d{1,3}(?:,\d{3})+(?![\d,]*\d)|\d+)(?:\.\d+)?(?!\d|\.\d|[eE][-+]?\d)|(?<![\w.])[-−]?\$?\.\d+(?!\d)"
)
_PLAIN_NUMBER = re.compile(r"[-−$]*[\d.,]+%?")


def check_of(row: dict) -> str:
    """How a rewrite of this row is checked: "boxed" or "number" (mathematics), "text", or "" (not at all)."""
    if not row["answer"]:
        return ""
    if "\\boxed" in row["response"]:
        return "boxed"
    return "number" if _PLAIN_NUMBER.fullmatch(row["answer"].strip()) else "text"


def opening(row: dict) -> str:
    """The pre-filled start of the assistant's turn, which belongs to the response."""
    return MATH_OPENING if check_of(row) in ENDINGS else ""


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
        given = utils.remove_boxed(boxed).strip()
    except AssertionError:  # \boxed without braces, as in \boxed\frac{1}{2}
        return None
    if _PLAIN_NUMBER.fullmatch(given) and _PLAIN_NUMBER.fullmatch(answer):
        return last_number(given) == last_number(answer)
    return utils.is_equiv(given, answer)


def select(row: dict, *, text: str, finish: str) -> tuple[str, str]:
    """Conditional selection: the response to train on, and the reason of the choice.

    Reasons: `kept`, or why the original is used: `prompt too long`, `truncated`, `empty`, `banned phrase`, `no answer`,
    `wrong answer`.
    """
    reason = _verdict(row, text=text.strip(), finish=finish)
    return (text.strip() if reason == "kept" else row["response"]), reason


def _verdict(row: dict, *, text: str, finish: str) -> str:
    if finish == "too long":
        return "prompt too long"
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


def until_answer(text: str) -> str | None:
    """A worked solution up to its first finished "#### number" line, or None if it has none.

    Small models repeat that line until they run out of tokens; what stands before is a whole answer.
    """
    match = re.search(r"^####[^\n]*\d[^\n]*(?=\n)", text, flags=re.MULTILINE)
    return text[: match.end()] if match else None
