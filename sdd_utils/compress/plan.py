"""What a compression will take: seconds, memory and disk of each stage, by the arithmetic of `sweep.costs`."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import tabulate

from sdd_utils.base import precision
from sdd_utils.compress.settings import Settings
from sdd_utils.data.rows import load_rows, question_of
from sdd_utils.sweep import costs, memory, plan, token_lengths
from sdd_utils.sweep.costs import CostModel

GB, MINUTE = 1e9, 60
BYTES_PER_TOKEN = 4  # of English text, on average


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage in words, its seconds, and bytes of memory and of disk."""

    what: str
    seconds: float
    memory: float
    disk: float = 0


def stages_of(settings: Settings) -> dict[str, Stage]:
    """The stages in their order. They run one after the other, so each has all cores of the machine."""
    _learn_lengths(settings)
    model = cost_model(settings)
    at_once = model.machine.jobs_at_once
    n, name, (rows,) = settings.block_size, settings.data_set, settings.data_sets.values()
    trained = settings.epochs * rows * token_lengths.trained_row(settings, name, settings.arm)

    def peak(step: str) -> float:
        return memory.peak(model, SimpleNamespace(step=step, parameters={"block_size": n, "data_set": name}))

    def stage(what: str, seconds: float, *, memory: float, disk: float = 0) -> Stage:
        return Stage(what=what, seconds=seconds / at_once, memory=memory, disk=disk)

    writes = {"memory": 2 * memory.weights(model, 0), "disk": model.bytes_of(n)}
    twice = writes | {"disk": 2 * writes["disk"]}  # in the work and in the folder that is asked for
    healing = costs.start_seconds(model, n) + costs.train_seconds(model, n, trained)
    rewriting, scoring = costs.distillation(model, name).seconds, sum(_scoring(model, settings, m) for m in (0, n, n))
    asked = "score and ask the original, the pruned and the healed model"
    return {
        "similarity": stage("find the block", costs.similarity(model).seconds, memory=peak("similarity")),
        "pruning": stage("cut it out", costs.start_seconds(model, 0, n), **writes),
        "distillation": stage("the uncut model rewrites the data", rewriting, memory=peak("distillation")),
        "fine-tuning": stage("heal the pruned model", healing, memory=peak("finetuning")),
        "merging": stage("add the adapter to the weights", costs.start_seconds(model, n, n), **twice),
        "evaluation": stage(asked, scoring, memory=peak("pruning")),
    }


def cost_model(settings: Settings) -> CostModel:
    """What the estimates start from: two cores of a CPU, or an H100 where there is a GPU."""
    hardware = "h100-80gb" if precision.device() == "cuda" else "cpu-2-cores"
    return plan.cost_model(settings, hardware=hardware)[0]


def _scoring(model: CostModel, settings: Settings, n: int) -> float:
    lengths = token_lengths.set_lengths(settings.data_set)
    held_out = settings.held_out * (lengths["prompt"] + lengths["response"])
    answers = {"rows": 2 * settings.answer_prompts, "context": lengths["prompt"], "new": settings.answer_tokens}
    answering = costs.decode_seconds(model, n, batch=settings.generation_batch, **answers)
    reading = costs.evaluation(model, n).seconds + costs.read_seconds(model, n, held_out)
    return costs.start_seconds(model, n, n, n) + reading + answering


def _learn_lengths(settings: Settings) -> None:
    """Give the arithmetic the lengths of the user's rows, in tokens."""
    name = settings.data_set
    if name not in settings.own_data:
        return
    rows = load_rows(name, split="train", rows=settings.data_sets[name], own_data=settings.own_data)
    prompt, response = (sum(len(text.encode()) for text in texts) / len(rows) / BYTES_PER_TOKEN
                        for texts in (map(question_of, rows), (row["response"] for row in rows)))  # fmt: skip
    token_lengths.learn(name, prompt=prompt, response=response, rewrite_prompt=prompt + response, rows=len(rows))


def table(stages: dict[str, Stage]) -> str:
    """The stages as text, with the sum of times and disk and the largest memory last.

    Minutes are those of the machine that `cost_model` names; this one may take several times as long.
    """
    every = [*stages.values()]
    seconds, disk = (sum(getattr(stage, name) for stage in every) for name in ("seconds", "disk"))
    whole = Stage(what="", seconds=seconds, memory=max(stage.memory for stage in every), disk=disk)
    lines = [
        {"stage": name, "what": stage.what, "minutes": f"{stage.seconds / MINUTE:.1f}",
         "memory, GB": f"{stage.memory / GB:.1f}", "disk, GB": f"{stage.disk / GB:.1f}" if stage.disk else "-"}
        for name, stage in {**stages, "all": whole}.items()
    ]  # fmt: skip
    return tabulate.tabulate(lines, headers="keys", tablefmt="simple", disable_numparse=True)


def announce(stages: dict[str, Stage], say: Callable[[str], None]) -> Callable[[str], None]:
    """A function that says which stage begins, what it does, and what it and all that is left will take."""
    names = [*stages]

    def begin(name: str) -> None:
        place = names.index(name)
        left = sum(stages[later].seconds for later in names[place:])
        took, all_ = (_time(seconds) for seconds in (stages[name].seconds, left))
        say(f"[{place + 1}/{len(names)}] {name}: {stages[name].what}, about {took}; {all_} left in all")

    return begin


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{max(round(seconds / MINUTE), 1)} min"
