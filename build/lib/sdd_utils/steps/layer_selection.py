"""Which layers to remove, by strategies other than the paper's block; they are compared without fine-tuning.

`angular` and `block_influence` read one measurement of the whole model, `iterative` one after each cut.
`deepest_but_last` and `random` read none. For the strategies see `base.strategies`.
"""

from collections.abc import Callable

import numpy as np

from sdd_utils.base.strategies import draws_of
from sdd_utils.models.architecture import check_block, decoder_layers
from sdd_utils.models.layer_hooks import passed_over
from sdd_utils.steps import similarity
from sdd_utils.steps.similarity import DIGITS, Similarity

MEASURED = ("angular", "block_influence", "iterative")  # these follow from the calibration set


def angular_block(angular_map: np.ndarray, block_size: int) -> list[int]:
    """The layers of the block that `similarity.choose_block` chooses."""
    start = similarity.choose_block(angular_map, block_size)
    return [*range(start, start + block_size)]


def least_influence(influence: np.ndarray, block_size: int) -> list[int]:
    """The layers of least Block Influence, rising; the first ones on a tie.

    Args:
        influence: (layers,), see `Similarity`.
    """
    check_block(start=0, block_size=block_size, depth=len(influence), smallest=1)
    return sorted(np.argsort(influence, kind="stable")[:block_size].tolist())


def deepest_but_last(depth: int, block_size: int) -> list[int]:
    """The block that ends before the last layer (arXiv 2403.17887)."""
    check_block(start=0, block_size=block_size, depth=depth, smallest=1)
    return [*range(depth - 1 - block_size, depth - 1)]


def random_layers(depth: int, block_size: int, *, draw: int) -> list[int]:
    """Layers drawn at random, rising: the same for the same draw, others for each draw and block size."""
    check_block(start=0, block_size=block_size, depth=depth, smallest=1)
    return sorted(np.random.default_rng([block_size, draw]).choice(depth, block_size, replace=False).tolist())


def iterative_order(influence_without: Callable[[list[int]], np.ndarray], layers: int) -> list[int]:
    """Layers in the order in which they go: each time that of least Block Influence, measured without those before.

    Args:
        influence_without: (layers,) Block Influence of a model that passes over the layers that it is given.
        layers: how many are to go.
    """
    order: list[int] = []
    while len(order) < layers:
        influence = influence_without(order).round(DIGITS)
        influence[order] = np.inf
        order.append(int(influence.argmin()))
    return order


def choose_layers(
    model,
    tokenizer,
    measured: Similarity,
    texts: list[str],
    *,
    strategies: list[str],
    block_sizes: list[int],
    **settings,
) -> list[dict]:
    """The layers that each strategy removes at each block size: {strategy, draw, block_size, removed}.

    Args:
        measured: of `measure_similarity` on the texts.
        settings: of `measure_similarity`.
    """
    modules, influence = decoder_layers(model), measured.block_influence.round(DIGITS)

    def influence_without(gone: list[int]) -> np.ndarray:
        with passed_over([modules[layer] for layer in gone]):
            again = similarity.measure_similarity(model, tokenizer, texts, **settings) if gone else measured
        return again.block_influence

    order = iterative_order(influence_without, max(block_sizes)) if "iterative" in strategies else []
    ways: dict[str, Callable[[int, int], list[int]]] = {
        "angular": lambda n, _: angular_block(measured.map, n),
        "block_influence": lambda n, _: least_influence(influence, n),
        "deepest_but_last": lambda n, _: deepest_but_last(len(modules), n),
        "iterative": lambda n, _: sorted(order[:n]),
        "random": lambda n, draw: random_layers(len(modules), n, draw=draw),
    }
    return [
        {"strategy": strategy, "draw": draw, "block_size": n, "removed": ways[strategy](n, draw)}
        for n in block_sizes
        for strategy in strategies
        for draw in range(draws_of(strategy))
    ]


def with_agreement(choices: list[dict], again: list[dict]) -> list[dict]:
    """Choices with the share of their layers that a second calibration set chooses as well.

    Args:
        again: the choices of the second set. Strategies that read none have the agreement None.
    """
    return [
        choice | {"agreement": _shared(choice, other) if choice["strategy"] in MEASURED else None}
        for choice, other in zip(choices, again, strict=True)
    ]


def _shared(choice: dict, other: dict) -> float:
    return len(set(choice["removed"]) & set(other["removed"])) / choice["block_size"]
