"""The whole compression in order; every stage finds again what a former call has made.

Beside the folder that is asked for lies one for work, `<out>.work`, with checkpoints, texts, adapter and scores.
"""

import glob
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from sdd_utils.base.files import remove_unfinished, whole_folder, write_text
from sdd_utils.compress import card, plan, stages
from sdd_utils.compress.request import Request, data_set_of, model_of
from sdd_utils.compress.settings import Settings, check_settings
from sdd_utils.models import architecture, store
from sdd_utils.study.paths import Run
from sdd_utils.sweep.reproduce import locked

ANSWERS = "answers.md"  # in the work: the models' answers to held-out questions
_OURS = "manifest.json"  # says where checkpoints of the work lie, so it stays behind


def work_folder(out: Path) -> Path:
    """Where the work on a folder lies."""
    return out.with_name(f"{out.name}.work")


def check_out(out: Path, asked: dict | None = None) -> None:
    """Raise OSError, in one sentence, where a folder cannot be made, or holds what this request did not make.

    Args:
        asked: what the folder is asked for, see `asked_of`; None looks at foreign files only.
    """
    _check_place(out)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    fix = "name another folder by OUT=…, or remove it"
    if not (out / card.RESULT).is_file():
        raise FileExistsError(f"{out} exists and is no compressed model: name another folder by OUT=…")
    known = card.files_of(out)
    here = (path.relative_to(out).as_posix() for path in sorted(out.rglob("*")) if path.is_file())
    if foreign := [name for name in here if name not in known]:
        raise FileExistsError(f"{out} holds {foreign[0]}, which this command did not write: move it, or {fix}")
    answered = _answered(out) if asked else {}
    if asked and {name: answered.get(name) for name in asked} != asked:
        raise FileExistsError(f"{out} holds the answer to another request: {fix}")


def _check_place(out: Path) -> None:
    place = next(parent for parent in out.absolute().parents if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise PermissionError(f"{out} cannot be made, as nothing can be written to {place}: name another one by OUT=…")
    if (work := work_folder(out)).exists() and not work.is_dir():
        raise FileExistsError(f"{work} is a file, where the work on {out.name} belongs: move it, or name another OUT")


def _answered(out: Path) -> dict:
    """What a finished folder was asked for, by its recipe, as `asked_of` says it."""
    try:
        recipe = yaml.safe_load((out / card.RECIPE).read_text("utf-8"))
        return {name: recipe[name] for name in ("request", "settings")} | recipe["made"]
    except (OSError, yaml.YAMLError, UnicodeError, KeyError, TypeError):
        raise FileExistsError(f"{out / card.RECIPE} is damaged: remove {out}, and the same command makes it") from None


def asked_of(request: Request, settings: Settings, **digests: str) -> dict:
    """What a folder is asked for: the request, all settings, and the rows.

    Args:
        digests: `weights` of the model, where they are here.
    """
    return card.asked(request, settings) | {"data": stages.data_fingerprint(settings)} | digests


def compress(
    request: Request,
    settings: Settings,
    *,
    out: Path,
    block: dict | None = None,
    say: Callable[[str], None] = print,
) -> card.Result:
    """Make the folder `out`, whole or not at all.

    Args:
        block: {start, block_size} of a recipe; another one is an error.

    Raises:
        ValueError, OSError: what a stage cannot do, in one sentence.
        RuntimeError: another process works on the same folder.
    """
    files = Run(work_folder(out))
    with locked(files.folder):
        _clear(out, files)
        asked = asked_of(request, settings, weights=store.weights_digest(settings.model))
        check_out(out, asked)
        with timed(plan.announce(plan.stages_of(settings), say)) as (begin, seconds):
            result, model = run(settings, files, begin=begin, block=block)
        check_out(out, asked)  # hours later
        write_folder(out, request=request, settings=settings, result=result, model=model, seconds=seconds)
    return result


def _clear(out: Path, files: Run) -> None:
    """Take away what killed processes were writing; a folder that was just being replaced comes back."""
    remove_unfinished(files.folder)
    for path in sorted(out.parent.glob(f".{glob.escape(out.name)}.unfinished-*"), reverse=True):
        if path.name.endswith("-former") and not out.exists():
            path.rename(out)
        else:
            shutil.rmtree(path)


@contextmanager
def timed(begin: Callable[[str], None]) -> Iterator[tuple[Callable[[str], None], dict[str, float]]]:
    """`begin`, and the seconds that each stage took which it began; they are there at the end."""
    starts, seconds = {}, {}

    def started(name: str) -> None:
        begin(name)
        starts[name] = time.monotonic()

    yield started, seconds
    ends = [*starts.values(), time.monotonic()][1:]
    seconds |= {name: end - start for (name, start), end in zip(starts.items(), ends, strict=True)}


def run(
    settings: Settings, files: Run, *, begin: Callable[[str], None], block: dict | None = None
) -> tuple[card.Result, Path]:
    """All stages; returns what they found, and the folder of the healed model."""
    begin("similarity")
    measured = stages.measure_similarity(settings, files)
    if block and {name: measured["block"][name] for name in block} != block:
        here, there = measured["block"]["start"], block["start"]
        raise ValueError(
            f"the recipe cut a block at layer {there}, here it is one at {here}: use its precision (SDD_DTYPE)"
        )
    begin("pruning")
    checkpoint = stages.prune(settings, files, start=measured["block"]["start"])
    begin("distillation")
    made = stages.rewrite(settings, files)
    begin("fine-tuning")
    adapter, training = stages.heal(settings, files, checkpoint=checkpoint, made=made)
    begin("merging")
    healed, lost = stages.merge(files, checkpoint=checkpoint, adapter=adapter)
    begin("evaluation")
    models = {"original": settings.model, "no_ft": checkpoint, settings.arm: healed}
    known = {"similarity": measured, "made": made, "training": training, "lost": lost}
    return evaluate(settings, files, models=models, **known), healed


def evaluate(
    settings: Settings,
    files: Run,
    *,
    models: dict[str, str | Path],
    similarity: dict,
    made: stages.Rewritten,
    training: dict,
    lost: float,
) -> card.Result:
    """Score the models and let them answer; what the former stages found goes into the result as well.

    Args:
        models: names or folders by `original`, `no_ft` and the arm.
    """
    named = {name: {"model": model, "name": store.weights_digest(model)} for name, model in models.items()}
    answers = {name: stages.answer(settings, files, **model) for name, model in named.items()}
    counts = [architecture.account(store.load_config(models[name])).parameters for name in ("original", settings.arm)]
    return card.Result(
        similarity=similarity,
        parameters=(counts[0], counts[1]),
        rewrites=made.statistics,
        training=training,
        lost=lost,
        scores={name: stages.score(settings, files, **model) for name, model in named.items()},
        similarities=stages.answer_similarities(settings, answers),
        answers=answers,
        weights=named["original"]["name"],
        data=stages.data_fingerprint(settings),
    )


def write_folder(
    out: Path,
    *,
    request: Request,
    settings: Settings,
    result: card.Result,
    model: Path,
    seconds: dict[str, float] | None = None,
) -> None:
    """The healed model's files with its card, recipe, numbers and figures. Texts of the data stay in the work."""
    write_text(work_folder(out) / ANSWERS, card.answers_as_text(result))
    with whole_folder(out) as scratch:
        shutil.copytree(model, scratch, dirs_exist_ok=True, ignore=shutil.ignore_patterns(_OURS))
        card.draw(scratch, result)
        card.write_recipe(scratch, card.recipe(request, settings, result))
        card.write_card(scratch, request=request, settings=settings, result=result)
        card.write_result(scratch, result, seconds=seconds or {})


def read_recipe(path: Path, *, model: str = "", data: str = "") -> tuple[Request, Settings, dict]:
    """The request, the settings and what they were applied to, as `card.recipe` wrote them.

    Args:
        path: of the recipe, or of its folder.
        model, data: where these lie here, if not under the names in the recipe.

    Raises:
        ValueError, FileNotFoundError: no recipe, or one of another model or of other data; in one sentence.
    """
    path = path / card.RECIPE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"recipe {str(path)!r} does not exist: name a compressed folder, or its {card.RECIPE}")
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
        named = {name: value for name, value in (("model", model), ("data", data)) if value}
        request, made = Request(**content["request"] | named), content["made"]
        weights, data_then = made["weights"], made["data"]
        made["block"] = {name: int(made["block"][name]) for name in ("start", "block_size")}
        check_settings(content["settings"], where=str(path))
        settings = Settings(**content["settings"], model=model_of(request), own_data=data_set_of(request)[1])
    except (yaml.YAMLError, UnicodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no recipe of a compression: take it from a compressed folder") from error
    _check_recipe(settings, weights=weights, data=data_then)
    return request, settings, made


def _check_recipe(settings: Settings, *, weights: str, data: str) -> None:
    if store.weights_digest(settings.model) != weights:
        raise ValueError(f"the recipe was made of other weights than {settings.model!r} has: name its model by MODEL=…")
    if stages.data_fingerprint(settings) != data:
        raise ValueError("the recipe was made of other rows: name the file that they came from by DATA=…")
