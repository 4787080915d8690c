"""Whether a rewrite is right: the answer it comes to, and the conditional selection of SDFT (2402.13669).

Everything here is a pure function of a row and a text, so a set can be judged again without generating anything.
"""

import re
import unicodedata

import regex

from sdd_utils.data import number_reader
from sdd_utils.models import chat_format

BANNED_PHRASES = ("reference answer", "your response", "my response", "your own response", "now it's your turn")
ENDINGS = {"number": "End with '#### ' and the number.", "boxed": "Put the final answer into \\boxed{}."}

# A letter of a script that puts spaces between words: in Thai, Lao, Burmese, Khmer, Chinese, Japanese and Korean an
# answer may stand right beside other letters. Marks (vowel signs, accents) and joiners belong to the letter before.
_JOINED = r"\p{M}\u200c\u200d\u2060"
_SPACELESS = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1100-\u11ff\u3040-\u9fff\uac00-\ud7af\U00020000-\U0003ffff"
_LETTER = rf"[[\w\p{{N}}{_JOINED}]--[{_SPACELESS}]]"
_HYPHENS = r"\-‐‑‒–−"
# What would make an answer part of something longer: "C" is not in "C++", "5 km" in "1.5 km", "no" in "no-one".
_EDGE_BEFORE = rf"(?V1)(?<!{_LETTER})(?<![{_HYPHENS}+#@.])(?<!\w[/&'])(?<!\d[,:])"
_EDGE_BEHIND = rf"(?!{_LETTER}|[{_JOINED}])(?![{_HYPHENS}+#@])(?![/&.]\w)(?!'(?!s\b)\w)(?![,:]\d)"
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ＇", "'"))
_EMPHASIS = re.compile(r"(?<!\w)_(?=[^\s_])([^_]*[^\s_])_(?!\w)")  # not `__init__`, nor `_name`
_BOX = re.compile(r"\\f?box(?:ed)?\s*(?=\{)")
_BARE_BOX = re.compile(r"(\\f?box(?:ed)?)\s+(-?\d++(?:[.,]\d++)*+)(?![\w{\\]|\s*[-+*/^=]|\s*\\(?:[dtc]?frac|sqrt|pi))")
_CHOICE = re.compile(r"\(\s*([A-Z])\s*\)")
_TEXT_IN_BOX = re.compile(r"\\(?:text(?:bf|rm|it)?|math(?:rm|bf|it)|mbox)\s*\{([^{}]*)\}")
_LIST = re.compile(r",(?!\d{3}(?!\d))")  # in LaTeX "3,4" is a point or two solutions, and a decimal is "3.4"
_UNIT = r"(?: [a-z%°²³]\S*){0,2}"


def check_of(row: dict) -> str:
    """How a rewrite of this row is checked: "boxed" or "number" (mathematics), "text", or "" (not at all)."""
    if not row["answer"]:
        return ""
    if _BOX.search(_with_braces(row["response"])):
        return "boxed"
    return "number" if number_reader.whole_number(row["answer"]) is not None else "text"


def same_answer(row: dict, text: str) -> bool | None:
    """Whether a text comes to the row's answer; None if it comes to none.

    Numbers are compared by value (`number_reader` has the rules), the last one of the text. Mathematics in LaTeX is
    the last \\boxed{}, compared by lm-eval's MATH rules where it is no single number. Any other answer must stand in
    the text, as a whole: beside a letter, a hyphen or a symbol as in `C++` it is part of something else.
    """
    check = check_of(row)
    if check == "text":
        answer = regex.escape(_without_emphasis(_folded(row["answer"])))
        return regex.search(_EDGE_BEFORE + answer + _EDGE_BEHIND, _without_emphasis(_folded(text))) is not None
    if check == "boxed":
        return _same_boxed(row["answer"], _with_braces(text))
    number = number_reader.last_number(text)
    return None if number is None else number == number_reader.whole_number(row["answer"])


def _folded(text: str) -> str:
    """A text without the differences that do not count: case, white space, ways to write a letter or an apostrophe."""
    return " ".join(unicodedata.normalize("NFC", text).translate(_APOSTROPHES).casefold().split())


def _without_emphasis(text: str) -> str:
    """A text without Markdown's underscores around words, which a pattern would take for letters."""
    return _EMPHASIS.sub(r"\1", text)


def _with_braces(text: str) -> str:
    """A text whose boxes around a bare number (`\\boxed 5`) have braces."""
    return _BARE_BOX.sub(r"\1{\2}", text)


def _same_boxed(answer: str, text: str) -> bool | None:
    from lm_eval.tasks.hendrycks_math import utils  # here, for its import takes seconds

    *_, start = [None, *(match.end() for match in _BOX.finditer(text))]
    boxed = None if start is None else utils.last_boxed_only_string("\\boxed" + text[start:])
    if boxed is None:
        return None
    given = utils.remove_boxed(boxed).strip()
    plain = [_TEXT_IN_BOX.sub(r"\1", part).replace("{,}", ",").strip() for part in (given, answer)]
    plain = [choice[1] if (choice := _CHOICE.fullmatch(part)) else part for part in plain]
    numbers = [None if _LIST.search(part) else number_reader.whole_number(part) for part in plain]
    if None not in numbers:
        return numbers[0] == numbers[1]
    return utils.is_equiv(given, answer) or utils.is_equiv(*plain)


def select(row: dict, *, text: str, finish: str) -> tuple[str, str]:
    """Conditional selection: the response to train on, and the reason of the choice.

    Reasons: `kept`, or why the original is used: `prompt too long`, `truncated`, `empty`, `banned phrase`, `no answer`,
    `wrong answer`.
    """
    text, finish = answer_of(text, finish)
    reason = _verdict(row, text=text.strip(), finish=finish)
    return (text.strip() if reason == "kept" else row["response"]), reason


def answer_of(text: str, finish: str) -> tuple[str, str]:
    """Text and finish without thinking; a text that never came to its answer counts as cut."""
    answer = chat_format.without_thinking(text)
    return ("", "length") if answer is None else (answer, finish)


def _verdict(row: dict, *, text: str, finish: str) -> str:
    if finish == "too long":
        return "prompt too long"
    if finish != "stop":
        return "truncated"
    if not text:
        return "empty"
    if any(phrase in _folded(text) for phrase in BANNED_PHRASES):
        return "banned phrase"
    if not row["answer"]:
        return "kept"
    right = same_answer(row, text)
    return "no answer" if right is None else "kept" if right else "wrong answer"


def until_answer(text: str) -> str | None:
    """A worked solution up to its first finished line "#### number", or None if it has none.

    Small models repeat that line until they run out of tokens; what stands before is a whole answer. A unit may follow
    the number. A Markdown heading ("#### Step 1: Add", "#### 2. Divide") is no such line.
    """
    for match in re.finditer(r"^####(?P<line>[^\n]*)(?=\n)", text, flags=re.MULTILINE):
        line = match["line"].strip(" \t*_`")
        number = re.sub(rf"(?<![.:)]){_UNIT}$", "", line)
        if number_reader.whole_number(number) is not None:
            return text[: match.end()]
    return None
