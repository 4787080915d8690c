"""All that a compression fixes, under the names of study keys: from a request, its data and its model."""

from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

import numpy as np
from pydantic import ValidationError, create_model

from sdd_utils.compress.request import MOST_ROWS, OWN, Request, data_set_of, layers_to_cut, model_of
from sdd_utils.data.arms import ARMS, sft
from sdd_utils.data.rows import load_rows
from sdd_utils.models import architecture, hub, store
from sdd_utils.steps import training_rows
from sdd_utils.study import rules
from sdd_utils.study.schema import LARGEST_SEED, STRICT, Positive, Seed, Study

LEARNING_RATES = {0.3e9: 5e-4, 3e9: 3e-4}  # by the largest number of parameters: as in the studies of such models
SMALLEST_RATE = 1e-4  # of all larger models, as in the parent method
MOST_HELD_OUT, MOST_ANSWERED = 100, 16  # held-out rows that are scored, and questions that are answered
REWRITE_TOKENS, ROW_TOKENS = (48, 512), (128, 2048)  # the least and the most that limits are set to
MEASURED, SPARE = 400, 4 / 3  # rows whose lengths set the limits, and how much longer than most of them is allowed
_TOKENIZER_FILES = ["*.json", "*.jinja", "tokenizer.model", "*.txt"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a compression. They are study keys (docs/running.md), but for `seed` and `held_out`.

    Attributes:
        data_sets: the one data set, with its number of training rows.
        block_sizes: the one block size.
        arms: the one arm.
        seed: of sampling and training.
        held_out: held-out rows that are scored.
    """

    model: str
    data_sets: dict[str, int]
    own_data: dict
    calibration_rows: int
    block_sizes: list[int]
    arms: list[str]
    rewrite_tokens: int
    learning_rate: float
    max_length: int
    seed: int
    answer_prompts: int
    held_out: int
    calibration_sets: list[str]
    calibration_batch: int = 16
    max_response_words: int = 0
    selection: list[str] = field(default_factory=lambda: ["angular"])
    temperature: float = 0.95
    top_p: float = 0.7
    top_k: int = 50
    rewrite_attempts: int = 3
    generation_batch: int = 64
    equal_tokens: bool = False
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_targets: str = "all-linear"
    lora_dropout: float = 0.0
    epochs: int = 1
    batch_size: int = 8
    tasks: dict[str, int] = field(default_factory=lambda: {"facts": 240, "gsm_symbolic_gold": 48, "pydoc_gold": 48})
    shots: dict[str, int] = field(default_factory=dict)
    chat_tasks: list[str] = field(default_factory=lambda: ["gsm_symbolic_gold", "pydoc_gold"])
    evaluation_batch: int = 16
    encoder: str = "all-MiniLM-L6-v2"
    answer_tokens: int = 64

    @property
    def data_set(self) -> str:
        return next(iter(self.data_sets))

    @property
    def block_size(self) -> int:
        return self.block_sizes[0]

    @property
    def arm(self) -> str:
        return self.arms[0]

    @property
    def sampling(self) -> dict:
        """What `generation.generate_texts` needs beside the longest answer."""
        names = ("temperature", "top_p", "top_k", "seed")
        return {name: getattr(self, name) for name in names} | {"batch_size": self.generation_batch}

    @property
    def training(self) -> dict:
        """What `finetuning.finetune` needs."""
        names = ("lora_rank", "lora_alpha", "lora_targets", "lora_dropout", "learning_rate", "epochs", "batch_size")
        return {name: getattr(self, name) for name in (*names, "seed")} | {"trained_tokens": 0}

    @property
    def scoring(self) -> dict:
        """What `evaluation.evaluate_model` needs."""
        named = {name: getattr(self, name) for name in ("tasks", "shots", "chat_tasks")}
        return named | {"batch_size": self.evaluation_batch}


def check_settings(settings: dict, *, where: str) -> None:
    """Raise ValueError, in one sentence, unless settings of a recipe have types and ranges as study keys have them."""
    keys = {name: (key.annotation, key) for name, key in Study.model_fields.items() if name in settings}
    keys |= {"seed": (Seed, ...), "held_out": (Positive, ...)}
    model = create_model("Recipe", __config__=STRICT, **keys)
    values = {name: settings.get(name) for name in keys}
    try:
        model.model_validate(values)
    except ValidationError as error:
        said = rules.first_sentence(error, values=values, schema=model.model_json_schema(), where=where)
        raise ValueError(said) from None
    for name in ("data_sets", "block_sizes", "arms"):
        if len(values[name]) != 1:
            raise ValueError(f"{where}: {name} names {len(values[name])}, and a compression takes one")


def settings_of(request: Request) -> Settings:
    """Settings that suit a model and a data set.

    Raises:
        ValueError, FileNotFoundError: no such model, data or arm, or a cut that the model does not allow; in one
            sentence.
    """
    if request.arm not in ARMS:
        raise ValueError(f"arm {request.arm!r} is unknown: use one of {', '.join(ARMS)}")
    if not 0 <= request.seed <= LARGEST_SEED:
        raise ValueError(f"seed {request.seed} is impossible: use 0 to {LARGEST_SEED}")
    name, own_data = data_set_of(request)
    train, test = (_rows_of(request, name, split=split, own_data=own_data) for split in ("train", "test"))
    rows = min(MOST_ROWS, len(train)) if request.rows is None else request.rows or len(train)
    fewest = Settings.batch_size + 1  # one step has a learning rate of 0, and heals nothing
    if len(train) < fewest:
        raise ValueError(f"{request.data} has {len(train)} training rows, and healing needs {fewest}: add some")
    if not fewest <= rows <= len(train):
        raise ValueError(f"{rows} rows of {request.data} cannot be had: ask for {fewest} to {len(train)}, or 0 for all")
    config = store.load_config(model := model_of(request))
    return Settings(
        model=model,
        data_sets={name: rows},
        own_data=own_data,
        calibration_sets=[name],
        calibration_rows=min(64, len(train)),
        block_sizes=[layers_to_cut(request.cut, config)],
        arms=[request.arm],
        learning_rate=learning_rate(architecture.account(config).parameters),
        seed=request.seed,
        held_out=min(MOST_HELD_OUT, len(test)),
        answer_prompts=min(MOST_ANSWERED, len(test)),
        **token_limits(tokenizer_of(model), train[:rows], context=architecture.context_length(config)),
    )


def _rows_of(request: Request, name: str, **which) -> list[dict]:
    try:
        return load_rows(name, rows=0, **which)
    except ValueError as error:  # it speaks of the name that the set has in a study
        raise ValueError(f"data {request.data!r}: {str(error).removeprefix(f'{OWN} ')}") from None


def tokenizer_of(model: str):
    """The tokenizer of a model whose weights need not be here."""
    on_hub = hub.is_hub_id(model) and not Path(model).exists()
    return store.load_tokenizer(hub.downloaded(model, _TOKENIZER_FILES) if on_hub else model)


def learning_rate(parameters: int) -> float:
    """The peak learning rate for a model of this size."""
    return next((rate for most, rate in LEARNING_RATES.items() if parameters < most), SMALLEST_RATE)


def token_limits(tokenizer, rows: list[dict], *, context: float) -> dict[str, int]:
    """{rewrite_tokens, max_length}: nineteen of twenty responses, and rows, fit with a third to spare.

    Args:
        context: tokens that the model reads at most.

    Raises:
        ValueError: a tokenizer without a chat template, or rows that are all longer than may be.
    """
    some = rows[:MEASURED]
    encoded = [training_rows.encode(tokenizer, row, text) for row, text in zip(some, sft(some, {}), strict=True)]
    whole, responses = (np.array([*map(measure, encoded)]) for measure in (_row_tokens, _response_tokens))
    most = int(min(ROW_TOKENS[1], context))
    if whole.min() > most:
        raise ValueError(f"every row is longer than {most} tokens, the most that is trained on: shorten them")
    return {"rewrite_tokens": _limit(responses, *REWRITE_TOKENS), "max_length": _limit(whole, ROW_TOKENS[0], most)}


def _row_tokens(encoded: dict) -> int:
    return len(encoded["input_ids"])


def _response_tokens(encoded: dict) -> int:
    return sum(encoded["completion_mask"])


def _limit(tokens: np.ndarray, least: int, most: int) -> int:
    """A multiple of eight above nineteen of twenty of these lengths, between the least and the most."""
    wanted = 8 * ceil(float(np.quantile(tokens, 0.95)) * SPARE / 8)
    return min(max(wanted, min(least, most)), most)
