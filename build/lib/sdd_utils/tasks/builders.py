"""The documents of the offline lm-eval tasks, made in memory: each builder returns the split `test`.

lm-eval calls a builder with the keys of the task's `metadata`, hence the ignored keyword arguments. Filters stand here,
too.
"""

import math
import random
import re
from fractions import Fraction

from datasets import Dataset

from sdd_utils.data import number_reader
from sdd_utils.data.rows import load_rows
from sdd_utils.tasks import facts

GSM_ROWS = 200
PYDOC_ROWS = 100
DISTRACTORS = 3
NO_NUMBER = "[invalid]"  # as lm-eval's own filters say it


def facts_questions(**_) -> dict[str, Dataset]:
    """Columns `id, category, text, choices, label`; see `sdd_utils.tasks.facts`."""
    return {"test": Dataset.from_list(facts.questions())}


def gsm_symbolic(**_) -> dict[str, Dataset]:
    """Held-out word problems with the columns of `sdd_utils.data.rows`."""
    return {"test": Dataset.from_list(load_rows("gsm_symbolic", split="test", rows=GSM_ROWS))}


def gsm_symbolic_choices(**_) -> dict[str, Dataset]:
    """The same problems with `choices`, the right number among near misses, and `label`, its position."""
    rows = load_rows("gsm_symbolic", split="test", rows=GSM_ROWS)
    return {"test": Dataset.from_list([row | _choices(row) for row in rows])}


def pydoc(**_) -> dict[str, Dataset]:
    """Held-out docstrings with the columns of `sdd_utils.data.rows`."""
    return {"test": Dataset.from_list(load_rows("pydoc", split="test", rows=PYDOC_ROWS))}


def bits_per_byte(document: dict, results: list[tuple[float, bool]]) -> dict[str, float]:
    """lm-eval's scoring of a document whose right answer is scored whole: -log2 p over its bytes."""
    ((nats, _),) = results
    answer = document["response"] if "response" in document else f" {document['answer']}"
    return {"gold_bits_per_byte": -nats / math.log(2) / len(answer.encode())}


def last_numbers(responses: list[list[str]], _documents) -> list[list[str]]:
    """lm-eval filter: the last number of every response, read as `number_reader` reads it."""
    return [[_digits(number_reader.last_number(text)) for text in texts] for texts in responses]


def marked_numbers(responses: list[list[str]], _documents) -> list[list[str]]:
    """lm-eval filter: the number right behind the first "####" of every response that has one there."""
    return [[_digits(_marked_number(text)) for text in texts] for texts in responses]


def _marked_number(text: str) -> Fraction | None:
    numbers = map(number_reader.leading_number, text.split("####")[1:])
    return next((number for number in numbers if number is not None), None)


def _digits(number: Fraction | None) -> str:
    return NO_NUMBER if number is None else number_reader.as_text(number)


def _choices(row: dict) -> dict:
    """Choices and label of a problem, drawn with the row's id as seed."""
    rng = random.Random(row["id"])
    choices = [row["answer"], *near_misses(row, rng=rng)]
    rng.shuffle(choices)
    return {"choices": choices, "label": choices.index(row["answer"])}


def near_misses(row: dict, *, rng: random.Random) -> list[str]:
    """Three distinct wrong numbers as a slip would give them, as long as the answer where there are enough.

    A slip is one off, two off, ten off, two neighbouring digits swapped, or the last step left out.
    """
    whole, point, fraction = row["answer"].partition(".")
    slips = {str(int(whole) + off) for off in (-10, -2, -1, 1, 2, 10) if int(whole) + off > 0}
    slips |= {whole[:i] + whole[i + 1] + whole[i] + whole[i + 2 :] for i in range(len(whole) - 1)}
    # A leading zero would give a distractor away.
    wrong = {slip + point + fraction for slip in slips if slip != whole and not slip.startswith("0")}
    steps = [number.replace(",", "") for number in re.findall(r"= ?\D?(\d[\d,]*)(?![\d.,])", row["response"])]
    wrong |= set([step for step in steps if step not in (row["answer"], "0")][-1:])
    alike = sorted(slip for slip in wrong if len(slip) == len(row["answer"]))
    other = sorted(wrong - set(alike))
    chosen = rng.sample(alike, min(DISTRACTORS, len(alike)))
    return chosen + rng.sample(other, DISTRACTORS - len(chosen))
