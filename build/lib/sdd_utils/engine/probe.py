"""Whether a faster way to run a model gives the model's own numbers: short random rows beside plain passes of each.

A configuration does not say how a model's code reads masks, positions and caches. So each loaded model is tried once
in each way. Where logits differ by more than rounding, or the way fails, a plain one serves, and one line says so.
"""

import inspect
import sys
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from tqdm import tqdm

# The difference of a token's logits, as a share of their spread, that rounding does not reach. SmolLM2-135M differs by
# 0.04 in bfloat16 and by 1e-5 in float32, and a row that sees another's tokens by 0.1 to 1.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.02}
COARSE = 0.06  # bfloat16
MOST = 0.5  # of a model that rounds more, such as one of experts whose choice is a near tie
KERNELS = ("eager", "sdpa")  # two ways of transformers to compute the same attention

Pairs = Iterable[tuple[Tensor, Tensor]]


def agrees(model, way: str, pairs: Callable[[], Pairs], *, instead: str) -> bool:
    """Whether a way to run this model is exact up to rounding; tried once for each loaded model and attention.

    Args:
        way: its name.
        pairs: runs the way; gives its logits and the plain ones, (..., vocabulary), of the same tokens.
        instead: what serves if it is not, for the line on stderr.
    """
    known = vars(model).setdefault("_sdd_probed", {})
    key = way, model.config._attn_implementation, model.dtype, model.device
    if key not in known:
        fault = _fault(model, pairs)
        known[key] = fault is None
        if fault:
            tqdm.write(f"{type(model).__name__}: {way} {fault}, so {instead}", file=sys.stderr)
    return known[key]


def _fault(model, pairs: Callable[[], Pairs]) -> str | None:
    if getattr(model.config.get_text_config(decoder=True), "index_topk", None):  # DeepSeek V3.2's sparse attention
        return "is not tried, as its layers choose among more keys than short rows have"
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            worst = max(difference(found, plain) for found, plain in pairs())
            allowed = _allowed(model, worst)
    except Exception as error:  # a model's own code may raise anything
        return f"fails ({type(error).__name__}: {' '.join(str(error).split())[:80]})"
    finally:
        model.train(training)
    return None if allowed else f"gives other logits than plain passes (by {worst:.2g} of their spread)"


def _allowed(model, worst: float) -> bool:
    """Whether rounding explains a difference; what the model itself rounds is measured only where it has to be."""
    if worst <= TOLERANCE.get(model.dtype, COARSE):
        return True
    return model.dtype != torch.float32 and worst <= min(MOST, max(4 * _rounding(model), _between_kernels(model)))


def difference(found: Tensor, plain: Tensor) -> float:
    """The largest, over tokens, of the logits' difference, as a share of their spread; infinite for NaN.

    A difference that all logits of a token have in common changes no probability, so it does not count.
    """
    if found.shape != plain.shape:
        return torch.inf
    found, plain = found.float(), plain.float()
    shares = (found - plain).std(dim=-1) / plain.std(dim=-1).clamp(min=1e-9)
    return float(shares.nan_to_num(nan=torch.inf).max())


def _rounding(model) -> float:
    """How far the logits of a row differ where it is read beside its like, or before other tokens."""
    row, later = random_rows(model, (12, 9))
    copies = model(input_ids=torch.tensor([row] * 3, device=model.device), use_cache=False).logits
    ways = [*copies, plain_logits(model, row + later)[: len(row)]]
    return max(difference(found, plain_logits(model, row)) for found in ways)


def _between_kernels(model) -> float:
    """How far the logits of a row differ between two ways to attend; 0 where the model has not both.

    Qwen2.5-Coder-0.5B's differ by 0.13 in bfloat16, and by 1.4 where a row sees another's tokens.
    """
    kind, (row,) = model.config._attn_implementation, random_rows(model, (12,))
    try:
        logits = [_by_kernel(model, kernel, row) for kernel in KERNELS]
    except (ValueError, NotImplementedError, ImportError):
        return 0.0
    finally:
        model.set_attn_implementation(kind)
    return difference(*logits)


def _by_kernel(model, kernel: str, row: list[int]) -> Tensor:
    model.set_attn_implementation(kernel)
    return plain_logits(model, row)


def random_rows(model, lengths: Iterable[int]) -> list[list[int]]:
    """Rows of random tokens, the same ones each time."""
    random, size = torch.Generator().manual_seed(0), model.get_input_embeddings().num_embeddings
    return [torch.randint(min(3, size - 1), size, (length,), generator=random).tolist() for length in lengths]


def plain_logits(model, row: list[int]) -> Tensor:
    """(tokens, vocabulary) logits of one row, read alone: no padding, no cache, no positions given."""
    return model(input_ids=torch.tensor([row], device=model.device), use_cache=False).logits[0]


def reads_padding(model) -> bool:
    """Whether rows that are filled up on their left, behind a mask, are read as each alone."""

    def pairs() -> Pairs:
        rows = random_rows(model, (3, 12))
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
        given = {"input_ids": ids, "attention_mask": mask} | positions(model, mask)
        logits = model(**given, use_cache=False).logits
        return ((found[-len(row) :], plain_logits(model, row)) for row, found in zip(rows, logits, strict=True))

    return agrees(model, "reading padded rows", pairs, instead="rows are read one by one")


def ignores_filling(model) -> bool:
    """Whether what a row is filled up with behind its end, without a mask, changes nothing before it."""

    def pairs() -> Pairs:
        rows = random_rows(model, (3, 12))
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
        logits = model(input_ids=ids).logits  # as lm-eval calls a model
        return ((found[: len(row)], plain_logits(model, row)) for row, found in zip(rows, logits, strict=True))

    return agrees(model, "scoring filled-up rows", pairs, instead="rows are scored one by one")


def positions(model, mask: Tensor) -> dict[str, Tensor]:
    """{position_ids: (rows, tokens)} that count a row's real tokens from 0, for a model that takes positions."""
    if not takes_positions(model):
        return {}
    return {"position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}


def takes_positions(model) -> bool:
    """Whether positions can be given to a forward pass."""
    return "position_ids" in inspect.signature(model.forward).parameters
