"""The arms of the comparison: which response of a row each of them learns, and by which loss. All else is the same.

A new arm is one function here, its line in `ARMS`, its loss in `LOSSES` if that is not cross-entropy, and its name and
look in `report.figures`. A function takes the training rows and the sets that 03 wrote, {name: {row id: row of the
set}}, and returns a response per row: a text, the token ids of plain text, or None for a row that the arm does not
learn.
"""

import hashlib

SETS = ("distilled", "self_generated")


def sft(rows: list[dict], sets: dict) -> list[str]:
    """The original responses."""
    return [row["response"] for row in rows]


def self_data_ft(rows: list[dict], sets: dict) -> list[str]:
    """The unpruned model's rewrites of the original responses (arXiv 2410.09982)."""
    return [sets["distilled"][row["id"]]["response"] for row in rows]


def first_attempt_ft(rows: list[dict], sets: dict) -> list[str]:
    """Of the rewrites only those that were kept at the first attempt; all other rows are original."""
    distilled = [sets["distilled"][row["id"]] for row in rows]
    return [
        other["response"] if other["attempt"] == 1 else row["response"]
        for row, other in zip(rows, distilled, strict=True)
    ]


def kept_rows_ft(rows: list[dict], sets: dict) -> list[str | None]:
    """The rewrites that were kept, and no other row."""
    distilled = [sets["distilled"][row["id"]] for row in rows]
    return [other["response"] if other["source"] == "distilled" else None for other in distilled]


def self_generated_ft(rows: list[dict], sets: dict) -> list[str]:
    """The unpruned model's own answers, written without sight of the original responses."""
    return [sets["self_generated"][row["id"]]["response"] for row in rows]


def mixed_ft(rows: list[dict], sets: dict) -> list[str]:
    """Half the rows original, half distilled: the ids whose hashes are smaller stay original, the odd one distils."""
    order = sorted(rows, key=lambda row: hashlib.sha256(f"mixed_ft {row['id']}".encode()).digest())
    original = {row["id"] for row in order[: len(rows) // 2]}
    distilled = self_data_ft(rows, sets)
    return [row["response"] if row["id"] in original else other for row, other in zip(rows, distilled, strict=True)]


def logit_kd(rows: list[dict], sets: dict) -> list[str]:
    """The original responses, but of each token the unpruned model's distribution: forward KL, not cross-entropy."""
    return sft(rows, sets)


def self_data_kd(rows: list[dict], sets: dict) -> list[str]:
    """The same forward KL on the unpruned model's rewrites."""
    return self_data_ft(rows, sets)


def text_kd(rows: list[dict], sets: dict) -> list[list[int]]:
    """A control, the same forward KL on plain calibration text, of each row as many tokens as its original response."""
    return [sets["text"][row["id"]]["input_ids"] for row in rows]


def on_policy(rows: list[dict], sets: dict) -> list[str]:
    """Reverse KL to the unpruned model on answers that the pruned one writes as it learns, no longer than originals."""
    return sft(rows, sets)


_FINE_TUNED = (sft, self_data_ft, first_attempt_ft, kept_rows_ft, self_generated_ft, mixed_ft)
_DISTILLED = (logit_kd, self_data_kd, text_kd, on_policy)
ARMS = {arm.__name__: arm for arm in (*_FINE_TUNED, *_DISTILLED)}
CROSS_ENTROPY, FORWARD_KL, REVERSE_KL = "cross_entropy", "forward_kl", "reverse_kl"
LOSSES = {"logit_kd": FORWARD_KL, "self_data_kd": FORWARD_KL, "text_kd": FORWARD_KL, "on_policy": REVERSE_KL}


def loss_of(arm: str) -> str:
    """The loss that an arm learns by."""
    return LOSSES.get(arm, CROSS_ENTROPY)


def scored_arms(arms: list[str]) -> list[str]:
    """Those of these arms that learn the unpruned model's distributions, which 03 has to write."""
    return [arm for arm in arms if loss_of(arm) == FORWARD_KL]


def sets_of(arms: list[str]) -> tuple[str, ...]:
    """The sets that these arms learn from and the unpruned model has to write; `distilled` is always among them."""
    return SETS if "self_generated_ft" in arms else SETS[:1]


def files_of(arms: list[str]) -> tuple[str, ...]:
    """All sets that these arms learn from: those that the unpruned model writes, and plain text."""
    return (*sets_of(arms), *(("text",) if "text_kd" in arms else ()))


def arms_in(rows: list[dict]) -> list[str]:
    """The arms that rows {arm, ...} of a result are about, in their usual order."""
    return [arm for arm in ARMS if any(row["arm"] == arm for row in rows)]
