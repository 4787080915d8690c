"""What a study will cost before it is begun: `python -m sdd_utils.sweep.plan STUDY`, or `make plan STUDY=...`.

Prints the sweep's jobs by step with tokens, hours, peak memory and disk, what is already done, and which differences
the study can detect. No weights are loaded, downloaded or converted. How the numbers come about:
`sdd_utils/sweep/costs.py` and the two YAML files it reads, and `sdd_utils/sweep/expected_power.py`.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from math import ceil
from types import SimpleNamespace

import tabulate

from sdd_utils.base import precision
from sdd_utils.base.records import NOTEBOOKS, read_records
from sdd_utils.engine import attention
from sdd_utils.models import architecture
from sdd_utils.study.jobs import Job, other_keys, study_jobs
from sdd_utils.study.paths import Run
from sdd_utils.study.schema import load_study, name_of
from sdd_utils.sweep import expected_power, memory, preflight, token_lengths
from sdd_utils.sweep.costs import (
    REJECTED,
    CostModel,
    Estimate,
    distillation,
    embedding_similarity,
    finetuning,
    load_machine,
    merging,
    pruned,
    quantization,
    selected,
    similarity,
    speculative_decoding,
)

MILLION, GB, HOUR = 1e6, 1e9, 3600
LARGE = 1e9  # parameters from which a GPU is taken for granted
LEFT_OUT = (
    "attention between tokens (a few per cent up to 2048 tokens), rows dropped by length, speculative decoding, "
    "rewrites that fall back, the size of other LoRA capacities, memory an inference engine "
    "reserves beyond its need, trainer checkpoints, data sets, queues, failures and downloads"
)


def is_done(job: Job, records: list[dict], study) -> bool:
    """Whether a record says that this job was run with the study's present keys."""
    same = (record for record in records if record["step"] == job.step)
    return any(not other_keys(record["params"], job=job, study=study) for record in same)


def job_cost(costs: CostModel, job: Job) -> Estimate:
    """What one job costs."""
    return replace(_work(costs, job), memory=memory.peak(costs, job))


def _work(costs: CostModel, job: Job) -> Estimate:
    """What one job costs, memory apart."""
    n, data_set = job.parameters.get("block_size", 0), job.parameters.get("data_set")
    match job.step:
        case "similarity":
            return similarity(costs)
        case "pruning":
            return pruned(costs, n)
        case "selection":
            return selected(costs, n)
        case "distillation":
            return distillation(costs, data_set)
        case "finetuning":
            rows = job.parameters["train_rows"] or token_lengths.rows_of(costs.study, data_set)
            return finetuning(costs, block_size=n, data_set=data_set, rows=rows)
        case "merging":
            return merging(costs, block_size=n, data_sets=(data_set, job.parameters["other_data_set"]))
        case "embedding_similarity":
            return embedding_similarity(costs, block_size=n, data_set=data_set)
        case "speculative_decoding":
            return speculative_decoding(costs)
        case "quantization":
            return quantization(costs)
    return Estimate(seconds=costs.machine.job_seconds)


def memory_of_jobs(study) -> dict[str, int]:
    """MB (2**20 bytes) of main memory that each job is expected to take, by its name; a GPU's job takes less."""
    costs, _ = cost_model(study, hardware="cpu-2-cores")
    return {job.name: ceil(memory.peak(costs, job) / 2**20) for job in study_jobs(study)}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A step: jobs, how many of them are done, what all cost together and what is still to be paid."""

    jobs: int
    done: int
    whole: Estimate
    left: Estimate


def plan_rows(costs: CostModel, records: list[dict]) -> dict[str, Row]:
    """The plan by step."""
    every = [(job, job_cost(costs, job), is_done(job, records, costs.study)) for job in study_jobs(costs.study)]
    rows = {}
    for step in (step for step in NOTEBOOKS if any(job.step == step for job, _, _ in every)):
        step_jobs = [(cost, done) for job, cost, done in every if job.step == step]
        left = [cost for cost, done in step_jobs if not done]
        rows[step] = Row(
            jobs=len(step_jobs),
            done=len(step_jobs) - len(left),
            whole=total([cost for cost, _ in step_jobs], step=step, machine=costs.machine),
            left=total(left, step=step, machine=costs.machine),
        )
    return rows


def total(estimates: list[Estimate], *, step: str, machine) -> Estimate:
    """Several jobs of a step: sums; of memory the largest; of disk what lies there at once."""
    sums = {
        name: sum(getattr(cost, name) for cost in estimates) for name in ("read", "trained", "generated", "seconds")
    }
    disk = sorted((cost.disk for cost in estimates), reverse=True)
    # these delete their folders: only those of the jobs that run side by side lie there together
    kept = disk[: machine.jobs_at_once] if step in ("merging", "selection") else disk
    return Estimate(**sums, memory=max((cost.memory for cost in estimates), default=0), disk=sum(kept))


def plan_table(costs: CostModel, plan: dict[str, Row]) -> str:
    """The plan as text, totals last."""
    unit = costs.machine.unit
    lines = [_line(step, row.jobs, row.done, row.whole, row.left, unit) for step, row in plan.items()]
    whole = [row.whole for row in plan.values()]
    together = total(whole, step="", machine=costs.machine)
    left = total([row.left for row in plan.values()], step="", machine=costs.machine)
    count, done = sum(row.jobs for row in plan.values()), sum(row.done for row in plan.values())
    lines.append(_line("all", count, done, together, left, unit))
    return tabulate.tabulate(lines, headers="keys", tablefmt="simple", disable_numparse=True, colalign=ALIGN)


ALIGN = ("left", *["right"] * 9)


def _line(step: str, count: int, done: int, whole: Estimate, left: Estimate, unit: str) -> dict:
    tokens = {"read, M": whole.read, "trained, M": whole.trained, "generated, M": whole.generated}
    return {
        "step": step,
        "jobs": count,
        "done": done,
        **{name: short(value / MILLION) if value else "-" for name, value in tokens.items()},
        unit: short(whole.seconds / HOUR),
        "still to do": short(left.seconds / HOUR),
        "peak memory, GB": short(whole.memory / GB),
        "disk, GB": short(whole.disk / GB) if whole.disk else "-",
    }


def short(value: float) -> str:
    """Two or three digits that mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def memory_table(costs: CostModel) -> str:
    """The arithmetic of fine-tuning's memory: in words for the middle block size, in GB for each."""
    sizes = sorted({job.parameters["block_size"] for job in study_jobs(costs.study) if job.step == "finetuning"})
    middle = sizes[len(sizes) // 2]
    columns = {n: memory.training(costs, n) for n in sizes}
    lines = [
        {"": what, f"arithmetic at n = {middle}": how, **{f"n = {n}": f"{columns[n][i][2] / GB:.2f}" for n in sizes}}
        for i, (what, how, _) in enumerate(columns[middle])
    ]
    sums = {f"n = {n}": f"{sum(size for _, _, size in columns[n]) / GB:.2f}" for n in sizes}
    last = {"": "together", f"arithmetic at n = {middle}": f"of {costs.machine.memory / GB:.0f} GB", **sums}
    align = ("left", "left", *["right"] * len(sizes))
    return tabulate.tabulate([*lines, last], headers="keys", tablefmt="simple", disable_numparse=True, colalign=align)


def cost_model(study, *, hardware: str | None) -> tuple[CostModel, str]:
    """Everything the estimates need, and where the architecture is from."""
    if hardware:
        load_machine(hardware)  # a wrong name is reported before anything is counted
    config, origin = architecture.find_config(study.model)
    sizes = {0, *study.block_sizes}
    shapes = {
        n: architecture.shape_of(config, block_size=n, rank=study.lora_rank, targets=study.lora_targets) for n in sizes
    }
    name = hardware or ("h100-80gb" if shapes[0].parameters >= LARGE else "cpu-2-cores")
    to_all = attention.attends_to_all(SimpleNamespace(config=config))
    machine = load_machine(name)
    if machine.device == "cpu" and precision.dtype_name() == "float32":
        machine.weight_bytes = 4
    return CostModel(study=study, machine=machine, shapes=shapes, attends_to_all=to_all), origin


def notes(costs: CostModel, plan: dict[str, Row]) -> list[str]:
    """What a reader should know beside the table."""
    machine, whole = costs.machine, [row.whole for row in plan.values()]
    largest, hours = max(cost.memory for cost in whole), sum(row.left.seconds for row in plan.values()) / HOUR
    fits, room = largest <= machine.memory, f"{machine.memory / GB:.0f} GB"
    lines = [
        f"still to do: {short(hours)} {machine.unit}, {short(hours / machine.jobs_at_once)} h with "
        f"{machine.jobs_at_once} job(s) at once",
        f"largest memory: {short(largest / GB)} GB {'fits' if fits else 'does NOT fit'} into {room}"
        f"{'' if fits else ': lower the batch sizes or max_length'}",
        f"disk: {short(sum(cost.disk for cost in whole) / GB)} GB, and {short(2 * costs.shapes[0].parameters / GB)} GB "
        "for the model itself (2 bytes a parameter)",
    ]
    if costs.study.rewrite_attempts > 1:
        lines.append(f"rewrite_attempts: {REJECTED:.0%} of every attempt's rewrites are taken to be written again")
    unknown = [name for name in costs.study.data_sets if name not in token_lengths.lengths()["data_sets"]]
    unknown += [name for name in costs.study.tasks if name not in token_lengths.lengths()["tasks"]]
    if unknown:
        like = f"data sets are taken to be like {token_lengths.LIKE_SET}, tasks like {token_lengths.LIKE_TASK}"
        lines.append(f"never measured: {', '.join(unknown)}; {like}")
    return lines


def plan_report(name: str, costs: CostModel, records: list[dict], *, origin: str, power: str) -> str:
    """The whole output.

    Args:
        origin: where the architecture is from.
        power: see `expected_power.report`.
    """
    plan, shape = plan_rows(costs, records), costs.shapes[0]
    heads = [
        f"study {name}: {costs.study.model}, {shape.parameters / GB:.3f} billion parameters, {shape.layers} layers",
        f"architecture: {origin}",
        f"hardware: {costs.machine.name}; {costs.machine.basis}",
        "token lengths: sdd_utils/sweep/token_lengths.yaml; throughput: sdd_utils/sweep/throughput.yaml",
    ]
    tails = [
        *notes(costs, plan),
        f"prefetch: make prefetch STUDY={name}",
        f"run:      make reproduce STUDY={name}",
        f"left out: {LEFT_OUT}",
    ]
    study = costs.study
    heading = f"Memory of training, GB: rows of {study.max_length} tokens, {study.batch_size} a step, LoRA r "
    heading += f"{study.lora_rank} on {study.lora_targets}; shorter rows need less"
    return "\n".join([*heads, "", plan_table(costs, plan), "", heading, "", memory_table(costs), "", power, "", *tails])


def main() -> int:
    """Parse the command line and print the plan; exit status 2 and one sentence on wrong input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default="embedded", help="name of a file under studies/, or a path")
    parser.add_argument("--run", help="folder whose records count as done (default work/<study>)")
    parser.add_argument("--hardware", help="an entry of sdd_utils/sweep/throughput.yaml (default by the model's size)")
    arguments = parser.parse_args()
    try:
        precision.wanted_dtype()
        study = load_study(arguments.study)
        preflight.check_data(study)
        preflight.check_tasks(study)
        costs, origin = cost_model(study, hardware=arguments.hardware)
        name = name_of(arguments.study)
        records = read_records(Run.at(arguments.run or f"work/{name}").records)
        power = expected_power.report(study, name=name)
        print(plan_report(arguments.study, costs, records, origin=origin, power=power))
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
