"""A study is one YAML file under `studies/`: every key it has, and how it is loaded.

`python -m sdd_utils.study.schema` prints all keys as a table; with `--write` it goes into docs/running.md.
"""

import argparse
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WrapValidator,
    model_validator,
    with_config,
)
from typing_extensions import TypedDict  # pydantic asks for this one below Python 3.12

from sdd_utils import ROOT
from sdd_utils.base.files import write_text
from sdd_utils.base.strategies import STRATEGIES
from sdd_utils.data.arms import ARMS
from sdd_utils.study import rules
from sdd_utils.study.study_file import read_study_file

STUDIES, PAGE = ROOT / "studies", ROOT / "docs" / "running.md"

Value = TypeVar("Value")
Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
LARGEST_SEED = 2**32 - 1  # what numpy takes
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Distinct = Annotated[list[Value], AfterValidator(rules.distinct)]  # a list that names nothing twice
Some = Annotated[Distinct[Value], Field(min_length=1)]  # the same, and not empty
OrEmpty = Annotated[Value, WrapValidator(lambda value, check: value if value == {} else check(value))]
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)  # strict: a bool is no int, "8" is no number


@with_config(STRICT)
class Lora(TypedDict):
    """A LoRA capacity; file names hold it, so its targets are plain."""

    rank: Positive
    alpha: Positive
    targets: Annotated[str, Field(pattern=r"^[\w,.-]+$", description="text of letters, digits and _ , . -")]


@with_config(STRICT)
class Scaling(TypedDict):
    """Which fine-tunings there are on fewer rows: every combination of these."""

    rows: Some[Positive]
    block_sizes: Some[Positive]
    data_sets: Some[Text]


@with_config(STRICT)
class Capacities(TypedDict):
    """Which fine-tunings there are with other LoRA capacities: every combination of these."""

    lora: Some[Lora]
    block_sizes: Some[Positive]
    data_sets: Some[Text]


@with_config(STRICT)
class Speculation(TypedDict):
    """How drafts are tried in decoding: tokens that are drafted at once, and prompts per data set."""

    draft_tokens: Positive
    draft_prompts: Positive


@with_config(STRICT)
class Quantization(TypedDict):
    """In which formats models are stored, beside bfloat16."""

    formats: Some[Literal["int8", "nf4"]]


class Study(BaseModel, frozen=True):
    """Everything an experiment fixes. Values stay plain, as YAML and JSON know them."""

    model_config = STRICT

    model: Text = Field(
        description="the instruct model: catalogue name, folder, `.gguf` file, or on the hub `org/name@revision` or "
        "`org/name@revision:file.gguf`"
    )

    # Data
    data_sets: dict[Text, Count] = Field(
        min_length=1,
        description="what to fine-tune on, with the number of rows, the first ones of the set's fixed order; 0 is all",
    )
    own_data: dict[Text, dict[str, Any]] = Field(description="your own data sets by name, see docs/own-model.md")
    max_response_words: Count = Field(
        description="rows whose response is empty or longer are left out and counted; 0 is no limit [ours]"
    )
    calibration_sets: Some[Text] = Field(description="where the calibration set comes from, in equal parts [ours]")
    calibration_rows: Positive = Field(description="rows of the calibration set [ours]")
    calibration_batch: Positive = Field(
        description="rows per forward pass of the similarity step; does not change the result"
    )

    # Pruning
    block_sizes: Some[Positive] = Field(description="block sizes n that are pruned and scored without fine-tuning")
    finetune_block_sizes: Some[Positive] = Field(description="those of them that are fine-tuned as well")
    selection: Distinct[Literal[tuple(STRATEGIES)]] = Field(
        description="how the layers to remove are chosen; the models of all but `angular` are scored without "
        "fine-tuning only [ours]. " + " ".join(f"`{name}`: {what}" for name, what in STRATEGIES.items())
    )
    scaling: OrEmpty[Scaling] = Field(description="fine-tunings on fewer rows as well; {} is none")
    capacities: OrEmpty[Capacities] = Field(
        description="fine-tunings with other LoRA capacities as well; {} is none [ours]"
    )

    # Self-data distillation
    temperature: float = Field(ge=0, le=10, description="temperature of the sampling; 0 is greedy decoding [ours]")
    top_p: float = Field(gt=0, le=1, description="nucleus of the sampling [ours]")
    top_k: Count = Field(description="how many tokens the sampling chooses from; 0 is no limit [ours]")
    rewrite_tokens: Positive = Field(
        description="longest rewrite, in tokens; a longer one falls back to the original response [ours]"
    )
    rewrite_attempts: Positive = Field(
        description="how often a row is written at most: one whose rewrite is rejected is written again [ours]"
    )
    generation_batch: Positive = Field(description="rows decoded at once; texts depend on it, within rounding")

    # Fine-tuning
    arms: Distinct[Literal[tuple(ARMS)]] = Field(
        description="what is learnt. " + " ".join(f"`{name}`: {arm.__doc__}" for name, arm in ARMS.items())
    )
    equal_tokens: bool = Field(
        description="true stops every arm at the trained tokens of the shortest one, in the same order of rows, but "
        "for an arm that leaves rows out; false trains all on all rows"
    )
    seeds: Some[Seed] = Field(
        description="one fine-tuning of each arm per seed; with fewer than three, claims about training stay "
        "inconclusive [ours]"
    )
    lora_rank: Positive = Field(description="rank r of the LoRA update [ours]")
    lora_alpha: Positive = Field(description="the update is scaled by alpha / r [ours]")
    lora_targets: Text = Field(description="`all-linear`, or module names separated by commas [ours]")
    lora_dropout: float = Field(ge=0, le=0.99, description="dropout on the LoRA input [ours]")
    learning_rate: float = Field(gt=0, le=1, description="peak of a cosine schedule with 5 % warm-up [ours]")
    epochs: Positive = Field(description="passes over the training rows [ours]")
    batch_size: Positive = Field(description="rows per optimiser step [ours]")
    max_length: Positive = Field(
        description="in tokens; a row longer than this in one arm leaves all arms; calibration rows are cut [ours]"
    )

    # Evaluation
    tasks: dict[Text, Count] = Field(
        min_length=1,
        description="lm-eval tasks with the number of documents (mmlu: per subject), always the first ones; 0 is all",
    )
    shots: dict[Text, Count] = Field(description="few-shot examples by task; the task's own number where none is given")
    chat_tasks: Distinct[Text] = Field(description="tasks asked in the model's chat format")
    in_domain: dict[Text, Distinct[Text]] = Field(
        description="by data set, the tasks of its own domain; a task that is not named is out of it [ours]"
    )
    evaluation_batch: Positive = Field(
        description="contexts per forward pass; does not change the result beyond rounding"
    )

    # Merging
    merge_pairs: Distinct[Annotated[Distinct[Text], Field(min_length=2, max_length=2)]] = Field(
        description="pairs of data sets whose self-data models are merged"
    )
    slerp_t: Distinct[Annotated[float, Field(ge=0, le=1)]] = Field(
        description="points on the SLERP path, one of them at least inside; 0 and 1 are the parents [ours]"
    )
    train_on_mixture: bool = Field(
        description="true also trains Self-Data FT on half the rows of either set of a pair, as many as one parent "
        "had, to compare the merge with [ours]"
    )

    # Embedding similarity
    encoder: Text = Field(description="sentence encoder: packaged name, folder or hub id [ours]")
    answer_prompts: Positive = Field(description="held-out prompts per data set [ours]")
    answer_tokens: Positive = Field(description="longest answer, in tokens [ours]")

    # What pruned models are good for
    speculation: OrEmpty[Speculation] = Field(
        description="speculative decoding, pruned models as drafts: tokens drafted at once in the decoding that "
        "confirms the forecast, and prompts per data set; {} is none [ours]"
    )
    quantization: OrEmpty[Quantization] = Field(
        description="the original, the pruned and the Self-Data FT models in these formats beside bfloat16; needs "
        "`make quantization`; {} is none [ours]"
    )

    @model_validator(mode="after")
    def _keys_agree(self):
        rules.check_study(self)
        return self


def path_of(study: str, *, beside: Path = Path()) -> Path:
    """The YAML file of a study given by name (`embedded`) or by path, which starts in the folder `beside`.

    Raises FileNotFoundError.
    """
    path = beside / study if study.endswith((".yaml", ".yml")) else STUDIES / f"{study}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in STUDIES.glob("*.yaml")))
        raise FileNotFoundError(f"study {study!r} is unknown: use one of {known}, or the path of a YAML file")
    return path


def name_of(study: str) -> str:
    """The name of a study's folders and records: that of its file, points included (`paper-llama3.1-8b`).

    Raises:
        ValueError: a name that no folder should have.
        FileNotFoundError: no such study.
    """
    name = path_of(study).stem
    if not re.fullmatch(r"\w[\w .+-]*", name):
        raise ValueError(f"study {name!r} names its folders: rename its file, to letters, digits, spaces and _ . + -")
    return name


def load_study(study: str) -> Study:
    """Read and check a study given by name or path; no model or data library is imported for it.

    Raises:
        ValueError: a wrong key, type or value, no YAML, or bases in a circle; one sentence with the fix.
        FileNotFoundError: no such study, or no such base.
    """
    values = _with_bases(study)
    try:
        return Study.model_validate(values)
    except ValidationError as error:
        said = rules.first_sentence(error, values=values, schema=Study.model_json_schema(), where=f"study {study!r}")
        raise ValueError(said) from None


def _with_bases(study: str) -> dict:
    """A study's keys; those that it leaves out come from the study that its key `base` names, and so on down.

    A base that is a path starts in the folder of the file that names it.
    """
    values, chain, paths, base, beside = {}, [], [], study, Path()
    while base is not None:
        chain, path = [*chain, base], path_of(base, beside=beside).resolve()
        if path in paths:
            raise ValueError(f"study {chain[0]!r} has its bases in a circle, {' -> '.join(chain)}: delete one 'base'")
        paths.append(path)
        below = _mapping(path, study=base)
        base, beside = _base_of(below, study=base), path.parent
        values = below | values  # a mapping as a value is replaced whole
    return values


def _base_of(values: dict, *, study: str) -> str | None:
    """Takes the key `base` out of a study's keys."""
    if "base" in values and not (isinstance(values["base"], str) and values["base"]):
        raise ValueError(
            f"study {study!r} has the base {values['base']!r}: name a study such as embedded, or a YAML file"
        )
    return values.pop("base", None)


def _mapping(path: Path, *, study: str) -> dict:
    try:
        values = read_study_file(path)
    except ValueError as error:
        raise ValueError(f"study {study!r} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"study {study!r} has no 'key: value' lines: begin with 'base: embedded'")
    return values


def reference_table() -> str:
    """Every key as a row of a Markdown table: key, type and bounds, what it is, and embedded's value."""
    schema, embedded = Study.model_json_schema(), load_study("embedded")
    rows = [("key", "type and bounds", "what it is", "embedded"), ("---",) * 4]
    for name, part in schema["properties"].items():
        kind = rules.described(part, schema=schema).removeprefix("a ")
        rows.append((f"`{name}`", kind, part["description"], f"`{_as_yaml(getattr(embedded, name))}`"))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _as_yaml(value) -> str:
    """A value as it stands in a study file, on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("...\n").strip()


def write_table(page: Path) -> None:
    """Put the table between `<!-- study keys -->` and `<!-- end -->` of a page; ValueError where it lacks them."""
    text = page.read_text(encoding="utf-8")
    marked = re.compile(r"(?<=<!-- study keys -->\n).*?(?=<!-- end -->)", flags=re.S)
    if not marked.search(text):
        raise ValueError(f"{page} has no place for the table: add lines '<!-- study keys -->' and '<!-- end -->'")
    write_text(page, marked.sub(lambda _: reference_table(), text))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print every key of a study as a Markdown table.")
    parser.add_argument("--write", action="store_true", help=f"put it into {PAGE.relative_to(ROOT)} instead")
    if parser.parse_args().write:
        write_table(PAGE)
    else:
        print(reference_table(), end="")
