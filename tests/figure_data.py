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


def speculation(arms=("sft", "self_data_ft"), *, sizes=(3, 6, 9), tuned=6):
    """The metrics of 07: acceptance falls with the layers that are cut, and fine-tuning raises it."""
    drafts = {f"n{n}": draft("no_ft", n, 0.95 - 0.08 * n) for n in sizes}
    for place, arm in enumerate(arms, start=1):
        for seed in (0, 1, 2):
            share = 0.5 + 0.05 * place + 0.01 * seed
            drafts[f"n{tuned}-a-s{seed}-{arm}"] = draft(arm, tuned, share, data_set="a", seed=seed)
    seconds = {n: {"original": 0.03, "draft": 0.03 * (1 - n / 40), "verification": 0.045} for n in sizes}
    costs = [{"block_size": n, "matmul_share": 1 - n / 38, "seconds": seconds[n]} for n in sizes]
    decoded = {"prompts": 8, "tokens": 320, "same_texts": 8, "passes": 180, "replayed_passes": 180}
    decoded |= {"greedy_acceptance": 0.5, "seconds": {"plain": 10.0, "assisted": 14.0}}
    decoding = [{"draft": f"n{tuned}-a-s0-{arms[-1]}", "draft_tokens": 4} | decoded]
    return {"weights": "abc", "drafts": drafts, "costs": costs, "decoding": decoding}


def draft(arm, n, share, *, data_set="", seed=None):
    """A draft of 07 whose greedy acceptance is this share, and whose sampling acceptance is lower by 0.05."""
    tokens = RANDOM.integers(20, 48, (2, 12))
    sums = np.clip(tokens * (share + 0.05 * RANDOM.standard_normal((2, 12))), 0, tokens)
    documents = np.stack([sums, 0.9 * sums, tokens], axis=-1)
    acceptance = {
        name: {
            "greedy_acceptance": own[:, 0].sum() / own[:, 2].sum(),
            "sampling_acceptance": own[:, 1].sum() / own[:, 2].sum(),
            "tokens": int(own[:, 2].sum()),
            "documents": own.tolist(),
        }
        for name, own in zip("ab", documents, strict=True)
    }
    return {"arm": arm, "block_size": n, "data_set": data_set, "seed": seed, "acceptance": acceptance}


def quantization(arms=("no_ft", "self_data_ft")):
    """The metrics of 08: every step down in bits costs quality, and so does a cut."""
    models = {}
    for place, arm in enumerate(("original", *arms)):
        for step, (kind, width) in enumerate({"bf16": 2, "int8": 1.2, "nf4": 0.8}.items()):
            kl = 0.02 * 4**step * (step > 0) + (1.5 / place**0.5 if place else 0.0)
            choice = 0.5 - 0.02 * step - 0.04 * (place > 0)
            measured = {"value": choice, "stderr": 0.02, "documents": [choice] * 4}
            fidelity = {name: {"nll": 1.0, "kl": kl, "tokens": 9, "documents": [[9.0, 9 * kl, 9]]} for name in "ab"}
            seconds = {"decoding": 0.02 + 0.01 * step, "reading": 0.2 + 0.1 * step}
            models[f"{arm}-{kind}"] = {
                "arm": arm, "block_size": 6 * (place > 0), "data_set": "a" * (place > 1), "format": kind,
                "bytes": int(1e6 * width * (134 - 22 * (place > 0))), "seconds": seconds,
                "scores": {"facts": SCORE | {"choice_probability": measured}}, "fidelity": fidelity,
            }  # fmt: skip
    return {"weights": "abc", "engine": "bitsandbytes 1", "read_tokens": 128, "models": models}


SCORE = {"metric": "acc", "filter": "none", "n": 4, "limit": 4, "chance": 0.25, "shots": 0, "chat_template": False}
SCORE |= {"version": "1.0", "engine": "transformers", "all": {}}
