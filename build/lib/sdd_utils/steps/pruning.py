"""Remove decoder layers: the block that the similarity record names, or others to compare it with.

Convention: 0-based, half-open. Block (start, n) is layers [start, start + n); embeddings, final norm and LM head
stay (arXiv 2410.09982).
"""

from collections.abc import Sequence

from sdd_utils.models import architecture, checkpoints
from sdd_utils.models.architecture import decoder_layers
from sdd_utils.models.layer_hooks import passed_over

_NUMBERS = {"layer_idx", "layer_id", "layer_number"}  # a layer's number, by architecture


def chosen_start(blocks: list[dict], block_size: int) -> int:
    """Where the block to remove starts, as 01 chose it; 0 for block size 0.

    Args:
        blocks: of the record of 01, {block_size, start, ...} each.

    Raises:
        ValueError: 01 chose no block of this size.
    """
    starts = {block["block_size"]: block["start"] for block in blocks} | {0: 0}
    if block_size not in starts:
        allowed = ", ".join(map(str, sorted(starts)))
        raise ValueError(
            f"block_size is {block_size}, and 01 chose blocks of {allowed} layers: "
            "add it to block_sizes and run notebooks/01_similarity_analysis.ipynb again"
        )
    return starts[block_size]


def remove_block(model, *, start: int, block_size: int):
    """Remove layers [start, start + block_size) from a model, in place, see `remove_layers`; 0 leaves it as it is."""
    depth = model.config.get_text_config().num_hidden_layers
    architecture.check_block(start=start, block_size=block_size, depth=depth)
    return remove_layers(model, range(start, start + block_size))


def remove_layers(model, removed: Sequence[int]):
    """Remove layers from a model, in place, wherever they lie.

    Layers are re-numbered, as the KV cache is addressed by their numbers. The configuration object is also edited in
    place, because layers hold references to it.

    Args:
        removed: numbers in the model as it is, from 0.

    Returns:
        the same model.

    Raises:
        ValueError: the layers that stay compute other logits than the whole model with these passed over.
    """
    layers, text = decoder_layers(model), model.config.get_text_config()
    pruned = architecture.config_without(model.config, removed).get_text_config()
    with passed_over([layers[index] for index in removed]):
        wanted = checkpoints.some_logits(model)
    text.__dict__.update(pruned.__dict__)
    for index in sorted(removed, reverse=True):
        del layers[index]
    for index, layer in enumerate(layers):
        for module in layer.modules():
            for name in _NUMBERS & vars(module).keys():
                setattr(module, name, index)
    try:
        gap = checkpoints.largest_gap(wanted, checkpoints.some_logits(model))
    except checkpoints.FAILURES as error:
        raise ValueError(f"{_refusal(model, removed)}: {' '.join(str(error).split())[:150]}") from error
    if gap > checkpoints.LARGEST_GAP:
        raise ValueError(f"{_refusal(model, removed)}: its logits are not those with the block passed over")
    return model


def _refusal(model, removed: Sequence[int]) -> str:
    first, last = min(removed), max(removed)
    block = last - first + 1 == len(removed)
    named = f"[{first}, {last + 1})" if block else ", ".join(map(str, removed))
    return f"{type(model).__name__} cannot do without layers {named}, choose another model"
