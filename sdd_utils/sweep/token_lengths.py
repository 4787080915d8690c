"""How many rows, documents and tokens a study is about: the means of `benchmarks/lengths.py`, and its keys."""

from functools import cache
from pathlib import Path

import yaml

MOST = 2.5  # the longest document of a task over the mean one; 1.4 to 2.5 in the offline tasks
LIKE_SET, LIKE_TASK = "alpaca", "arc_easy"  # stand in for a data set or task whose lengths were never measured


@cache
def lengths() -> dict:
    """`token_lengths.yaml`, as measured by benchmarks/lengths.py."""
    return yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def learn(name: str, **known: float) -> None:
    """Take the lengths of a data set from its rows, for all that this process asks afterwards; the others stay."""
    lengths()["data_sets"][name] = set_lengths(name) | known


def set_lengths(name: str) -> dict:
    """Lengths of a data set; one that was never measured is taken to be like `LIKE_SET`."""
    return lengths()["data_sets"].get(name) or lengths()["data_sets"][LIKE_SET]


def task_lengths(name: str) -> dict:
    """Lengths of a task; one that was never measured is taken to be like `LIKE_TASK`."""
    return lengths()["tasks"].get(name) or lengths()["tasks"][LIKE_TASK]


def rows_of(study, data_set: str) -> int:
    """Training rows of a data set; 0 in the study means all of them."""
    return study.data_sets[data_set] or set_lengths(data_set)["rows"]


def documents_of(study, task: str) -> int:
    """Documents of a task; 0 in the study means all, and a number counts for each part (MMLU: each subject)."""
    length = task_lengths(task)
    return min(study.tasks[task] * length["parts"], length["documents"]) or length["documents"]


def context_of(study, task: str) -> float:
    """Mean tokens that are read for one document of a task, few-shot examples and choices included."""
    length = task_lengths(task)
    return length["read"] + study.shots.get(task, length["default_shots"]) * length["example"]


def longest_of(study, task: str) -> float:
    """Tokens of a task's longest document with its examples; `MOST` times the mean where that was not measured."""
    length = task_lengths(task)
    alone = length.get("longest", MOST * length["read"])
    return alone + study.shots.get(task, length["default_shots"]) * length["example"]


def rewritten(study, data_set: str) -> float:
    """Mean tokens of a rewrite."""
    length, growth = set_lengths(data_set), lengths()["growth"]
    return min(length["response"] * growth["maths" if length["maths"] else "general"], study.rewrite_tokens)


def response_of(study, data_set: str, arm: str) -> float:
    """Mean tokens of the responses of an arm. Answers without sight of the original are taken to be like rewrites."""
    original, written = set_lengths(data_set)["response"], rewritten(study, data_set)
    like_original = dict.fromkeys(("sft", "logit_kd", "text_kd", "on_policy"), original)
    return (like_original | dict.fromkeys(("mixed_ft", "first_attempt_ft"), (original + written) / 2)).get(arm, written)


def trained_row(study, data_set: str, arm: str) -> float:
    """Mean tokens of a row as an arm's training reads it; plain text has no prompt."""
    prompt = 0 if arm == "text_kd" else set_lengths(data_set)["prompt"]
    return min(prompt + response_of(study, data_set, arm), study.max_length)
