"""Which block of layers changes the residual stream least: the angular-distance map and Block Influence.

State l is the *input* of decoder layer l, so state 0 is the embedding output and state L the last layer's own
output, before the final norm. The distance between states l and l + n says how much the n layers [l, l + n) do
(arXiv 2410.09982; Gromov et al. 2403.17887, equations 6 and 7). One pass serves every block size.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from sdd_utils.engine import probe
from sdd_utils.models import architecture
from sdd_utils.models.architecture import check_block, decoder_layers, text_decoder

DIGITS = 6  # of a distance


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """What one pass over the calibration set gives.

    Attributes:
        distances: (samples, L + 1, L + 1) angular distances in 0..1 between states, at each sample's last token.
        block_influence: (L,) 1 - mean cosine between a layer's input and output over all tokens (ShortGPT).
    """

    distances: np.ndarray
    block_influence: np.ndarray

    @property
    def map(self) -> np.ndarray:
        """(L + 1, L + 1) distances averaged over samples, rounded as the record keeps them.

        Blocks are chosen from this map alone, so that the record shows the very numbers that decided.
        """
        return self.distances.mean(axis=0, dtype=np.float64).round(DIGITS)


@contextmanager
def _states_seen_by(layers: nn.ModuleList, see: Callable[[int, Tensor], None]):
    """Call `see(l, state)` for l = 0..L during a forward pass, without keeping any state alive."""
    handles = []
    for index, layer in enumerate(layers):
        hook = lambda _, args, kwargs, index=index: see(index, args[0] if args else kwargs["hidden_states"])  # noqa: E731
        handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    last = lambda _, __, output: see(len(layers), output[0] if isinstance(output, tuple) else output)  # noqa: E731
    handles.append(layers[-1].register_forward_hook(last))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def last_positions(attention_mask: Tensor) -> Tensor:
    """(batch,) index of each row's last real token, for left and for right padding."""
    steps = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (attention_mask * (steps + 1)).argmax(dim=1)


def angular_distances(states: Tensor) -> Tensor:
    """Pairwise angular distance arccos(cos) / pi of S states, for each sample.

    Args:
        states: (S, batch, hidden), any dtype; computed in float32, as bfloat16 angles are wrong by a quarter.

    Returns:
        (batch, S, S) float32, in 0..1.
    """
    unit = nn.functional.normalize(states.float(), dim=-1)
    cosine = torch.einsum("sbh,tbh->bst", unit, unit).clamp(-1.0, 1.0)
    cosine.diagonal(dim1=1, dim2=2).fill_(1.0)  # a state is at distance 0 from itself, whatever rounding says
    return torch.arccos(cosine) / torch.pi


@torch.inference_mode()
def measure_similarity(model, tokenizer, texts: list[str], *, batch_size: int, max_length: int) -> Similarity:
    """One pass of the bare decoder (no LM head, no KV cache) over the calibration texts.

    Args:
        texts: calibration samples; longer ones are cut to `max_length` tokens, or to the model's context.
        batch_size: texts per forward pass; the last, partial batch counts like any other. One text, for a model that
            does not read padded rows as it reads each alone.
    """
    if not texts:
        raise ValueError("the calibration set is empty: set calibration_rows to at least 1")
    layers, decoder = decoder_layers(model), text_decoder(model)
    max_length = min(max_length, architecture.context_length(model.config))
    batch_size = batch_size if probe.reads_padding(model) else 1
    distances, influence, tokens = [], torch.zeros(len(layers), dtype=torch.float64), 0
    for start in tqdm(range(0, len(texts), batch_size), desc="similarity", disable=None):
        batch = tokenizer(
            texts[start : start + batch_size], padding=True, truncation=True, max_length=max_length, return_tensors="pt"
        ).to(model.device)
        mask = batch["attention_mask"]
        inputs = {"input_ids": batch["input_ids"], "attention_mask": mask} | probe.positions(model, mask)
        last, cosines = _forward(decoder, layers, inputs)
        distances.append(angular_distances(last).cpu().numpy())
        influence += cosines
        tokens += int(mask.sum())
    return Similarity(distances=np.concatenate(distances), block_influence=1.0 - (influence / tokens).numpy())


def _forward(decoder, layers: nn.ModuleList, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Last-token states (L + 1, batch, hidden) and, per layer, the sum over real tokens of cos(input, output)."""
    mask = inputs["attention_mask"]
    rows, positions = torch.arange(len(mask), device=mask.device), last_positions(mask)
    last, cosines, previous = [], torch.zeros(len(layers), dtype=torch.float64), None

    def see(index: int, state: Tensor) -> None:
        nonlocal previous
        last.append(state[rows, positions])
        if previous is not None:
            cosine = nn.functional.cosine_similarity(previous.float(), state.float(), dim=-1)
            cosines[index - 1] = (cosine * mask).sum().double().cpu()
        previous = state

    with _states_seen_by(layers, see):
        decoder(**inputs, use_cache=False)
    return torch.stack([state.to(last[0].device) for state in last]), cosines


def block_distances(angular_map: np.ndarray, block_size: int) -> np.ndarray:
    """(L - n + 1,) distance d(l, n) of every block of n layers, by its start l.

    Raises:
        ValueError: a block size that is not in 1..L - 1.
    """
    check_block(start=0, block_size=block_size, depth=len(angular_map) - 1, smallest=1)
    return np.diagonal(angular_map, offset=block_size)


def choose_block(angular_map: np.ndarray, block_size: int) -> int:
    """Start l* = argmin_l d(l, n) of the block [l*, l* + n) to prune; the first one on a tie."""
    return int(np.argmin(block_distances(angular_map, block_size)))


def choose_blocks(measured: Similarity, block_sizes: list[int]) -> list[dict]:
    """The block of each size, chosen once: {block_size, start, distance, stability}, see `records.Block`."""
    blocks = []
    for n in block_sizes:
        start = choose_block(measured.map, n)
        stability = choice_stability(measured.distances, n, start=start)
        distance = float(measured.map[start, start + n])
        blocks.append({"block_size": n, "start": start, "distance": distance, "stability": stability})
    return blocks


def choice_stability(distances: np.ndarray, block_size: int, *, start: int, draws: int = 1000, seed: int = 0) -> float:
    """Share of bootstrap resamples of the calibration set that choose the block at `start` as well.

    Args:
        distances: (samples, L + 1, L + 1), see `Similarity`.
    """
    per_sample = np.diagonal(distances, offset=block_size, axis1=1, axis2=2)
    count = len(per_sample)
    counts = np.random.default_rng(seed).multinomial(count, [1 / count] * count, draws)
    return float(np.mean((counts @ per_sample / count).round(DIGITS).argmin(axis=1) == start))
