"""Numbers as people write them: every value here was set by hand."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdd_utils.data import number_reader

LAST = {
    # plain, signed, with punctuation around
    "#### 288": "288", "is 3.": "3", "5 10": "10", "1 then 2, done": "2", "**42**": "42", "a −7": "-7", "x = -5": "-5",
    "10-5": "5", "(3)-5": "5", "none": None, "": None, "so $1,200.50.": "1200.50", "007": "7", "It is +4!": "4",
    # thousands, decimals and lists
    "1,234.50.": "1234.50", "12,345,678": "12345678", "1,5": "1.5", "7,25 kg": "7.25", "0,125": "0.125",
    "1.234": "1.234", "1.234,5": "1234.5", "1.234.567": "1234567", "1,23,456": "123456", "5,00,000": "500000",
    "1 234": "1234", "1 234 567,8": "1234567.8", "1\u202f234": "1234", "1\u2009234.5": "1234.5", "1\u00a0234": "1234",
    "1'234": "1234", "1_234": "1234", "1 2 345": "345", "12 345 6": "6", "1,2,3": "3", "1,000,5": "5", "0 123": "123",
    "1{,}234": "1234", "1\\,234": "1234", "2, 345": "345", "1234,567": "1234.567",
    # currency, per cent, units
    "$-3": "-3", "-$3": "-3", "$.50": "0.50", "Rs.5": "5", "Rs. 5,00,000": "500000", "€ 5": "5", "5€": "5", "US$5": "5",
    "USD 1,200": "1200", "\\$1{,}000": "1000", "£2.50 each": "2.5", "5%": "5", "50\\%": "50", "50km": "50", "$5$": "5",
    # fractions
    "3/4": "3/4", "-1/2": "-1/2", "1 3/4 cups": "7/4", "½": "1/2", "2½": "5/2", "\\frac{3}{4}": "3/4",
    "\\frac34": "3/4",
    "1\\dfrac{1}{2}": "3/2", "so 8/0": None, "5/day": "5", "1 ½": "3/2", "1 \\frac{1}{2}": "3/2", "2 ⅓ cups": "7/3",
    "$1 \\dfrac{3}{4}$": "7/4", "1  3/4": "7/4", "1\u00a03/4": "7/4", "1\\,\\frac12": "3/2", "1,234 ½": "2469/2",
    "1 234 1/2": "2469/2", "3⁄4": "3/4", "1\n3/4": "3/4", "-½": "-1/2", "−½": "-1/2", "–1 ½": "-3/2",
    "-\\frac{1}{2}": "-1/2", "\\frac{-1}{2}": "-1/2", "\\frac{48}{2} = 24": "24",
    # dashes as signs, and Markdown's underscores
    "–3": "-3", "$–3": "-3", "is −3": "-3", "10–20": "20", "10 — 3": "3", "_5_": "5", "__5__": "5", "_It is 5_": "5",
    "___-5___": "-5", "a_5_": None, "_5": None,
    # no numbers
    "v2": None, "1.2.3": None, "10.0.0.1": None, "1e5": None, "10^3": None, "1.5 \\times 10^{3}": None, "10³": None,
    "12:30": None, "a 2:1 ratio": None, "on 2024-07-20": None, "3/4/2024": None, "x_{12}": None, "7x": None, "x2": None,
    "1e-3": None, "1.5E+10": None, "-1e3": None, "1.5×10⁻³": None, "√2": None, "2√3": None, "2 · √3": None,
    "\\sqrt{2}": None, "\\sqrt[3]{2}": None, "√16 = 4": "4", "2π": None, "2 \\pi r": None, "\\frac{\\pi}{2}": None,
    "\\frac{\\sqrt{3}}{2}": None, "\\frac{1.5}{2}": None, "x/2": None, "1.5/2": None, "101_{2}": None,
    "9" * 5000: None,
}  # fmt: skip
WHOLE = {
    "7": "7", "$7": "7", "7 €": "7", "7%": "7", "7.": "7", " 1,234 ": "1234", "3/4": "3/4", "-0.5": "-1/2",
    "1 234": "1234",
    "7 apples": None, "1,2,3": None, "1.2.3": None, "12:30": None, "C": None, "": None, "5 10": None, "v2": None,
    "1e5": None, "+5": "5", "+$5": "5", "–5": "-5", "1 ½": "3/2", "_5_": "5", "√4": None, "1e-3": None,
}  # fmt: skip


@pytest.mark.parametrize(("text", "value"), LAST.items())
def test_the_last_number_of_a_text(text, value):
    assert number_reader.last_number(text) == (None if value is None else Fraction(value))


@pytest.mark.parametrize(("text", "value"), WHOLE.items())
def test_a_text_that_is_one_number(text, value):
    assert number_reader.whole_number(text) == (None if value is None else Fraction(value))


def test_what_is_no_number_leaves_the_one_before():
    assert number_reader.last_number("5 of them, see v2 and 1.2.3 at 12:30") == 5


@given(
    st.integers(-(10**9), 10**9), st.sampled_from(["{}", "{:,}", "#### {}", "so ${} .", "1 2 {}.", "= {}!", "{:_} m"])
)
def test_reads_back_what_was_written(value, form):
    assert number_reader.last_number(form.format(value)) == value


@given(st.decimals(min_value=-(10**6), max_value=10**6, places=3))
def test_digits_of_a_value_are_its_value(value):
    assert Decimal(number_reader.as_text(Fraction(value))) == value
    assert number_reader.as_text(Fraction(1, 3)) == "1/3"


@given(st.text())
def test_any_text_is_read(text):
    for reader in (number_reader.last_number, number_reader.whole_number, number_reader.leading_number):
        assert isinstance(reader(text), Fraction | None)
