"""What a cell means as text, and what is an answer: never Python's print of a list, a date or a heading."""

import datetime
import re

import pytest

from sdd_utils.data.cells import answer_line, text_of_cell

SYSTEM, USER, ASSISTANT = (
    {"role": role, "content": content}
    for role, content in [("system", "Be brief."), ("user", "Why?"), ("assistant", " So. ")]
)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (float("nan"), ""), (" a \n", "a"), (0, "0"), (12345678901234567890, "12345678901234567890"),
     (0.5, "0.5"), (True, "true"), (False, "false")],
)  # fmt: skip
def test_plain_values_are_written_as_json_writes_them(value, text):
    assert text_of_cell(value, column="c", key="answer") == text


@pytest.mark.parametrize(
    ("messages", "instruction", "response"),
    [
        ([ASSISTANT], None, "So."),
        ([USER], "Why?", None),
        ([USER, ASSISTANT], "Why?", "So."),
        ([SYSTEM, USER, ASSISTANT], "Be brief.\n\nWhy?", "So."),
        ([SYSTEM, ASSISTANT], None, "So."),
        ([USER, ASSISTANT, USER, ASSISTANT], None, None),
        ([ASSISTANT, USER], None, None),
        ([USER, USER], None, None),
        ([{"role": "tool", "content": "x"}, ASSISTANT], None, None),
        ([{"from": "gpt", "value": "So."}], None, None),
        ([{"role": "assistant", "content": [{"type": "text", "text": "So."}]}], None, None),
        ([{"role": "assistant", "content": None}], None, None),
        ([{"role": ["assistant"], "content": "So."}], None, None),
        (["So."], None, None),
        ([], None, None),
        ({"role": "assistant", "content": "So."}, None, None),
        ({"text": ["So."]}, None, None),
        (datetime.datetime(1969, 7, 20), None, None),
        (b"So.", None, None),
    ],
)
def test_messages_of_one_turn_are_read_and_everything_else_is_refused(messages, instruction, response):
    for key, text in (("instruction", instruction), ("response", response), ("context", None), ("answer", None)):
        if text is None:
            with pytest.raises(ValueError, match=rf"column 'c' holds a .*: it must hold text, a number.*key {key}\)"):
                text_of_cell(messages, column="c", key=key)
        else:
            assert text_of_cell(messages, column="c", key=key) == text


def test_half_a_character_is_told_before_anything_is_written():
    for value in ("a\ud83d", [{"role": "assistant", "content": "\ude00"}]):
        with pytest.raises(ValueError, match=re.escape("column 'c' holds half of a surrogate pair")):
            text_of_cell(value, column="c", key="response")


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("2 + 3 = 5\n#### 5", "5"),
        ("So.\n####5", "5"),
        ("So.\n#### 1,234.50  ", "1,234.50"),
        ("So.\n#### -$3", "-$3"),
        ("So.\n#### 20%", "20%"),
        ("So.\n#### 3/4", "3/4"),
        ("So.\n#### yes", "yes"),
        ("#### Step 1\nAdd.\n\n#### 5", "5"),
        ("It is\u2028ten.\n#### 10", "10"),
        ("#### Ingredients\n- eggs\n\n#### Method\nMix.", ""),
        ("#### Ingredients\n- eggs\n\n#### Method", ""),
        ("# Soup\nCook.\n#### Enjoy", ""),
        ("#### 5\nThat is the number of eggs.", ""),
        ("So.\n#### The next step is this:", ""),
        ("So.\n#### It is five, as two and three are five", ""),
        ("So.\n##### 5", ""),
        ("So.\n### 5", ""),
        ("So.\n####", ""),
        ("It is #### 5", ""),
        ("", ""),
    ],
)
def test_an_answer_is_a_number_or_a_few_words_in_the_last_line(response, answer):
    assert answer_line(response) == answer
