"""Right and wrong answers, told by hand: a wrong one that is accepted is worse than a right one that is refused."""

import pytest

from sdd_utils.steps import answer_check

# Answer, text, whether the text comes to the answer; None where it comes to no answer.
NUMBERS = [
    ("1,5", "Antwort: 7,5", False), ("1,5", "Antwort: 1,5", True), ("1,5", "It is 1.5.", True), ("3,4", "at 9,4",
    False),
    ("5", "7,5", False), ("4", "so 3,4", False), ("1234", "Total: 1{,}234", True), ("1234", "Total: 1 234", True),
    ("1234", "1,234", True), ("1234", "1.234,00", True), ("1234", "1\u2009234", True), ("1234", "1'234", True),
    ("1,234", "1234 coins", True), ("234", "Total: 1 234", False), ("234", "1,234", False), ("1.234", "1234", False),
    ("1234567", "1.234.567", True), ("150000", "Rs. 1,50,000", True), ("5", "Rs.5", True), ("5", "US$5", True),
    ("$5", "5 dollars", True), ("5", "€ 5", True), ("5", "5€", True), ("5", "-5", False), ("-5", "-$5", True),
    ("50%", "It is 50 %.", True), ("50%", "0.5", False), ("5", "v5", None), ("5", "1.2.5", None), ("2", "10^2", None),
    ("10", "10^2", None), ("30", "at 12:30", None), ("3", "a 3:3 ratio", None), ("4", "3/4", False), ("3/4", "0.75",
    True),
    ("0.75", "\\frac{3}{4}", True), ("1.5", "1 1/2 hours", True), ("1/2", "½ cup", True), ("3", "3/4", False),
    ("7", "It is seven.", None), ("7", "7.0", True), ("7", "70", False), ("7", "17", False), ("0.5", ".5", True),
    ("7", "#### 7", True), ("7", "#### **7**.", True), ("100", "1e2", None), ("7", "6, so no 7th, 8", False),
    ("2024", "on 2024-01-02", None), ("20", "10-20", True), ("20", "7x", None), ("1000000", "1,000,000", True),
    ("10", "10³", None), ("5", "5\\%", True), ("0.125", "0,125", True), ("12", "1, 2", False), ("12", "1 2", False),
    ("1/2", "1 ½", False), ("1.5", "1 \\frac{1}{2}", True), ("+5", "5", True), ("3", "–3", False), ("2", "√2", None),
    ("2", "2π", None), ("5", "_5_", True), ("3", "1e-3", None),
]  # fmt: skip
TEXTS = [
    ("C", "I like C++.", False), ("C", "I like C#.", False), ("C", "I like C.", True), ("C", "**C**", True),
    ("C", "Objective-C", False), ("C", "`C`, not R", True), ("C", "C-3PO", False), ("C++", "In C++, yes", True),
    ("C++", "In C++11", False), ("C#", "Use C#!", True), ("F", "F# is", False), (".NET", "on .NET now", True),
    ("A", "an A+", False), ("A", "an A-", False), ("A", "(A)", True), ("A", "A: first", True), ("A", "AB", False),
    ("No", "The answer is: no!", True), ("No", "I know it", False), ("No", "no-one", False), ("node", "node.js", False),
    ("caf", "the café", False), ("café", "a cafe\u0301", True), ("can", "can't", False), ("Paris", "Paris's", True),
    ("New York", "in New\n  York,", True), ("5 km", "1.5 km", False), ("5 km", "15 km", False), ("5 km", "5 km.", True),
    ("5 km", "-5 km", False), ("5 km", "2,5 km", False), ("12:30", "at 12:30", True), ("12:30", "at 12:30:45", False),
    ("1.2.3", "version 1.2.3 is", True), ("v1.2", "version v1.2.3 is", False), ("1.2.3", "11.2.3", False),
    ("1.2.3", "1.2.34", False), ("東京", "答えは東京です", True), ("서울", "서울은", True), ("Straße", "STRASSE", True),
    ("and", "and/or", False), ("R", "R&D", False), ("yes", "yes", True), ("yes", "Yes, but", True), ("M", "a@M", False),
    ("π", "2π", False), ("ель", "дель", False), ("none", "", False),
    # marks and joiners belong to the letter before them, in every script
    ("दिल", "यह दिल्ली है", False), ("दिल", "मेरा दिल है", True), ("राम", "रामायण", False), ("क", "की", False),
    ("தமிழ", "தமிழ்", False), ("தமிழ்", "இது தமிழ்.", True), ("I", "İ", False), ("می", "می\u200cخواهم", False),
    ("ก", "กี", False), ("กรุงเทพ", "ดีกรุงเทพ", True), ("x", "x\u0302", False), ("रा", "कीरा", False),
    # apostrophes, dashes, Markdown's underscores
    ("O'Brien", "by O’Brien.", True), ("O’Brien", "by O'Brien", True), ("can", "can’t", False),
    ("Paris", "‘Paris’", True), ("Paris", "Paris’s", True), ("Paris", "**Paris**", True), ("Paris", "_Paris_", True),
    ("Paris", "_It is Paris_.", True), ("node", "node_modules", False), ("init", "__init__", False),
    ("private", "_private", False), ("_", "a b", False), ("C", "C–3", False), ("C", "C\u20113", False),
    ("Paris", "Paris — a city", True), ("1e3", "It is 1e3.", True), ("1e3", "1e34", False), ("1e3", "1000", False),
]  # fmt: skip
BOXES = [
    ("5", "so \\boxed {5}. Done.", True), ("5", "\\boxed{6}, no: \\boxed{5}", True), ("5", "\\boxed{5}, \\boxed{6}",
    False),
    ("5", "\\boxed{5\\text{ apples}}", True), ("5 apples", "\\boxed{\\text{5 apples}}", True), ("5", "\\fbox{5}", True),
    ("Monday", "\\boxed{\\text{Monday}}", True), ("\\text{Monday}", "\\boxed{Monday}", True), ("5", "5", None),
    ("1234", "\\boxed{1{,}234}", True), ("1234", "\\boxed{1\\,234}", True), ("5", "\\boxed{\\$5.00}", True),
    ("50", "\\boxed{50\\%}", True), ("\\frac{1}{2}", "\\boxed{\\frac12}", True), ("\\frac{1}{2}", "\\boxed{0.5}", True),
    ("\\frac{1}{2}", "\\boxed{0.3}", False), ("\\frac{1}{2}", "\\boxed{\\dfrac{1}{2}}", True), ("5", "\\boxed", None),
    ("10", "\\boxed{10^3}", False), ("3,4", "\\boxed{4}", False), ("3,4", "\\boxed{3.4}", False), ("3,4",
    "\\boxed{3, 4}", True),
    ("3", "\\boxed{x = 3}", True), ("x^2", "\\boxed{x^2}", True), ("x^2", "\\boxed{x^3}", False), ("5", "\\boxed{5",
    None),
    ("\\frac{1}{2}", "so \\boxed\\frac{1}{2}", None), ("5", "\\boxed(5) is {x}", None), ("-5", "\\boxed{5}", False),
    ("Monday", "\\boxed{\\text{Tuesday}}", False), ("2\\sqrt{3}", "\\boxed{2 \\sqrt{3}}", True),
    ("5", "so \\boxed 5.", True), ("5", "$\\boxed 5$", True), ("-5", "\\boxed -5", True), ("5", "\\boxed 5, \\fbox 6",
    False),
    ("5", "\\boxed 5 + 1", None), ("1", "\\boxed 1.5x", None), ("5", "\\boxed 5 \\frac{1}{2}", None),
    ("A", "\\boxed{\\textbf{(A)}}", True), ("\\textbf{(A)}", "\\boxed{A}", True), ("A", "\\boxed{\\text{(B)}}", False),
    ("5", "\\boxed{\\frac{5}{\\sqrt{2}}}", False),
]  # fmt: skip


def row(answer: str, response: str = "") -> dict:
    return {"id": "r", "instruction": "?", "context": "", "response": response, "answer": answer}


@pytest.mark.parametrize(("answer", "text", "right"), NUMBERS)
def test_numbers_count_by_value(answer, text, right):
    assert answer_check.check_of(row(answer)) == "number"
    assert answer_check.same_answer(row(answer), text) is right


@pytest.mark.parametrize(("answer", "text", "right"), TEXTS)
def test_other_answers_stand_in_the_text_as_a_whole(answer, text, right):
    assert answer_check.check_of(row(answer)) == "text"
    assert answer_check.same_answer(row(answer), text) is right


@pytest.mark.parametrize(("answer", "text", "right"), BOXES)
def test_answers_in_latex_are_the_last_box(answer, text, right):
    assert answer_check.same_answer(row(answer, f"thus \\boxed{{{answer}}}"), text) is right


def test_a_box_without_braces_is_a_box():
    assert answer_check.check_of(row("5", "so it is \\boxed 5.")) == "boxed"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("It is 7. Now it’s your turn", "banned phrase"),
        ("Now it's your turn", "banned phrase"),
        ("as in the reference\n  answer", "banned phrase"),
        ("Your\u00a0response", "banned phrase"),
        ("It is your turn to respond", "kept"),
        ("<answer> </answer>", "empty"),
        ("<reasoning>Hm", "truncated"),
    ],
)
def test_phrases_that_speak_of_the_task_are_banned(text, reason):
    assert answer_check.select(row("", "the original"), text=text, finish="stop")[1] == reason


@pytest.mark.parametrize("line", ["#### 7", "####7", "#### $1,200.", "#### **7**", "#### 7 apples", "#### 50 %  "])
def test_a_solution_ends_with_its_first_finished_answer_line(line):
    assert answer_check.until_answer(f"3 + 4\n{line}\n#### 8\n####") == f"3 + 4\n{line}"
    assert answer_check.until_answer(f"3 + 4\n{line}") is None  # cut here, the number could go on


@pytest.mark.parametrize(
    "heading", ["#### Step 1: Add", "#### 1. Divide", "#### 2) Then", "#### 3 Ways to add", "####", "### 7", "#### 2nd"]
)
def test_a_heading_ends_no_solution(heading):
    assert answer_check.until_answer(f"{heading}\n3 + 4 = 7\n") is None
    assert answer_check.until_answer(f"{heading}\n3 + 4\n#### 7\nand on") == f"{heading}\n3 + 4\n#### 7"
