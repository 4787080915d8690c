"""Remove the block of decoder layers that the similarity record names.

Convention: 0-based, half-open. Block (start, n) is layers [start, start + n); embeddings, final norm and LM head
stay (arXiv 2410.09982).
"""

from sdd_utils.models import architecture
from sdd_utils.models.architecture import decoder_layers


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

    `layer_idx` is re-numbered in every kept layer, as the KV cache is addressed by it. The configuration object
    is also edited in place, because layers hold references to it.

    Returns:
        the same model; block size 0 leaves it as it is.
    """
    layers, text = decoder_layers(model), model.config.get_text_config()
    pruned = architecture.pruned_config(model.config, start=start, block_size=block_size).get_text_config()
    text.__dict__.update(pruned.__dict__)
    del layers[start : start + block_size]
    for index, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    return model
