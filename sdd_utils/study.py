"""A study is one YAML file under `studies/`: load it, check it, and name the files of its jobs.

The schema is the dataclass below; `studies/embedded.yaml` comments every key.
"""

from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path

import yaml

from sdd_utils import ROOT
from sdd_utils.checks import check_keys, check_type, check_values

STUDIES = ROOT / "studies"


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything an experiment fixes. Units: rows, tokens and documents are counts, rates are per optimiser step."""

    model: str
    data_sets: dict
    own_data: dict
    max_response_words: int
    calibration_sets: list
    calibration_rows: int
    calibration_batch: int
    block_sizes: list
    finetune_block_sizes: list
    scaling: dict
    capacities: dict
    arms: list
    equal_tokens: bool
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
    shots: dict
    chat_tasks: list
    in_domain: dict
    evaluation_batch: int
    merge_pairs: list
    slerp_t: list
    train_on_mixture: bool
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
    values = _read(study)
    check_keys(given=values, allowed=[field.name for field in fields(Study)], where=f"study {study!r}")
    for field in fields(Study):
        check_type(name=field.name, value=values[field.name], kind=field.type)
    check_values(values)
    return Study(**values)


def _read(study: str) -> dict:
    """A study's keys; those that it leaves out come from the study that its key `base` names."""
    values = yaml.safe_load(path_of(study).read_text()) or {}
    if not isinstance(values, dict):
        raise ValueError(f"study {study!r} is no list of 'key: value' lines: copy studies/embedded.yaml")
    base = values.pop("base", None)
    if base is None:
        return values
    below = yaml.safe_load(path_of(str(base)).read_text())
    if "base" in below:
        raise ValueError(f"study {study!r} has the base {base!r}, which has a base itself: name a complete study")
    return below | values


def capacities(study) -> dict[str, dict]:
    """The additional LoRA capacities by name, such as `r8a16-q_proj+v_proj`, as settings {lora_rank, lora_alpha,
    lora_targets}."""
    return {
        f"r{lora['rank']}a{lora['alpha']}-{lora['targets'].replace(',', '+')}": {
            f"lora_{name}": value for name, value in lora.items()
        }
        for lora in study.capacities.get("lora", [])
    }


def finetunings(study) -> list[dict]:
    """What every fine-tuning is run on: the main comparison, then those on the first rows of a set and those with
    another LoRA capacity, which has a name where it is not the study's own."""
    tuned, fewer, other = [*product(study.finetune_block_sizes, study.seeds)], study.scaling, study.capacities
    found = [(n, name, rows, "", seed) for n, seed in tuned for name, rows in study.data_sets.items()]
    if fewer:
        axes = product(fewer["block_sizes"], study.seeds, fewer["data_sets"], fewer["rows"])
        found += [(n, name, rows, "", seed) for n, seed, name, rows in axes]
    if other:
        axes = product(other["block_sizes"], study.seeds, other["data_sets"], capacities(study))
        found += [(n, name, study.data_sets[name], capacity, seed) for n, seed, name, capacity in axes]
    names = ("block_size", "data_set", "rows", "capacity", "seed")
    return [dict(zip(names, which, strict=True)) for which in found]


def run_folder(run: str) -> Path:
    """The folder of a run's checkpoints, sets and records; relative paths start at the repository."""
    return ROOT / run


def record_path(run: str, step: str, **which) -> Path:
    """Where a record lies, e.g. `records/finetuning-n4-gsm_symbolic-48rows-s0.json`. Names are for people: read
    `params`."""
    return run_folder(run) / "records" / f"{label(step, **which)}.json"


def label(
    step: str,
    *,
    block_size: int | None = None,
    data_set: str | None = None,
    rows: int | None = None,
    capacity: str = "",
    seed: int | None = None,
) -> str:
    """A short name for a job: its step and what it was run on."""
    counted = rows is not None and (f"{rows}rows" if rows else "allrows")
    size, by_seed = block_size is not None and f"n{block_size}", seed is not None and f"s{seed}"
    parts = [step, size, data_set, counted, capacity, by_seed]
    return "-".join(part for part in parts if part)
