"""A study is one YAML file under `studies/`: load it, check it, and hand each notebook its own parameters.

The schema is the dataclass below; `studies/embedded.yaml` comments every key.
"""

import ast
import difflib
import json
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from sdd_utils import data

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
STUDIES = ROOT / "studies"


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything an experiment fixes. Units: rows, tokens and documents are counts, rates are per optimiser step."""

    model: str
    data_sets: list
    train_rows: int
    calibration_rows: int
    calibration_batch: int
    block_sizes: list
    finetune_block_sizes: list
    seeds: list
    temperature: float
    top_p: float
    top_k: int
    rewrite_tokens: int
    generation_batch: int
    lora_rank: int
    lora_alpha: int
    lora_targets: str
    lora_dropout: float
    learning_rate: float
    epochs: int
    batch_size: int
    max_length: int
    tasks: dict
    chat_tasks: list
    evaluation_batch: int
    slerp_t: list
    encoder: str
    answer_prompts: int
    answer_tokens: int


def path_of(study: str) -> Path:
    """The YAML file of a study given by name (`embedded`) or by path."""
    path = Path(study) if study.endswith((".yaml", ".yml")) else STUDIES / f"{study}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in STUDIES.glob("*.yaml")))
        raise FileNotFoundError(f"study {study!r} is unknown: use one of {known}, or the path of a YAML file")
    return path


def load(study: str) -> Study:
    """Read and check a study. Raises ValueError, in one sentence, on a wrong key, type or value."""
    values = yaml.safe_load(path_of(study).read_text()) or {}
    _check_keys(given=values, allowed=[field.name for field in fields(Study)], where=f"study {study!r}")
    for field in fields(Study):
        _check_type(name=field.name, value=values[field.name], kind=field.type)
    _check_values(values)
    return Study(**values)


def _check_keys(*, given: dict, allowed: list[str], where: str) -> None:
    for key in given:
        if key not in allowed:
            close = difflib.get_close_matches(str(key), allowed, n=1)
            mend = f"did you mean {close[0]!r}?" if close else "delete it"
            raise ValueError(f"{where}: unknown key {key!r}: {mend} Allowed: {', '.join(allowed)}")
    missing = [key for key in allowed if key not in given]
    if missing:
        raise ValueError(f"{where}: missing key(s) {', '.join(missing)}: copy them from studies/embedded.yaml")


def _check_type(*, name: str, value, kind: type) -> None:
    numeric = kind is float and isinstance(value, int) and not isinstance(value, bool)
    if not numeric and (not isinstance(value, kind) or isinstance(value, bool)):
        raise ValueError(f"study key {name!r} is {value!r}: it must be a {kind.__name__}")


def _check_values(values: dict) -> None:
    """Bounds that need no model: the number of layers is checked where the model is known."""
    for name, value in values.items():
        if isinstance(value, int) and value < (0 if name == "top_k" else 1):
            raise ValueError(f"study key {name!r} is {value}: it must be a whole number of at least 1")
        if isinstance(value, list) and len(set(map(str, value))) != len(value):
            raise ValueError(f"study key {name!r} is {value}: it names something twice, keep each once")
    for name in ("block_sizes", "finetune_block_sizes"):
        bad = [n for n in values[name] if not isinstance(n, int) or n < 1]
        if bad:
            raise ValueError(f"study key {name!r} holds {bad[0]!r}: a block size is a whole number of at least 1")
    extra = [n for n in values["finetune_block_sizes"] if n not in values["block_sizes"]]
    if extra:
        raise ValueError(f"study key 'finetune_block_sizes' holds {extra[0]}: add it to 'block_sizes' as well")
    unknown = [name for name in values["data_sets"] if name not in data.names()]
    if unknown:
        raise ValueError(f"study key 'data_sets' holds {unknown[0]!r}: use one of {', '.join(data.names())}")
    bad_t = [t for t in values["slerp_t"] if not isinstance(t, int | float) or not 0 <= t <= 1]
    if bad_t:
        raise ValueError(f"study key 'slerp_t' holds {bad_t[0]!r}: SLERP's t lies in 0..1")
    if not any(0 < t < 1 for t in values["slerp_t"]):
        raise ValueError(f"study key 'slerp_t' is {values['slerp_t']}: name a point between 0 and 1, the parents apart")


def defaults_of(notebook: str) -> dict:
    """Names and values of the cell tagged `parameters` of `notebooks/<notebook>.ipynb`."""
    cells = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text())["cells"]
    source = next("".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    return _assignments(source)


def _assignments(source: str) -> dict:
    return {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(source).body}


def parameters_of(study: str, *, notebook: str) -> dict:
    """The study's values for those parameters of a notebook that are study keys."""
    loaded = load(study)
    return {name: getattr(loaded, name) for name in defaults_of(notebook) if hasattr(loaded, name)}


def check_parameters(notebook: str, given: dict) -> None:
    """Raise ValueError, in one sentence, unless these are a notebook's parameters, all of them, each of its type."""
    defaults = defaults_of(notebook)
    _check_keys(given=given, allowed=list(defaults), where=f"notebook {notebook}")
    for name, default in defaults.items():
        _check_type(name=name, value=given[name], kind=type(default))


def checked_parameters(notebook: str, namespace: dict) -> dict:
    """Collect a running notebook's parameters and refuse the ones it does not declare.

    papermill only warns of a misspelt parameter and assigns it all the same, in a cell of its own that starts with
    "# Parameters": whatever such a cell assigned counts as given.

    Args:
        notebook: name without folder and suffix, such as `02_pruning`.
        namespace: the notebook's `globals()`.

    Raises:
        ValueError: an unknown parameter, or one of another type than its default.
    """
    injected = [cell for cell in namespace.get("In", []) if cell.startswith("# Parameters")]
    names = [*defaults_of(notebook), *(name for cell in injected for name in _assignments(cell))]
    given = {name: namespace[name] for name in names if name in namespace}
    check_parameters(notebook, given)
    return given


def run_folder(run: str) -> Path:
    """The folder of a run's checkpoints, sets and records; relative paths start at the repository."""
    return ROOT / run


def record_path(run: str, step: str, **which) -> Path:
    """Where a record lies, e.g. `records/finetuning-n4-gsm_symbolic-s0.json`. Names are for people: read `params`."""
    return run_folder(run) / "records" / f"{label(step, **which)}.json"


def label(step: str, *, block_size: int | None = None, data_set: str | None = None, seed: int | None = None) -> str:
    """A short name for a job: its step and what it was run on."""
    parts = [step, block_size is not None and f"n{block_size}", data_set, seed is not None and f"s{seed}"]
    return "-".join(part for part in parts if part)
