"""What the package does with one model, each beside plain forward passes of one row.

A check answers "exact" or "falls back"; a difference is an AssertionError. `run` turns that into "WRONG", a ValueError
that the package itself raises into "refused", and any other exception into "crash", each with what was said.
"""

import copy
import itertools
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from architectures.tiny import DEPTH, END
from datasets import Dataset
from lm_eval.api.instance import Instance
from torch import Tensor

from sdd_utils import ROOT
from sdd_utils.engine import generation
from sdd_utils.engine.lm_eval_model import SharedContextLM
from sdd_utils.models import store
from sdd_utils.steps import finetuning, pruning, training_rows

BLOCKS = {"first": (0, 1), "middle": (1, 3), "last": (4, 2)}  # (start, layers) of six; odd ones shift every period
IDS = torch.randint(0, 256, (1, 24), generator=torch.Generator().manual_seed(0))  # thrice as long as a window
PROMPTS = {"short": "One and", "long": "a question of many more letters than one"}
CHOICES = [" yes", " no way"]
ROWS = [
    ("one?", "yes it is"),
    ("a longer second one, of more tokens than a window holds?", "no"),
    ("3rd", "maybe, yes"),
]
NEW_TOKENS = 12
CLOSE = {"rtol": 1e-3, "atol": 2e-3}
TRAINING = {"lora_rank": 2, "lora_alpha": 4, "lora_dropout": 0.0, "learning_rate": 1e-3}
TRAINING |= {"epochs": 1, "batch_size": len(ROWS), "seed": 0, "trained_tokens": 0}


def plain(model, ids: Tensor) -> Tensor:
    """(tokens, vocabulary) logits of one row without padding, cache or mask."""
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits[0].float()


def attends_ahead(model) -> bool:
    """Whether a later token changes an earlier one's logits: an encoder."""
    changed = IDS.clone()
    changed[0, -1] = (changed[0, -1] + 1) % 256
    return not torch.allclose(plain(model, IDS)[:-1], plain(model, changed)[:-1], **CLOSE)


def run(check: Callable[[], str]) -> str:
    """What a check answers, in one line."""
    try:
        return check()
    except AssertionError as error:
        return f"WRONG: {one_line(error)}"
    except Exception as error:  # noqa: BLE001
        last = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        said = one_line(error)
        ours = isinstance(error, ValueError | NotImplementedError) and last.is_relative_to(ROOT / "sdd_utils")
        return f"refused: {said}" if ours else f"crash: {said}"


def one_line(error: Exception) -> str:
    """An exception as one short line."""
    kind = "" if isinstance(error, AssertionError | ValueError) else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split())[:200]


def cut(model, *, start: int, block_size: int) -> str:
    """A pruned model against the original whose layers of the block hand on what they get."""
    with _skipped(copy.deepcopy(model), range(start, start + block_size)) as reference:
        expected = plain(reference, IDS)
    pruned = pruning.remove_block(copy.deepcopy(model), start=start, block_size=block_size)
    _same(plain(pruned, IDS), expected)
    assert not torch.allclose(expected, plain(model, IDS), **CLOSE), "the removed layers change nothing: no comparison"
    return "exact"


@contextmanager
def _skipped(model, block: range) -> Iterator:
    """A model whose layers of the block hand on what they get; a pass shows which list the layers are."""
    layers = _layers_run(model)
    for index in block:
        layers[index].forward = _handing_on(layers[index].forward)
    yield model


def _layers_run(model) -> torch.nn.ModuleList:
    """The first list of as many modules as the model has layers that a pass over a text runs through, all of it."""
    seen = set()
    hooks = [module.register_forward_pre_hook(lambda module, _: seen.add(module)) for module in model.modules()]
    plain(model, IDS)
    for hook in hooks:
        hook.remove()
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == DEPTH]
    return max(lists, key=lambda layers: len(seen.intersection(layers)))  # a text alone skips layers for images


def _handing_on(forward: Callable) -> Callable:
    """A layer's forward pass that returns its input, in the form in which the layer returns its output.

    What it returns beside the states is, where the layer is given something of that name or place, that, or else None.
    """

    def same(*args, **kwargs):
        out = forward(*args, **kwargs)
        if hasattr(out, "_replace"):  # Reformer's two streams
            return out._replace(attn_output=kwargs["prev_attn_output"], hidden_states=kwargs["hidden_states"])
        states = args[0] if args else kwargs["hidden_states"]
        if not isinstance(out, tuple | list):
            return states
        given = [value for name, value in kwargs.items() if name.startswith("prev_")]
        return (states, *itertools.islice(itertools.chain(given or args[1:], itertools.repeat(None)), len(out) - 1))

    return same


def reload(model, tokenizer, *, start: int, block_size: int, scratch: Path) -> str:
    """A pruned checkpoint, loaded, against the pruned model in memory; loaded twice, as weights may be drawn anew."""
    pruned = pruning.remove_block(copy.deepcopy(model), start=start, block_size=block_size)
    expected = plain(pruned, IDS)
    folder = store.save_model(pruned, tokenizer, folder=scratch / f"cut-{start}", parent="tiny", recipe={})
    for _ in range(2):
        _same(plain(store.load_model(folder)[0], IDS), expected)
    return "exact"


def decode(model, tokenizer) -> str:
    """Two rows decoded together against greedy passes over each row alone."""
    expected = {id_: _greedy(model, tokenizer(text)["input_ids"]) for id_, text in PROMPTS.items()}
    with mock.patch.object(model, "generate", wraps=model.generate) as generate:
        rows = [*generation.generate_texts(model, tokenizer, PROMPTS, max_new_tokens=NEW_TOKENS, batch_size=2)]
    for row in rows:
        wanted = expected[row["id"]]
        text = tokenizer.decode(wanted, skip_special_tokens=True)
        assert row["text"] == text, f"row {row['id']}: other tokens than greedy passes choose"
        assert row["n_tokens"] == len(wanted), f"row {row['id']}: {row['n_tokens']} tokens instead of {len(wanted)}"
    assert len(rows) == len(PROMPTS), "rows are missing"
    return "falls back" if generate.called else "exact"


def _greedy(model, ids: list[int]) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < NEW_TOKENS and tokens[-1:] != [END]:
        tokens.append(int(plain(model, torch.tensor([ids + tokens]))[-1].argmax()))
    return tokens


# All linear layers, but where peft refuses it: mixers of the Mamba family read the weights of some on their own.
TARGETS = {"falcon_h1": "q_proj,v_proj,in_proj"} | dict.fromkeys(
    ("falcon_mamba", "mamba", "mamba2", "nemotron_h"), "in_proj"
)


def train(model, tokenizer, *, scratch: Path) -> str:
    """The first loss of a training on three rows against the rows' losses, each row apart."""
    rows = [training_rows.encode(tokenizer, {"instruction": ask, "context": ""}, answer) for ask, answer in ROWS]
    losses = torch.cat([_losses(model, **row) for row in rows])
    shapes, load, folder = [], store.load_model, scratch / "whole"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    def watched(*args, **kwargs):
        loaded = load(*args, **kwargs)
        embeddings = loaded[0].get_input_embeddings()
        embeddings.register_forward_pre_hook(lambda module, given: shapes.append((module.training, *given[0].shape)))
        return loaded

    settings = TRAINING | {"lora_targets": TARGETS.get(model.config.model_type, "all-linear")}
    with mock.patch.object(store, "load_model", watched):
        report = finetuning.finetune(folder, Dataset.from_list(rows), adapter=scratch / "adapter", **settings)
    found, expected = report["loss"][0][1], float(losses.mean())
    assert abs(found - expected) < 1e-3, f"first loss {found:.4f}, rows apart {expected:.4f}"
    return "exact" if (True, 1, sum(len(row["input_ids"]) for row in rows)) in shapes else "falls back"


def _losses(model, input_ids: list[int], completion_mask: list[int]) -> Tensor:
    logits, targets = plain(model, torch.tensor([input_ids]))[:-1], torch.tensor(input_ids[1:])
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return losses[torch.tensor(completion_mask[1:]) == 1]


def score(model, tokenizer) -> str:
    """Log-likelihoods of choices after a short and a long context against plain passes."""
    asked = list(itertools.product(PROMPTS.values(), CHOICES))
    lm = SharedContextLM(pretrained=model, tokenizer=tokenizer, batch_size=len(PROMPTS), device="cpu")
    cached = []
    hook = model.register_forward_pre_hook(
        lambda _, args, given: cached.append(given.get("past_key_values") is not None), with_kwargs=True
    )
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(asked)]
    found = [value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)]
    hook.remove()
    expected = [_likelihood(model, *(tokenizer(text)["input_ids"] for text in pair)) for pair in asked]
    _same(torch.tensor(found), torch.tensor(expected))
    return "exact" if cached[-1] else "falls back"  # the last pass: a try of the faster way may come first


def _likelihood(model, context: list[int], choice: list[int]) -> float:
    logits = plain(model, torch.tensor([context + choice[:-1]]))[len(context) - 1 :].log_softmax(-1)
    return float(logits.gather(1, torch.tensor(choice)[:, None]).sum())


def _same(found: Tensor, expected: Tensor) -> None:
    assert torch.isfinite(expected).all(), "the reference is not finite: no comparison"
    difference = float((found - expected).abs().max())
    assert torch.allclose(found, expected, **CLOSE), f"differs by {difference:.2g} of {float(expected.std()):.2g}"
