"""What the tests of figures draw, and how they read what was drawn."""

import numpy as np

from sdd_utils.data.arms import ARMS

RANDOM = np.random.default_rng(0)


def row(arm, n, data_set="", **more):
    """A row of results with an interval that is wider above than below."""
    value = RANDOM.random()
    return {"arm": arm, "block_size": n, "data_set": data_set, "recovery": value} | more | {
        "interval": [value - 0.1 * RANDOM.random(), value + 0.2]
    }  # fmt: skip


def study(data_sets, *, arms=tuple(ARMS), sizes=(2, 4, 6)):
    """The rows of a study, not in order: the original, No FT and every arm on every data set, and a merge."""
    tuned = [row(arm, n, name) for name in data_sets for n in reversed(sizes) for arm in reversed(arms)]
    return [row("merged", sizes[0], "a + b"), *tuned, *(row("no_ft", n) for n in sizes), row("original", 0)]


def scores(arms):
    """Scores of these arms on a task with choices, one without a score of guessing, and a worked answer."""
    return {
        arm: {
            "facts": {
                "chance": 0.25,
                "accuracy": {"value": 0.3 + 0.1 * i, "stderr": 0.05},
                "choice_probability": {"value": 0.3 + 0.02 * i, "stderr": 0.005},
                "gold_bits_per_byte": {"value": 1.2 - 0.1 * i, "stderr": 0.03},
            },
            "gsm8k": {"chance": 0.0, "accuracy": {"value": 0.5 - 0.1 * i, "stderr": 0.02}},
            "pydoc_gold": {"chance": 0.0, "gold_bits_per_byte": {"value": 2.0 - 0.1 * i, "stderr": 0.04}},
        }
        for i, arm in enumerate(arms)
    }


def healed(data_sets, *, arms=("sft", "self_data_ft"), sizes=(6,), own=("a",)):
    """Rows with healed shares, not in order; only the data sets of `own` have tasks of their domain."""
    rows = study(data_sets, arms=arms, sizes=sizes)
    for line in rows:
        if line["arm"] in arms:
            middle = RANDOM.random()
            outside = {"tasks": ["facts"], "share": middle, "interval": [middle - 0.1, middle + 0.2]}
            inside = {"tasks": ["own_task"], "share": middle + 0.6, "interval": [middle + 0.4, middle + 0.7]}
            line["healed_out_of_domain"] = outside
            line["healed_in_domain"] = inside if line["data_set"] in own else None
    return rows


def damage_points(*, sizes=(2, 4, 6)):
    """Damage of every strategy at these numbers of layers, and of two arms that were fine-tuned."""
    models = [("angular", "no_ft"), ("block_influence", "no_ft"), ("deepest_but_last", "no_ft"), ("random", "no_ft")]
    models += [("iterative", "no_ft"), ("angular", "sft"), ("angular", "self_data_ft")]
    points = []
    for measure in ("lost_bits_per_byte", "kl"):
        for strategy, arm in models:
            for n in sizes:
                value = n * (0.1 + RANDOM.random())
                point = {"strategy": strategy, "arm": arm, "block_size": n, "measure": measure, "tasks": ["facts"]}
                draws = [0.5 * value, value, 1.5 * value]
                points.append(point | {"value": value, "interval": [0.9 * value, 1.2 * value], "draws": draws})
    return points


def intervals(container):
    """The (low, high) ends of an errorbar container's bars, along the axis that they lie on."""
    (bars,) = container.lines[2]
    return np.array([segment[:, 0 if container.has_xerr else 1] for segment in bars.get_segments()])


def lines(axis):
    """The errorbar containers of an axis by name."""
    return {container.get_label(): container for container in axis.containers}
