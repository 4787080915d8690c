"""The arms of the comparison: which response of a row each of them learns. Everything else is the same in all arms.

A new arm is one function here, its line in `ARMS`, and its name and look in `report.figures`. A function takes the
training rows and the sets that the unpruned model wrote, {name: {row id: row of the set}}, and returns a response per
row.
"""

import hashlib

SETS = ("distilled", "self_generated")


def sft(rows: list[dict], sets: dict) -> list[str]:
    """The original responses."""
    return [row["response"] for row in rows]


def self_data_ft(rows: list[dict], sets: dict) -> list[str]:
    """The unpruned model's rewrites of the original responses (arXiv 2410.09982)."""
    return [sets["distilled"][row["id"]]["response"] for row in rows]


def self_generated_ft(rows: list[dict], sets: dict) -> list[str]:
    """The unpruned model's own answers, written without sight of the original responses."""
    return [sets["self_generated"][row["id"]]["response"] for row in rows]


def mixed_ft(rows: list[dict], sets: dict) -> list[str]:
    """Half the rows original, half distilled: the ids whose hashes are smaller stay original, the odd one distils."""
    order = sorted(rows, key=lambda row: hashlib.sha256(f"mixed_ft {row['id']}".encode()).digest())
    original = {row["id"] for row in order[: len(rows) // 2]}
    distilled = self_data_ft(rows, sets)
    return [row["response"] if row["id"] in original else other for row, other in zip(rows, distilled, strict=True)]


ARMS = {arm.__name__: arm for arm in (sft, self_data_ft, self_generated_ft, mixed_ft)}


def sets_of(arms: list[str]) -> tuple[str, ...]:
    """The sets that these arms learn from and the unpruned model has to write; `distilled` is always among them."""
    return SETS if "self_generated_ft" in arms else SETS[:1]


def arms_in(rows: list[dict]) -> list[str]:
    """The arms that rows {arm, ...} of a result are about, in their usual order."""
    return [arm for arm in ARMS if any(row["arm"] == arm for row in rows)]
