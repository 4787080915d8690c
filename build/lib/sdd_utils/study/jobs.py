"""Every job of a study: the one list that the Snakefile runs and the plan estimates."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

from sdd_utils.study.paths import job_name


@dataclass(frozen=True, kw_only=True)
class Job:
    """One notebook run once.

    Attributes:
        step: which notebook, see `base.records.NOTEBOOKS`.
        name: the stem of its record.
        parameters: what the notebook is given besides the study's keys.
        needs: the names of the jobs whose records and files it reads.
    """

    step: str
    name: str
    parameters: dict
    needs: tuple[str, ...] = ()


def study_jobs(study) -> list[Job]:
    """Every job of the sweep, each behind those that it needs."""
    sets = list(study.data_sets)
    answers = {"answer_sets": sets}
    jobs = [Job(step="similarity", name="similarity", parameters={}), _pruning(0, answers)]
    jobs += [_pruning(n, answers) for n in study.block_sizes]
    if len(study.selection) > 1:  # beside the paper's block, which every study removes
        jobs += [_selection(n, answers) for n in study.block_sizes]
    jobs += [_distillation(name, rows) for name, rows in study.data_sets.items()]
    jobs += [_finetuning(study, on, answers) for on in finetunings(study)]
    for n, seed in product(study.finetune_block_sizes, study.seeds):
        jobs += [_merging(study, pair, block_size=n, seed=seed) for pair in study.merge_pairs]
        jobs += [_embedding_similarity(study, name, block_size=n, seed=seed) for name in sets]
    jobs += [_speculative_decoding(study)] if study.speculation else []
    jobs += [_quantization(study)] if study.quantization else []
    return [*jobs, Job(step="results", name="results", parameters={}, needs=tuple(job.name for job in jobs))]


def with_needs(names: Iterable[str], jobs: dict[str, Job]) -> set[str]:
    """These jobs and all that they need, directly or not, by name."""
    return {*names}.union(*(with_needs(jobs[name].needs, jobs) for name in names))


def other_keys(params: dict, *, job: Job, study) -> list[str]:
    """The parameters of a record that the study and the job give another value now, by name."""
    now = {name: getattr(study, name) for name in params if hasattr(study, name)} | job.parameters
    return [name for name, value in now.items() if name in params and params[name] != value]


def _pruning(n: int, answers: dict) -> Job:
    """Every pruned model is compared with the original's answers, which the job of block size 0 writes."""
    needs = ("similarity", "pruning-n0") if n else ("similarity",)
    parameters = {"block_size": n, **answers}
    return Job(step="pruning", name=job_name("pruning", block_size=n), parameters=parameters, needs=needs)


def _selection(n: int, answers: dict) -> Job:
    name, needs = job_name("selection", block_size=n), ("similarity", "pruning-n0")
    return Job(step="selection", name=name, parameters={"block_size": n, **answers}, needs=needs)


def _distillation(data_set: str, rows: int) -> Job:
    name, parameters = job_name("distillation", data_set=data_set), {"data_set": data_set, "train_rows": rows}
    return Job(step="distillation", name=name, parameters=parameters)


def _finetuning(study, on: dict, answers: dict) -> Job:
    capacity = lora_capacities(study).get(on["capacity"], {})
    parameters = {name: on[name] for name in ("block_size", "data_set", "seed", "capacity")}
    return Job(
        step="finetuning",
        name=job_name("finetuning", **on),
        parameters=parameters | {"train_rows": on["rows"]} | capacity | answers,
        needs=(job_name("pruning", block_size=on["block_size"]), job_name("distillation", data_set=on["data_set"])),
    )


def _merging(study, pair: list[str], *, block_size: int, seed: int) -> Job:
    (a, b), at = pair, {"block_size": block_size, "seed": seed}
    parents = [job_name("finetuning", data_set=name, rows=study.data_sets[name], **at) for name in pair]
    parameters = {"data_set": a, "train_rows": study.data_sets[a]}
    parameters |= {"other_data_set": b, "other_train_rows": study.data_sets[b]}
    name = job_name("merging", data_set=f"{a}+{b}", **at)
    return Job(step="merging", name=name, parameters=at | parameters, needs=("pruning-n0", *parents))


def _embedding_similarity(study, data_set: str, *, block_size: int, seed: int) -> Job:
    at, rows = {"block_size": block_size, "data_set": data_set, "seed": seed}, study.data_sets[data_set]
    return Job(
        step="embedding_similarity",
        name=job_name("embedding_similarity", **at),
        parameters=at | {"train_rows": rows},
        needs=("pruning-n0", job_name("finetuning", rows=rows, **at)),
    )


def _speculative_decoding(study) -> Job:
    """All pruned models of a study, and those of its main comparison, as drafts for the original."""
    pruned = [job_name("pruning", block_size=n) for n in (0, *study.block_sizes)]
    needs = (*pruned, *_main_finetunings(study, study.seeds))
    return Job(
        step="speculative_decoding", name="speculative_decoding", parameters=dict(study.speculation), needs=needs
    )


def _quantization(study) -> Job:
    """The original, the pruned models that are fine-tuned, and those of the first seed, in several formats."""
    pruned = [job_name("pruning", block_size=n) for n in (0, *study.finetune_block_sizes)]
    needs = (*pruned, *_main_finetunings(study, study.seeds[:1]))
    return Job(step="quantization", name="quantization", parameters=dict(study.quantization), needs=needs)


def _main_finetunings(study, seeds: list[int]) -> list[str]:
    """The jobs of the main comparison, with these seeds."""
    axes = product(study.finetune_block_sizes, study.data_sets.items(), seeds)
    on = [{"block_size": n, "data_set": name, "rows": rows, "seed": seed} for n, (name, rows), seed in axes]
    return [job_name("finetuning", **job) for job in on]


def lora_capacities(study) -> dict[str, dict]:
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
    jobs = [(n, name, rows, "", seed) for n, seed in tuned for name, rows in study.data_sets.items()]
    if fewer:
        axes = product(fewer["block_sizes"], study.seeds, fewer["data_sets"], fewer["rows"])
        jobs += [(n, name, rows, "", seed) for n, seed, name, rows in axes]
    if other:
        axes = product(other["block_sizes"], study.seeds, other["data_sets"], lora_capacities(study))
        jobs += [(n, name, study.data_sets[name], capacity, seed) for n, seed, name, capacity in axes]
    names = ("block_size", "data_set", "rows", "capacity", "seed")
    return [dict(zip(names, job, strict=True)) for job in jobs]
