"""The comparisons behind the claims, each measured from a study's records by `statistics.estimate`.

Each function raises Missing, with the reason, where the records do not hold the comparison. Cells of the grid (block
size x data set) are fixed; where several are averaged, they share documents, while each training is a draw of its own.
What comes back is that of `statistics.estimate`, against `null`, with `where`: what was averaged, in words.
"""

import numpy as np

from sdd_utils.analysis import model_grid
from sdd_utils.analysis.answer_shift import cosines_by_arm
from sdd_utils.analysis.forgetting import parted
from sdd_utils.analysis.speculation import acceptance_values, drafts_of
from sdd_utils.analysis.statistics import (
    ACCURACY,
    BITS,
    CLOZE,
    Parts,
    averaged_tasks,
    document_values,
    estimate,
    estimate_ratio,
    healed_parts,
    left_out,
    recovered,
    recovery_parts,
    shows_loss,
    stacked,
    stacked_parts,
)
from sdd_utils.base.number_format import percent
from sdd_utils.base.records import of_step


class Missing(LookupError):
    """The records do not hold what a claim is about; the message says what is lacking."""


Pair = tuple[dict[int, dict], dict[int, dict]]  # two models' scores by seed


COMPARED = ("self_data_ft", "sft")


def _arm_pairs(
    records: list[dict], *, lora: tuple | None = None, arms: tuple[str, str] = COMPARED
) -> dict[tuple, Pair]:
    """The scores of two arms, Self-Data FT and SFT if not said otherwise, by (block size, data set)."""
    models, (first, second) = model_grid.main_comparison(records, lora=lora), arms
    pairs = {
        key[1:]: (model_grid.scores_of(models[key]), model_grid.scores_of(models[(second, *key[1:])]))
        for key in models
        if key[0] == first and (second, *key[1:]) in models
    }
    if not pairs:
        named = "SFT and Self-Data FT" if arms == COMPARED else f"{first} and {second}"
        raise Missing(f"no fine-tuning has both {named}")
    return pairs


def _shared_seeds(pairs: list[Pair]) -> list[int]:
    """The seeds that every model of every pair has."""
    seeds = sorted(set.intersection(*(set(model) for pair in pairs for model in pair)))
    if not seeds:
        raise Missing("no training seed is shared by all models of the comparison")
    return seeds


def _recovery_difference(
    pairs: list[Pair], original: dict[str, dict], *, measure: str = ACCURACY, null: float = 0.0
) -> dict:
    """Mean over cells of the difference in recovery, first minus second of each pair."""
    tasks, seeds = averaged_tasks(original, measure=measure), _shared_seeds(pairs)
    if set(tasks) == set(left_out(original, measure=measure)):
        raise Missing(f"the original's {measure.replace('_', ' ')} is clear of chance on no task")
    parts = [
        recovery_parts(
            [first[seed] for seed in seeds], original, minus=[second[seed] for seed in seeds], measure=measure
        )
        for first, second in pairs
    ]
    return estimate_ratio(*stacked_parts(parts), null=null)


def _score_difference(pairs: list[Pair], tasks: list[str], *, null: float = 0.0, level: float = 0.95) -> dict:
    """Mean over cells and tasks of the difference in score, first minus second of each pair."""
    seeds = _shared_seeds(pairs)
    values = [
        [
            document_values([first[seed] for seed in seeds], task, minus=[second[seed] for seed in seeds])
            for task in tasks
        ]
        for first, second in pairs
    ]
    return estimate(stacked(values), null=null, level=level)


def recovery_lead(records: list[dict], *, measure: str = ACCURACY, null: float = 0.0) -> dict:
    """Recovery of Self-Data FT minus that of SFT, mean over block sizes and data sets.

    Args:
        measure: of accuracy, as in the paper, or of choice probability.
    """
    pairs, original = _arm_pairs(records), model_grid.original_scores(records)
    estimated = _recovery_difference(list(pairs.values()), original, measure=measure, null=null)
    return estimated | {"where": _cells(pairs)}


def healed(records: list[dict], *, arm: str, domains: dict[str, list], null: float = 0.0) -> dict:
    """Healed share of bits per byte of one arm on tasks out of its domain, over block sizes and data sets."""
    cells = {
        (n, data_set): (model_grid.scores_of(by_seed), {})
        for (name, n, data_set), by_seed in model_grid.main_comparison(records).items()
        if name == arm
    }
    if not cells:
        raise Missing(f"no fine-tuning has the arm {arm}")
    if arm == "self_data_ft":
        same = _never_rewritten(records)
        cells = {cell: pair for cell, pair in cells.items() if cell[1] not in same}
        if not cells:
            raise Missing("no rewrite was kept, so Self-Data FT learnt the original responses, as SFT did")
    return _healed_share(records, cells, domains=domains, null=null)


def _never_rewritten(records: list[dict]) -> set[str]:
    """The data sets of which no rewrite was kept."""
    made = {r["params"]["data_set"]: r["metrics"]["sets"]["distilled"] for r in of_step(records, "distillation")}
    return {name for name, distilled in made.items() if distilled["fallback_rate"] == 1}


def retention_lead(
    records: list[dict], *, domains: dict[str, list], arms: tuple[str, str] = COMPARED, null: float = 0.0
) -> dict:
    """`healed` of Self-Data FT minus that of SFT: what it forgets less, where neither was trained; or of two `arms`."""
    return _healed_share(records, _arm_pairs(records, arms=arms), domains=domains, null=null)


def _healed_share(records: list[dict], cells: dict[tuple, Pair], *, domains: dict[str, list], null: float) -> dict:
    """Healed share of each cell's first model, minus that of the second where there is one.

    Over cells it is the mean amount healed over the mean amount lost, so a cell counts as much as pruning lost there.
    """
    original, untuned = model_grid.original_scores(records), model_grid.untuned_scores(records)
    seeds = _shared_seeds([(first, second or first) for first, second in cells.values()])
    tasks = {cell: parted(averaged_tasks(original, measure=BITS), cell[1], domains)[1] for cell in cells}
    every = sorted({task for own in tasks.values() for task in own})
    if not all(tasks.values()):
        raise Missing("the study has no task with bits per byte outside the domain of each data set")
    if {*every} <= left_out(original, measure=BITS).keys():
        raise Missing("each task has a single document, which says nothing of others")
    parts = []
    for cell, (first, second) in cells.items():
        minus = [second[seed] for seed in seeds] if second else None
        scores = [first[seed] for seed in seeds]
        part = healed_parts(scores, original, untuned[cell[0]], minus=minus, tasks=every)
        parts.append(_weighted(part, every, own=tasks[cell]))
    tops, losses = stacked_parts(parts)
    if not shows_loss(losses):
        raise Missing("pruning's loss in bits per byte is not clear of 0: there is nothing to heal")
    return estimate_ratio(tops, losses, null=null) | {"where": f"{_cells(cells)}, tasks out of domain"}


def _weighted(parts: Parts, every: list[str], *, own: list[str]) -> Parts:
    """Per task values, scaled so that their mean over all tasks is that over one cell's own."""
    weights = [len(every) / len(own) * (task in own) for task in every]
    tops, bottoms = ([weight * task for weight, task in zip(weights, part, strict=True)] for part in parts)
    return tops, bottoms


def recovery_lead_at_cut(records: list[dict], *, null: float = 0.0) -> dict:
    """`recovery_lead` at the block size whose share of the parameters is nearest to the paper's."""
    pairs, n = _arm_pairs(records), model_grid.nearest_cut(records)
    _check_loss(records, [n])
    pairs = {cell: pair for cell, pair in pairs.items() if cell[0] == n}
    estimated = _recovery_difference(list(pairs.values()), model_grid.original_scores(records), null=null)
    return estimated | {"where": _cells(pairs)}


def _check_loss(records: list[dict], sizes: list[int]) -> None:
    """Raise Missing where pruning lost nothing that the scores can see: then there is no size of a gain to compare."""
    scores = model_grid.untuned_scores(records)
    no_ft = {n: recovered(scores[n], scores[0]) for n in sizes if n in scores}
    if no_ft and all(model["interval"][1] >= 1 for model in no_ft.values()):
        shown = ", ".join(f"{percent(model['recovery'], model['interval'])} at n = {n}" for n, model in no_ft.items())
        raise Missing(f"without fine-tuning recovery is {shown}: the average shows no loss that could be recovered")


def _cells(cells) -> str:
    """Cells of the grid in words, e.g. "n = 4, 6 on alpaca"."""
    sizes, names = ({str(cell[i]) for cell in cells} for i in range(2))
    return f"n = {', '.join(sorted(sizes, key=int))} on {', '.join(sorted(names))}"


def largest_gain(records: list[dict], *, null: float = 0.0) -> dict:
    """The cell with the largest gain in average score, interval and p corrected for the choice (Bonferroni).

    Against a published gain all cells must fall short of it, so there the least certain of them decides.
    """
    pairs, tasks = _arm_pairs(records), averaged_tasks(model_grid.original_scores(records))
    level = 1 - 0.05 / len(pairs)
    gains = {cell: _score_difference([pair], tasks, null=null, level=level) for cell, pair in pairs.items()}
    best = max(gains, key=lambda cell: gains[cell]["estimate"])
    short = [gain["p"] if gain["estimate"] < null else 1.0 for gain in gains.values()]
    p = max(short) if null else min(1.0, gains[best]["p"] * len(pairs))
    return gains[best] | {"p": p, "where": f"{_cells([best])}, the best of {len(pairs)}"}


def gain_over_loss(records: list[dict], *, null: float = 0.0) -> dict:
    """`largest_gain`, where the average shows that pruning lost something."""
    _check_loss(records, sorted({n for n, _ in _arm_pairs(records)}))
    return largest_gain(records, null=null)


def more_rows(records: list[dict], *, null: float = 0.0) -> dict:
    """Recovery of Self-Data FT on the most rows minus that on the fewest, over cells with several numbers of rows."""
    counts: dict[tuple, dict[int, dict]] = {}
    for (arm, n, data_set, rows), by_seed in model_grid.finetuned_models(records).items():
        if arm == "self_data_ft":
            counts.setdefault((n, data_set), {})[rows] = model_grid.scores_of(by_seed)
    cells = {cell: (models[max(models)], models[min(models)]) for cell, models in counts.items() if len(models) > 1}
    if not cells:
        raise Missing("every data set was fine-tuned on with one number of rows only (study key 'scaling')")
    estimated = _recovery_difference(list(cells.values()), model_grid.original_scores(records), null=null)
    return estimated | {"where": _cells(cells)}


def merge_over_parent(records: list[dict], *, parent: float, task_vectors: bool = False, null: float = 0.0) -> dict:
    """Recovery of the SLERP nearest t = 0.5 minus that of the parent at t = 0 or t = 1, over all merges.

    Args:
        task_vectors: whether the merge is that of task vectors, or of whole weights.
    """
    cells: dict[tuple, Pair] = {}
    for record in of_step(records, "merging"):
        params, metrics = record["params"], record["metrics"]
        points = metrics["task_vectors"]["points"] if task_vectors else metrics["points"]
        middle = model_grid.middle_point(points)
        cell = cells.setdefault((params["block_size"], params["data_set"], params["other_data_set"]), ({}, {}))
        for end in (point for point in points if point["t"] == parent):
            cell[0][params["seed"]], cell[1][params["seed"]] = middle["scores"], end["scores"]
    if not any(merged for merged, _ in cells.values()):
        raise Missing("no merge was scored together with its parents (study keys 'merge_pairs', 'slerp_t')")
    estimated = _recovery_difference(list(cells.values()), model_grid.original_scores(records), null=null)
    merges = "; ".join(f"n = {n} of {a} and {b}" for n, a, b in sorted(cells))
    return estimated | {"where": merges}


def over_no_ft(records: list[dict], *, data_set: str, task: str, null: float = 0.0) -> dict:
    """Score on one task, or on its cloze form, of SFT on one data set minus that of No FT, over block sizes."""
    untuned, models = model_grid.untuned_scores(records), model_grid.main_comparison(records)
    tuned = {n: by_seed for (arm, n, name), by_seed in models.items() if (arm, name) == ("sft", data_set)}
    if not tuned:
        raise Missing(f"this study does not fine-tune on {data_set}")
    forms = [form for form in (task, f"{task}{CLOZE}") if all(form in scores for scores in untuned.values())]
    if not forms:
        raise Missing(f"this study does not score {task}")
    pairs = [(model_grid.scores_of(by_seed), dict.fromkeys(by_seed, untuned[n])) for n, by_seed in tuned.items()]
    where = _cells([(n, data_set) for n in tuned]) + ("" if forms[0] == task else " (its cloze form)")
    return _score_difference(pairs, forms[:1], null=null) | {"where": where}


def in_domain(records: list[dict], *, domains: dict[str, list], rank: int | None = None, null: float = 0.0) -> dict:
    """Score on in-domain tasks, Self-Data FT minus SFT.

    Args:
        domains: the tasks of each data set's own domain, by data set.
        rank: at the largest LoRA capacity of at least this rank on all linear layers; None is the study's own capacity.
    """
    scored, lora = model_grid.original_scores(records), _widest(records, rank) if rank else None
    domains = {name: [task for task in tasks if ACCURACY in scored.get(task, {})] for name, tasks in domains.items()}
    cells = {cell: pair for cell, pair in _arm_pairs(records, lora=lora).items() if domains.get(cell[1])}
    if not cells:
        raise Missing("the study names no in-domain task of a data set that was fine-tuned on at this capacity")
    seeds = _shared_seeds(list(cells.values()))
    tasks = sorted({task for _, data_set in cells for task in domains[data_set]})
    estimated = estimate(_in_domain_values(cells, domains, tasks=tasks, seeds=seeds), null=null)
    at = f"rank {lora[0]}, " if lora else ""
    return estimated | {"where": f"{at}{_cells(cells)}, tasks {', '.join(tasks)}"}


def _widest(records: list[dict], rank: int) -> tuple:
    """The largest LoRA capacity of at least this rank on all linear layers, see `model_grid.lora_of`."""
    capacities = {model_grid.lora_of(record) for record in of_step(records, "finetuning")}
    wide = [lora for lora in capacities if (lora[0] or 0) >= rank and lora[2] == "all-linear"]
    if not wide:
        raise Missing(f"no fine-tuning has rank {rank} or more on all linear layers")
    return max(wide)


def _in_domain_values(
    cells: dict[tuple, Pair], domains: dict[str, list], *, tasks: list[str], seeds: list[int]
) -> list[np.ndarray]:
    """Per task (cells, seeds, documents) differences, scaled so that a task's cells without it count with 0."""
    values = []
    for task in tasks:
        differences = []
        for (_, data_set), pair in cells.items():
            first, second = ([model[seed] for seed in seeds] for model in pair)
            weight = len(tasks) / len(domains[data_set]) * (task in domains[data_set])
            differences.append(weight * document_values(first, task, minus=second))
        values.append(np.stack(differences))
    return values


def divergence_difference(records: list[dict], *, null: float = 0.0) -> dict:
    """KL from the original's next-token distribution, Self-Data FT minus SFT, nats per token of its own answers."""
    models = model_grid.main_comparison(records)
    cells = []
    for cell in _arm_pairs(records):
        pair = [models[(arm, *cell)] for arm in ("self_data_ft", "sft")]
        if not all(metrics["fidelity"] for by_seed in pair for metrics in by_seed.values()):
            raise Missing("the study compares no answers with the original's (data_sets, answer_prompts)")
        cells.append(pair)
    seeds = _shared_seeds(cells)
    estimated = estimate(stacked([_per_token(pair, seeds) for pair in cells]), null=null)
    return estimated | {"where": _cells(_arm_pairs(records))}


def _per_token(pair: list[dict[int, dict]], seeds: list[int]) -> list[np.ndarray]:
    """Per data set (seeds, answers) values whose mean is the difference of KL per token, a ratio of sums linearised."""
    values = []
    for name in pair[0][seeds[0]]["fidelity"]:
        first, second = (
            np.array([model[seed]["fidelity"][name]["documents"] for seed in seeds], dtype=float) for model in pair
        )
        tokens = first[..., 2]
        kl = first[..., 1] - second[..., 1]
        ratio = kl.sum() / tokens.sum()
        values.append(ratio + (kl - ratio * tokens) / tokens.mean())
    return values


def acceptance_lead(records: list[dict], *, measure: str, null: float = 0.0) -> dict:
    """Acceptance of drafts on the original's own answers, Self-Data FT minus SFT, over block sizes and data sets.

    Args:
        measure: see `speculation.MEASURES`.
    """
    models: dict[tuple, dict[int, dict]] = {}
    for draft in drafts_of(records):
        cell = draft["block_size"], draft["data_set"]
        models.setdefault((draft["arm"], *cell), {})[draft["seed"]] = draft
    cells = [key[1:] for key in models if key[0] == "self_data_ft" and ("sft", *key[1:]) in models]
    if not cells:
        raise Missing("no draft model was fine-tuned by both SFT and Self-Data FT (study key 'speculation')")
    values = []
    for cell in cells:
        pair = [acceptance_values(models[arm, *cell], measure=measure) for arm in ("self_data_ft", "sft")]
        values.append([first - second for first, second in zip(*pair, strict=True)])
    return estimate(stacked(values), null=null) | {"where": _cells(cells)}


def cosine(records: list[dict], *, arm: str, minus: str | None = None, how: str = "greedy", null: float = 0.0) -> dict:
    """Cosine to the original's answers of one arm, or minus that of another, over block sizes and data sets.

    Args:
        how: which answers are compared, see `answer_shift.cosines_by_arm`.
    """
    cells: dict[tuple, dict[int, np.ndarray]] = {}
    for record in of_step(records, "embedding_similarity"):
        cosines, params = cosines_by_arm(record, how), record["params"]
        if {arm, minus} - {None} <= set(cosines):
            first, second = (np.array(cosines[name]["similarities"]) if name else 0.0 for name in (arm, minus))
            cells.setdefault((params["block_size"], params["data_set"]), {})[params["seed"]] = first - second
    if not cells:
        raise Missing("the records hold no embedding similarity of these arms")
    seeds = _shared_seeds([(cell, cell) for cell in cells.values()])
    by_set: dict[str, list] = {}
    for (_, data_set), cell in sorted(cells.items()):
        by_set.setdefault(data_set, []).append([cell[seed] for seed in seeds])
    return estimate([np.array(values) for values in by_set.values()], null=null) | {"where": _cells(cells)}


def share_cut(records: list[dict], *, null: float = 0.0) -> dict:
    """Share of Llama-3.1-8B's parameters in the block of 6 layers: counted, so there is nothing to test."""
    pruned = {record["params"]["block_size"]: record for record in of_step(records, "pruning")}
    if 6 not in pruned:
        raise Missing("the study removes no block of 6 layers")
    model, cut = pruned[6]["params"]["model"], pruned[6]["metrics"]["accounting"]["cut_parameters"]
    if "Llama-3.1-8B" not in model:
        raise Missing(f"the number is Llama-3.1-8B's; 6 layers of {model} are {100 * cut:.2f} % of its parameters")
    counted = {"estimate": cut, "interval": None, "p": None, "detectable": None, "seeds": 0, "documents": 0}
    return counted | {"where": f"n = 6, {model}"}
