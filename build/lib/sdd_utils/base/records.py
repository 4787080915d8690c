"""Records: one JSON file per job that says what came out and how it was made.

A record is written last, under a temporary name, and renamed: if it is there, the job is finished. The types below are
its schema: what is written is checked against them, and so is what is read. Shares and scores lie in 0..1.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import (
    Any,
    NotRequired,  # pydantic cannot read those of typing before Python 3.12
)

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from sdd_utils.base.files import digest, json_text, write_text
from sdd_utils.base.import_graph import notebook_digest
from sdd_utils.base.provenance import process_provenance

SCHEMA = 4  # of all records; raised when a type below changes. Records of before types were checked had none.
_CLOSED = ConfigDict(extra="forbid", strict=True)
_OPEN = ConfigDict(extra="allow", strict=True)

Interval = list[float]  # [low, high], 95 %


@with_config(_CLOSED)
class Measured(TypedDict):
    """One measure of a model on a task: its mean over documents, the mean's standard error, each document's value."""

    value: float
    stderr: float
    documents: list[float]


@with_config(_CLOSED)
class Score(TypedDict):
    """One task's score, with the measures that the task allows; see `steps.evaluation` and `base.choices`."""

    metric: str  # lm-eval's, behind `accuracy` or `task_metric`
    filter: str  # lm-eval's, e.g. "strict-match"
    n: int  # documents
    limit: int  # documents asked for; 0 is all
    chance: float  # accuracy and choice probability of guessing; 0 where guessing has no one score
    shots: int
    chat_template: bool
    version: str  # of the task
    engine: str
    all: dict[str, Any]  # every metric that lm-eval reports
    accuracy: NotRequired[Measured]  # 0..1
    task_metric: NotRequired[Measured]  # one that is no accuracy, such as BLEU
    choice_probability: NotRequired[Measured]  # 0..1
    gold_bits_per_byte: NotRequired[Measured]  # lower is better
    margin: NotRequired[Measured]  # nats
    choices: NotRequired[str]  # the log-likelihoods behind the last three, see `base.choices.unpacked`


Scores = dict[str, Score]  # by task
MEASURES = frozenset(("accuracy", "task_metric", "choice_probability", "gold_bits_per_byte", "margin"))


@with_config(_CLOSED)
class Fidelity(TypedDict):
    """Nats per token on one data set's answers of the original; see `steps.fidelity`."""

    nll: float
    kl: float
    tokens: int
    documents: list[list[float]]  # per answer [nll_sum, kl_sum, tokens]


@with_config(_CLOSED)
class Block(TypedDict):
    """The block [start, start + block_size) that was chosen."""

    block_size: int
    start: int
    distance: float  # angular, 0..1
    stability: float  # share of resampled calibration sets that choose the same block


@with_config(_CLOSED)
class Choice(TypedDict):
    """The layers that a strategy chose to remove; see `steps.selection`."""

    strategy: str  # of `base.strategies`
    draw: int  # 0, and more of `random`
    block_size: int
    removed: list[int]  # rising
    agreement: float | None  # share that a second calibration set chooses as well; None where none is read


@with_config(_CLOSED)
class SimilarityMetrics(TypedDict):
    """Of 01."""

    weights: str  # of the original, see `models.store.weights_digest`
    blocks: list[Block]
    layers: int
    calibration_fingerprint: str
    map: list[list[float]]  # (layers + 1, layers + 1) angular distances
    block_influence: list[float]  # (layers,)
    choices: NotRequired[list[Choice]]  # where the study has several strategies
    second_fingerprint: NotRequired[str]  # of the second calibration set


@with_config(_CLOSED)
class Accounting(TypedDict):
    """A pruned model's size; see `models.architecture.accounting_table`."""

    block_size: int
    layers: int
    parameters: int
    flops_per_token_2p: int
    flops_per_token_matmul: int
    cut_parameters: float
    cut_matmul: float


@with_config(_CLOSED)
class PruningMetrics(TypedDict):
    """Of 02; block size 0 is the original."""

    weights: str  # of the original
    start: int
    kept_layers: list[int]
    accounting: Accounting
    scores: Scores
    fidelity: dict[str, Fidelity]  # by data set
    answers: dict[str, str]  # sha256 of the original's answers, by data set
    engine: NotRequired[str]  # at n = 0: what generated the original's answers


@with_config(_CLOSED)
class CutModel(TypedDict):
    """A model without the layers that a strategy chose, not fine-tuned."""

    strategy: str
    draw: int
    removed: list[int]
    scores: Scores
    fidelity: dict[str, Fidelity]  # by data set


@with_config(_CLOSED)
class SelectionMetrics(TypedDict):
    """Of 02b: what the strategies beside the paper's chose for one block size."""

    weights: str  # of the original
    models: list[CutModel]


@with_config(_CLOSED)
class Attempt(TypedDict):
    """One attempt at a generated set: the rows that were written in it, and how many of these texts were kept."""

    rewritten: int
    kept: int


@with_config(_CLOSED)
class SetStatistics(TypedDict):
    """One generated set; see `steps.distillation.statistics`."""

    rows: int
    fallback_rate: float
    copy_rate: float
    truncation_rate: float
    overlap_8gram: float
    reasons: dict[str, int]
    attempts: list[Attempt]  # the first is over all rows, every other over those rejected before
    words_original: list[int]
    words_distilled: list[int]


@with_config(_CLOSED)
class TeacherSet(TypedDict):
    """The original's distributions at the responses of one source; see `steps.teacher.write`."""

    rows: int
    tokens: int
    bytes_per_token: float
    rest: float  # mean mass of what is not kept token by token


@with_config(_CLOSED)
class DistillationMetrics(TypedDict):
    """Of 03."""

    weights: str  # of the original
    sets: dict[str, SetStatistics]  # "distilled", and "self_generated" where an arm learns from it
    nll: dict[str, list[float]]  # nats per token of each response, by set; "original" among them
    dropped: dict[str, int]  # rows that the row rule left out, by reason
    engine: str
    fingerprints: dict[str, str]  # of the rows and of each set
    teacher: NotRequired[dict[str, TeacherSet]]  # by arm that learns from distributions


@with_config(_CLOSED)
class Training(TypedDict):
    """One adapter's training; see `steps.finetuning.finetune`."""

    rows: int
    steps: int
    trained_tokens: int
    seen_tokens: int
    loss: list[list[float]]  # [step, nats per token]


@with_config(_CLOSED)
class Budget(TypedDict):
    """What one training took of the original, and what it computed; see `steps.finetuning.budget`."""

    teacher_tokens: int
    generated_tokens: int
    flops: int


@with_config(_CLOSED)
class TunedModel(TypedDict):
    """One arm of a fine-tuning."""

    training: Training
    budget: NotRequired[Budget]
    scores: Scores
    fidelity: dict[str, Fidelity]
    merge_rounding: float  # share of the adapter's update that bfloat16 weights would lose, see `models.adapters`


@with_config(_CLOSED)
class FinetuningMetrics(TypedDict):
    """Of 04."""

    weights: str  # of the original
    arms: dict[str, TunedModel]


@with_config(_CLOSED)
class RecoveredScores(TypedDict):
    """A model's scores and its recovery; `t` is its place on a merge's path, `training` that of a mixture."""

    t: NotRequired[float]
    training: NotRequired[Training]
    recovery: float
    interval: Interval
    scores: Scores


@with_config(_CLOSED)
class MergedTaskVectors(TypedDict):
    """SLERP of what each parent's training added, see `steps.task_vectors`."""

    points: list[RecoveredScores]  # parents included
    angles: dict[str, float]  # radians, by module that was trained
    lerp_share: float  # of these modules


@with_config(_CLOSED)
class MergingMetrics(TypedDict):
    """Of 05."""

    points: list[RecoveredScores]  # along SLERP, parents included
    lerp_points: list[RecoveredScores]
    mixture: RecoveredScores | None
    angles: dict[str, float]  # radians, by tensor
    lerp_share: float  # of the tensors, where SLERP falls back to LERP
    lerp_above: float  # the |cosine| from which it does
    task_vectors: NotRequired[MergedTaskVectors]


@with_config(_CLOSED)
class Cosines(TypedDict):
    """Cosines of one model's answers to the original's greedy ones."""

    mean: float
    interval: Interval
    n: int
    similarities: list[float]


@with_config(_CLOSED)
class MovedArm(TypedDict):
    """One arm's answers, decoded greedily and by sampling."""

    greedy: Cosines
    sampled: Cosines


@with_config(_CLOSED)
class EmbeddingMetrics(TypedDict):
    """Of 06."""

    arms: dict[str, MovedArm]
    original_sampled: Cosines  # the most that any model can be expected to reach
    cut_share: float  # answers longer than the encoder reads
    engine: str
    answers: NotRequired[list[dict[str, str]]]  # the first ones: the question, and greedy answers by arm


@with_config(_CLOSED)
class Acceptance(TypedDict):
    """How often the original accepts a draft's tokens, on one data set's answers; see `steps.speculation`."""

    greedy_acceptance: float  # share of the tokens, 0..1
    sampling_acceptance: float  # mean probability, 0..1
    tokens: int
    documents: list[list[float]]  # per answer [greedy_sum, sampling_sum, tokens]


@with_config(_CLOSED)
class Draft(TypedDict):
    """A pruned model as a draft, fine-tuned or not."""

    arm: str
    block_size: int
    data_set: str  # that it was fine-tuned on; "" for No FT
    seed: int | None
    acceptance: dict[str, Acceptance]  # by data set of the answers


@with_config(_CLOSED)
class PassCost(TypedDict):
    """What a decoding pass costs without a block of layers. Seconds differ from run to run and are not compared."""

    block_size: int
    matmul_share: float  # of the weights that multiply a token, pruned over original
    seconds: dict[str, float]  # of the original, the draft, and the verification of the drafted tokens


@with_config(_CLOSED)
class DraftedDecoding(TypedDict):
    """Greedy decoding with and without a draft; see `steps.speculation.decode_with_draft`."""

    draft: str  # its name
    draft_tokens: int
    prompts: int
    tokens: int
    same_texts: int
    passes: int  # of the original
    replayed_passes: int
    greedy_acceptance: float  # on these texts
    seconds: dict[str, float]  # plain and assisted


@with_config(_CLOSED)
class SpeculationMetrics(TypedDict):
    """Of 07."""

    weights: str  # of the original
    drafts: dict[str, Draft]  # by name
    costs: list[PassCost]
    decoding: list[DraftedDecoding]


@with_config(_CLOSED)
class StoredModel(TypedDict):
    """A model in one format."""

    arm: str  # "original" and "no_ft" among them
    block_size: int
    data_set: str  # that it was fine-tuned on; "" for none
    format: str  # of `steps.quantization.FORMATS`
    bytes: int  # of the weights on disk
    scores: Scores
    fidelity: dict[str, Fidelity]  # by data set
    seconds: dict[str, float]  # of a pass: decoding one token, reading several


@with_config(_CLOSED)
class QuantizationMetrics(TypedDict):
    """Of 08."""

    weights: str  # of the original
    engine: str  # the library, with its version
    read_tokens: int  # of a reading pass
    models: dict[str, StoredModel]  # by name


@with_config(_CLOSED)
class Sizes(TypedDict):
    """The least size of a study that detects a difference; None where it cannot be had so. See `analysis.power`."""

    documents: int | None  # at the measured seeds
    seeds: int | None  # at the measured documents
    both: list[int] | None  # [seeds, documents], in the measured proportion


@with_config(_CLOSED)
class Power(TypedDict):
    """One measured comparison: the parts of its variance, and what it detects; see `analysis.statistics.estimate`."""

    key: str  # of its claim
    what: str
    where: str
    unit: str  # points and % of the loss are kept as fractions
    primary: bool
    estimate: float
    seed_se: float
    document_se: float
    interaction_se: float
    level: float
    df: dict[str, float]  # of seeds and of documents
    cells: int
    seeds: int
    documents: int
    detectable: float
    half: Sizes  # to detect half of that


@with_config(_CLOSED)
class ResultsMetrics(TypedDict):
    """Of 09: what the page shows, and what a plan of another study starts from."""

    grid: list[dict[str, Any]]
    differences: list[dict[str, Any]]
    shift: dict[str, Any]
    power: list[Power]


@with_config(_CLOSED)
class Provenance(TypedDict):
    """How a record was made; see `base.provenance`."""

    commit: str
    dirty: bool
    versions: dict[str, str]
    device: str
    dtype: str
    threads: int
    seed: int | None
    started: str
    wall_s: float
    peak_rss_mb: int
    code: NotRequired[str]  # see `step_digest`
    training_s: NotRequired[dict[str, float]]  # of 04: seconds of each arm's steps


@with_config(_OPEN)
class Params(TypedDict):
    """The notebook's parameters, whose types the notebook itself checks; these every one has."""

    study: str
    run: str


@with_config(_CLOSED)
class Record(TypedDict):
    """A whole record; `metrics` is of the type that `METRICS` has for its step."""

    schema: int
    step: str
    study: str
    params: Params
    metrics: dict[str, Any]
    provenance: Provenance


NOTEBOOKS = {
    "similarity": "01_similarity_analysis",
    "pruning": "02_pruning",
    "selection": "02b_layer_selection",
    "distillation": "03_self_data_distillation",
    "finetuning": "04_sft_vs_self_distill",
    "merging": "05_model_merging",
    "embedding_similarity": "06_embedding_similarity",
    "speculative_decoding": "07_speculative_decoding",
    "quantization": "08_quantization",
    "results": "09_results",
}
# By step, the steps whose records it reads; the jobs of a study say which.
NEEDS = {
    "similarity": (),
    "pruning": ("similarity",),
    "selection": ("similarity", "pruning"),
    "distillation": (),
    "finetuning": ("pruning", "distillation"),
    "merging": ("pruning", "finetuning"),
    "embedding_similarity": ("pruning", "finetuning"),
    "speculative_decoding": ("pruning", "finetuning"),
    "quantization": ("pruning", "finetuning"),
}
METRICS = {
    "similarity": SimilarityMetrics,
    "pruning": PruningMetrics,
    "selection": SelectionMetrics,
    "distillation": DistillationMetrics,
    "finetuning": FinetuningMetrics,
    "merging": MergingMetrics,
    "embedding_similarity": EmbeddingMetrics,
    "speculative_decoding": SpeculationMetrics,
    "quantization": QuantizationMetrics,
    "results": ResultsMetrics,
}


def step_digest(step: str) -> str:
    """Digest of what the code of a step and of those that it needs does; see `import_graph.notebook_digest`."""
    return digest(notebook_digest(NOTEBOOKS[step]), [step_digest(need) for need in NEEDS.get(step, ())])


def write_record(path: Path, *, step: str, params: dict, metrics: dict, provenance: dict | None = None) -> Path:
    """Write a finished job's record.

    Args:
        provenance: what it has besides that of the process; unlike metrics it is never compared with another run's.

    Raises:
        ValueError: it is not of its step's type, or holds a NaN or an infinity, which means that the job went wrong.
    """
    code = step_digest(step) if step in NOTEBOOKS else ""
    record = {
        "schema": SCHEMA,
        "step": step,
        "study": params["study"],
        "params": params,
        "metrics": metrics,
        "provenance": process_provenance(seed=params.get("seed")) | {"code": code} | (provenance or {}),
    }
    text = json_text(path, record)
    if wrong := _difference(json.loads(text)):
        raise ValueError(f"{path.name} is not a record of step {step!r}: {wrong}; nothing was written")
    return write_text(path, text)


def _difference(record: dict) -> str:
    """Where a record departs from the schema, in a few words; "" where it does not."""
    try:
        TypeAdapter(Record).validate_python(record)
        TypeAdapter(METRICS[record["step"]]).validate_python(record["metrics"])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'the record'}: {first['msg']}"
    except KeyError as error:
        return f"unknown step {error}"
    return ""


def read_record(path: Path) -> dict:
    """Read a record and check it against the schema.

    Raises:
        FileNotFoundError: there is none yet; says which notebook and command make it.
        ValueError: it is no record, or one of another schema.
    """
    made_by = NOTEBOOKS.get(path.stem.split("-")[0], NOTEBOOKS["results"])
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.name} does not exist yet: run notebooks/{made_by}.ipynb first, or 'make reproduce' for all"
        )
    fix = f"delete it and run notebooks/{made_by}.ipynb, or 'make reproduce' for all"
    try:
        record = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not complete JSON, or holds NaN or infinity: {fix}") from error
    version = record.get("schema") if isinstance(record, dict) else None
    if version != SCHEMA:
        raise ValueError(f"{path.name} has record schema {version or 1}, this version reads {SCHEMA}: {fix}")
    if path.stem.split("-")[0] != record.get("step"):
        raise ValueError(
            f"{path.name} is a record of step {record.get('step')!r}, not of the one it is named after: {fix}"
        )
    if wrong := _difference(record):
        raise ValueError(f"{path.name} does not follow record schema {SCHEMA} ({wrong}): {fix}")
    return record


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def check_model(records: Iterable[dict], weights: str) -> None:
    """Raise ValueError if one of the records was made with another original model.

    Args:
        weights: the original's, see `models.store.weights_digest`.
    """
    for record in records:
        if record["metrics"]["weights"] != weights:
            fix = f"run notebooks/{NOTEBOOKS[record['step']]}.ipynb again, or name the model that it was made with"
            raise ValueError(f"the record of step {record['step']!r} was made with another original model: {fix}")


def read_records(folder: Path) -> list[dict]:
    """Every record of a folder, in the order of their file names."""
    return list(records_by_file(folder).values())


def records_by_file(folder: Path, *, names: Iterable[str] = ()) -> dict[str, dict]:
    """The records of a folder by file name, in their order.

    Args:
        names: the file names to read; none is all.
    """
    paths = [folder / name for name in sorted(names)] or sorted(folder.glob("*.json"))
    return {path.name: read_record(path) for path in paths}


def of_step(records: Iterable[dict], step: str) -> list[dict]:
    """The records of one step."""
    return [record for record in records if record["step"] == step]


def device_of(provenance: Provenance) -> str:
    """Device and precision that a record was made with."""
    return f"{provenance['device']} in {provenance['dtype']}"
