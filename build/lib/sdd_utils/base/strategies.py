"""The ways to choose the layers that are removed, by name: the paper's block, and what it is compared with."""

PAPERS = "angular"  # the paper's strategy, whose block is fine-tuned
STRATEGIES = {
    PAPERS: "the block of smallest angular distance, as in the paper; it is the one that is fine-tuned.",
    "block_influence": "the layers of least Block Influence, wherever they lie (ShortGPT, arXiv 2403.03853).",
    "deepest_but_last": "the block that ends before the last layer (Gromov et al., arXiv 2403.17887).",
    "iterative": "the layer of least Block Influence, again and again, measured anew after each cut "
    "(as in arXiv 2602.01997).",
    "random": "layers drawn at random, three times: the control.",
}
DRAWS = 3  # of `random`


def draws_of(strategy: str) -> int:
    """How many choices a strategy makes for one block size."""
    return DRAWS if strategy == "random" else 1
