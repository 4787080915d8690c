"""Numbers as people write them in answers, read to their value.

What is read: signs, currency (`$5`, `US$5`, `Rs.5`, `5 €`), per cent signs and units, which are not compared; LaTeX
(`1{,}234`, `1\\,234`, `\\frac{3}{4}`), fractions and mixed numbers (`3/4`, `1 3/4`), and separators by these rules:

- A comma before groups of just three digits separates thousands (`1,234`), as in India before groups of two
  (`1,23,456`); any other single comma is the decimal comma (`1,5`, `0,125`). A longer row of commas is a list.
- A point is the decimal point (`1.234`), but between thousands where there are several groups, or a decimal comma
  follows (`1.234.567`, `1.234,5`). Any other row of points is a version or an address: no number.
- A space of any width, an apostrophe or an underscore before groups of three digits separates thousands (`1 234`).

An en dash or a typographic minus is a sign where a hyphen would be one. Markdown's underscores (`_5_`) are no part.

Powers, exponents, roots, multiples of pi, times, dates, LaTeX fractions of other things than whole numbers, and digits
glued to a word (`v2`), to a variable (`7x`) or to a slash before them (`x/2`) are no numbers.
"""

import re
import unicodedata
from fractions import Fraction

_SPACES = " \u00a0\u2009\u202f'’_"
_CURRENCY = r"(?:(?:US|CA|AU|NZ|HK|SG|[ACRS])?[$€£¥₹₩₽₺]|(?:USD|EUR|GBP|JPY|CNY|INR|CHF|AUD|CAD|Rs|kr)\.?)"
_BEHIND = r"(?![\d⁰¹²³⁴⁵⁶⁷⁸⁹⁻]|\.\d|,\d|[eE][-+]?\d|[xyz]\b|/\d)"
_WHOLE = rf"[1-9]\d{{0,2}}(?:(?:,\d{{3}})+|(?:[{_SPACES}]\d{{3}})+)|\d+"
_NUMBER = re.compile(
    rf"(?<![\w./])(?P<sign>(?<![)\]])[-+])?(?:{_CURRENCY} ?(?P<inner_sign>[-+])?)?(?:"
    rf"(?:(?P<whole>{_WHOLE})[^\S\n]+)?(?P<numerator>\d+)/(?P<denominator>\d+){_BEHIND}"
    rf"|(?<!\d[{_SPACES}])(?P<grouped>[1-9]\d{{0,2}}(?:[{_SPACES}]\d{{3}})+(?:[.,]\d+)?)(?![{_SPACES}]\d){_BEHIND}"
    rf"|(?P<digits>\d+(?:[.,]\d+)*){_BEHIND}"
    rf"|(?P<fraction>\.\d+){_BEHIND})"
)
_THOUSANDS = re.compile(r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?|[1-9]\d?(?:,\d{2})+,\d{3}(?:\.\d+)?")
_POINTED_THOUSANDS = re.compile(r"[1-9]\d{0,2}(?:(?:\.\d{3})+,\d+|(?:\.\d{3}){2,})")
_FACTORS = r"(?:\d[\d.,]*\s*(?:[x×*·]|\\times|\\cdot)\s*)*"
_BRACES = r"\{(?:[^{}]|\{[^{}]*\})*\}"
_ROOT = rf"[√∛∜]\s?\(?[\d.,]*|\\sqrt\s*(?:\[[^\]]*\])?\s*(?:{_BRACES}|\d)?|\bsqrt\([^()]*\)"
_NO_NUMBERS = re.compile(
    rf"{_FACTORS}[\d.,)]*\s?\^\s?(?:\{{[^{{}}]*\}}|[-+]?\w+)|{_FACTORS}[\d.,)]+[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+"  # powers
    rf"|\d(?:[.,{_SPACES}]?\d){{999,}}"  # a model that writes digits without end
    r"|(?<!\w)(?:\d[\d.,]*|\.\d+)[eE][-+]?\d+"  # exponents
    rf"|{_FACTORS}(?:\d+(?:[.,]\d+)*\s?)?(?:{_ROOT}|π|\\pi\b)"  # roots and multiples of pi
    rf"|(?:\d+(?:[.,]\d+)*\s*)?\\[dtc]?frac\s*(?:{_BRACES}|\w)\s*(?:{_BRACES}|\w)"  # fractions that are not read
    r"|\d*_\{[^{}]*\}"  # subscripts, and bases of numbers
    r"|\d+(?::\d+)+"  # times and ratios
    r"|(?<![\d-])\d{4}-\d\d-\d\d(?![\d-])|\d+(?:/\d+){2,}"  # dates
)
_LATEX = (
    (re.compile(r"(?<=\d)(?=\\[dtc]?frac)"), " "),
    (re.compile(r"\\[dtc]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))"), r"\1\2/\3\4"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"(?<=\d)\\[,;:! ](?=\d)|(?<=\d)~(?=\d)"), " "),
    (re.compile(r"\\([$%])"), r"\1"),
)


_EMPHASIS = re.compile(r"(?<!\w)(_{1,3})(?=[^\s_])([^_\n]*?[^\s_])\1(?!\w)")
_VULGAR = re.compile("(?<=\\d)(?=[¼-¾⅐-⅟↉])")
_CHARACTERS = str.maketrans(dict.fromkeys("−–‒‑‐－﹣", "-") | dict.fromkeys("⁄∕", "/"))


def last_number(text: str) -> Fraction | None:
    """The value of the last number in a text; None if there is none."""
    for match in reversed([*_NUMBER.finditer(_plain(text))]):
        if (value := _value(match)) is not None:
            return value
    return None


def leading_number(text: str) -> Fraction | None:
    """The value of the number that a text begins with, behind white space and Markdown's `*`; None without one."""
    match = _NUMBER.match(_plain(text).lstrip(" \t\n*`"))
    return match and _value(match)


def whole_number(text: str) -> Fraction | None:
    """The value of a text that is one number and nothing else; None if it is not.

    A currency, a per cent sign or a final period may follow.
    """
    text = re.sub(rf"\s*(?:%|{_CURRENCY})?\s*\.?$", "", _plain(text).strip())
    match = _NUMBER.fullmatch(text.lstrip())
    return match and _value(match, lists=False)


def as_text(value: Fraction) -> str:
    """A value as digits (`-1234.5`), or as a fraction (`1/3`) where the digits would not end."""
    shifts = (value * 10**places for places in range(30))
    places = next((places for places, shifted in enumerate(shifts) if shifted.denominator == 1), None)
    if places is None:
        return str(value)
    whole = f"{abs(value.numerator * 10**places // value.denominator):0{places + 1}d}"
    return ("-" if value < 0 else "") + (f"{whole[:-places]}.{whole[-places:]}" if places else whole)


def _plain(text: str) -> str:
    """The text with LaTeX, vulgar fractions and minus signs as plain characters, without what looks like a number."""
    if not text.isascii():
        text = "".join(map(_plain_character, _VULGAR.sub(" ", text))).translate(_CHARACTERS)
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return _EMPHASIS.sub(r"\2", _NO_NUMBERS.sub(" ; ", text))


def _plain_character(character: str) -> str:
    vulgar = unicodedata.decomposition(character).startswith("<fraction>")
    return unicodedata.normalize("NFKC", character) if vulgar else character


def _value(match: re.Match, *, lists: bool = True) -> Fraction | None:
    size = _fraction(match) if match["denominator"] else _decimal(match["digits"] or "", lists=lists)
    if match["grouped"] or match["fraction"]:
        size = Fraction(re.sub(rf"[{_SPACES}]", "", match["grouped"] or f"0{match['fraction']}").replace(",", "."))
    negative = (match["sign"] == "-") != (match["inner_sign"] == "-")
    return -size if negative and size is not None else size


def _fraction(match: re.Match) -> Fraction | None:
    whole, numerator, denominator = (
        int(re.sub(rf"[,{_SPACES}]", "", match[name] or "0")) for name in ("whole", "numerator", "denominator")
    )
    return whole + Fraction(numerator, denominator) if denominator else None


def _decimal(digits: str, *, lists: bool) -> Fraction | None:
    """The value of digits with points and commas between them."""
    if _THOUSANDS.fullmatch(digits):
        return Fraction(digits.replace(",", ""))
    if _POINTED_THOUSANDS.fullmatch(digits):
        return Fraction(digits.replace(".", "").replace(",", "."))
    if re.fullmatch(r"\d+(?:[.,]\d+)?", digits):
        return Fraction(digits.replace(",", "."))
    return _decimal(digits.rpartition(",")[2], lists=True) if lists and "," in digits else None
