"""Score what other strategies than the paper's leave of a model: each choice of layers is cut, scored and deleted."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from sdd_utils.models import store
from sdd_utils.steps import evaluation, fidelity, pruning


def scored_without(
    model: str | Path, choices: list[dict], *, folder: Callable[[str], Path], scores: Callable[[str], Path],
    answers: dict[str, list[dict]], **settings
) -> Iterator[dict]:  # fmt: skip
    """What each choice leaves of a model, {strategy, draw, removed, scores, fidelity}, as it is done.

    A model is saved, loaded again, scored and deleted, as the block is in 02; a rerun reads what was scored.

    Args:
        folder, scores: where a model of a name lies meanwhile, and where its scores are kept.
        answers: the original's, by data set, see `fidelity.measure_fidelity`.
        settings: of `evaluation.evaluate_model`.
    """
    for choice in choices:
        name = f"n{choice['block_size']}-{choice['strategy']}-{choice['draw']}"
        checkpoint = _saved_without(model, choice, folder=folder(name))
        scored = evaluation.evaluate_model(checkpoint, path=scores(name), **settings)
        (original, tokenizer), (cut, _) = store.load_model(model), store.load_model(checkpoint)
        faithful = fidelity.measure_fidelity(original, cut, tokenizer, answers)
        shutil.rmtree(checkpoint)
        chosen = {key: choice[key] for key in ("strategy", "draw", "removed")}
        yield chosen | {"scores": scored, "fidelity": faithful}


def _saved_without(model: str | Path, choice: dict, *, folder: Path) -> Path:
    whole, tokenizer = store.load_model(model)
    recipe = {"prune": choice["strategy"], "original": store.weights_digest(model), "removed": choice["removed"]}
    cut = pruning.remove_layers(whole, choice["removed"])
    return store.save_model(cut, tokenizer, folder=folder, parent=str(model), recipe=recipe)
