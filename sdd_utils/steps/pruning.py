"""Remove the block of decoder layers that the similarity record names.

Convention: 0-based, half-open. Block (start, n) is layers [start, start + n); embeddings, final norm and LM head
stay (arXiv 2410.09982).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from sdd_utils.models import architecture, checkpoints
from sdd_utils.models.architecture import decoder_layers

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
    """Remove layers [start, start + block_size) from a model, in place.

    Layers are re-numbered, as the KV cache is addressed by their numbers. The configuration object is also edited in
    place, because layers hold references to it.

    Returns:
        the same model; block size 0 leaves it as it is.

    Raises:
        ValueError: the layers that stay compute other logits than the whole model with the block passed over.
    """
    layers, text = decoder_layers(model), model.config.get_text_config()
    pruned = architecture.pruned_config(model.config, start=start, block_size=block_size).get_text_config()
    with _passed_over(layers[start : start + block_size]):
        wanted = checkpoints.some_logits(model)
    text.__dict__.update(pruned.__dict__)
    del layers[start : start + block_size]
    for index, layer in enumerate(layers):
        for module in layer.modules():
            for name in _NUMBERS & vars(module).keys():
                setattr(module, name, index)
    try:
        gap = checkpoints.largest_gap(wanted, checkpoints.some_logits(model))
    except checkpoints.FAILURES as error:
        raise ValueError(f"{_refusal(model, start, block_size)}: {' '.join(str(error).split())[:150]}") from error
    if gap > checkpoints.LARGEST_GAP:
        raise ValueError(f"{_refusal(model, start, block_size)}: its logits are not those with the block passed over")
    return model


def _refusal(model, start: int, block_size: int) -> str:
    return f"{type(model).__name__} cannot do without layers [{start}, {start + block_size}), choose another model"


@contextmanager
def _passed_over(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Let these layers give what they were given."""

    def skip(_, inputs: tuple, named: dict, output):
        states = inputs[0] if inputs else named["hidden_states"]
        return type(output)((states, *output[1:])) if isinstance(output, tuple | list) else states

    hooks = [layer.register_forward_hook(skip, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
