"""The numbers that arXiv 2410.09982 publishes, each with its source; nothing here is ours.

They were read in the paper's abstract or in the summary of it that this project started from, not in its full
text; so the source says just that and names no section.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One published number. `value` is in `unit`; `source` says where it stands."""

    key: str
    what: str
    value: float
    unit: str
    source: str


NUMBERS = (
    Published("layers_n6", "decoder layers left, n = 6, Llama-3.1-8B", 26, "layers", "abstract or summary"),
    Published("parameters_n6", "parameters left, n = 6, Llama-3.1-8B", 6.72, "billion", "abstract or summary"),
    Published("recovery_self_data_ft", "recovery, Self-Data FT, n = 6", 91.2, "%", "abstract or summary"),
    Published("recovery_sft", "recovery, SFT, n = 6", 81.7, "%", "abstract or summary"),
    Published("gain", "largest gain of Self-Data FT over SFT, average accuracy", 8, "points", "abstract or summary"),
    Published("cut_n6", "FLOPs saved, n = 6 (the share of parameters)", 16.30, "%", "abstract or summary"),
    Published(
        "embedding_self_data_ft",
        "embedding similarity, Self-Data FT, OpenMathInstruct",
        0.92,
        "cosine",
        "abstract or summary",
    ),
    Published("embedding_sft", "embedding similarity, SFT, OpenMathInstruct", 0.83, "cosine", "abstract or summary"),
)


def published_number(key: str) -> Published:
    """A published number by its key; KeyError if there is none."""
    return {published.key: published for published in NUMBERS}[key]
