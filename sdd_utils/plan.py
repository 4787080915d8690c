"""What a study will cost before it is begun: `python -m sdd_utils.plan STUDY`, or `make plan STUDY=...`.

Prints the sweep's jobs by step with tokens, hours, peak memory and disk, and what is already done. No weights are
loaded, downloaded or converted. How the numbers come about: `sdd_utils/estimates.py` and the two YAML files it reads.
"""

import argparse
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import tabulate

from sdd_utils import architecture, estimates, lengths, results
from sdd_utils import study as studies
from sdd_utils.estimates import Estimate, Setting

STEPS = ("similarity", "pruning", "distillation", "finetuning", "merging", "embedding_similarity", "results")
MILLION, GB, HOUR = 1e6, 1e9, 3600
LARGE = 1e9  # parameters from which a GPU is taken for granted
LEFT_OUT = (
    "attention between tokens (a few per cent up to 2048 tokens), rows dropped by length, speculative decoding, "
    "rewrites that fall back, the size of other LoRA capacities, memory an inference engine "
    "reserves beyond its need, trainer checkpoints, data sets, queues, failures and downloads"
)


def jobs(study) -> list[dict]:
    """Every job of the sweep: {step, and what it is run on}, as the Snakefile makes them."""
    sizes, tuned = study.block_sizes, [*product(study.finetune_block_sizes, study.seeds)]
    found = [{"step": "similarity"}]
    answers = {"answer_sets": [*study.data_sets]}
    found += [{"step": "pruning", "block_size": n, **answers} for n in [0, *sizes]]
    sets = [{"data_set": name, "train_rows": count} for name, count in study.data_sets.items()]
    found += [{"step": "distillation", **on} for on in sets]
    for on in studies.finetunings(study):
        where = {name: on[name] for name in ("block_size", "data_set", "seed")}
        capacity = studies.capacities(study).get(on["capacity"], {})
        found.append({"step": "finetuning", **where, "train_rows": on["rows"], **capacity, **answers})
    rows = study.data_sets
    pairs = [
        {"data_set": a, "train_rows": rows[a], "other_data_set": b, "other_train_rows": rows[b]}
        for a, b in study.merge_pairs
    ]
    for n, seed in tuned:
        trained = {"block_size": n, "seed": seed}
        found += [{"step": "merging", **trained, **pair} for pair in pairs]
        found += [{"step": "embedding_similarity", **trained, **on} for on in sets]
    return [*found, {"step": "results"}]


def is_done(job: dict, records: list[dict], study) -> bool:
    """Whether a record says that this job was run with the study's present keys."""
    return any(record["step"] == job["step"] and _agrees(record["params"], job, study) for record in records)


def _agrees(params: dict, job: dict, study) -> bool:
    keys = {name: getattr(study, name) for name in params if hasattr(study, name)}
    return all(params[name] == value for name, value in (keys | job).items() if name in params)


def estimate(s: Setting, job: dict) -> Estimate:
    """What one job costs."""
    n, data_set = job.get("block_size", 0), job.get("data_set")
    match job["step"]:
        case "similarity":
            return estimates.similarity(s)
        case "pruning":
            return estimates.pruned(s, n)
        case "distillation":
            return estimates.distillation(s, data_set)
        case "finetuning":
            rows = job["train_rows"] or lengths.rows_of(s.study, data_set)
            return estimates.finetuning(s, block_size=n, data_set=data_set, rows=rows)
        case "merging":
            return estimates.merging(s, block_size=n, data_sets=(data_set, job["other_data_set"]))
        case "embedding_similarity":
            return estimates.embedding_similarity(s, block_size=n, data_set=data_set)
    return Estimate(seconds=s.machine.job_seconds, memory=s.machine.process_bytes)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A step: jobs, how many of them are done, what all cost together and what is still to be paid."""

    jobs: int
    done: int
    whole: Estimate
    left: Estimate


def rows(s: Setting, records: list[dict]) -> dict[str, Row]:
    """The plan by step."""
    every = [(job, estimate(s, job), is_done(job, records, s.study)) for job in jobs(s.study)]
    found = {}
    for step in STEPS:
        own = [(cost, done) for job, cost, done in every if job["step"] == step]
        left = [cost for cost, done in own if not done]
        found[step] = Row(
            jobs=len(own),
            done=len(own) - len(left),
            whole=total([cost for cost, _ in own], step=step, machine=s.machine),
            left=total(left, step=step, machine=s.machine),
        )
    return found


def total(costs: list[Estimate], *, step: str, machine) -> Estimate:
    """Several jobs of a step: sums; of memory the largest; of disk what lies there at once."""
    sums = {name: sum(getattr(cost, name) for cost in costs) for name in ("read", "trained", "generated", "seconds")}
    disk = sorted((cost.disk for cost in costs), reverse=True)
    # a merge deletes its folders: only those of the jobs that run side by side lie there together
    kept = disk[: machine.jobs_at_once] if step == "merging" else disk
    return Estimate(**sums, memory=max((cost.memory for cost in costs), default=0), disk=sum(kept))


def table(s: Setting, plan: dict[str, Row]) -> str:
    """The plan as text, totals last."""
    unit = s.machine.unit
    lines = [_line(step, row.jobs, row.done, row.whole, row.left, unit) for step, row in plan.items()]
    whole = [row.whole for row in plan.values()]
    together = total(whole, step="", machine=s.machine)
    left = total([row.left for row in plan.values()], step="", machine=s.machine)
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


def memory_table(s: Setting) -> str:
    """The arithmetic of fine-tuning's memory: in words for the middle block size, in GB for each."""
    sizes = sorted({job["block_size"] for job in jobs(s.study) if job["step"] == "finetuning"})
    middle = sizes[len(sizes) // 2]
    columns = {n: estimates.training_memory(s, n) for n in sizes}
    lines = [
        {"": what, f"arithmetic at n = {middle}": how, **{f"n = {n}": f"{columns[n][i][2] / GB:.2f}" for n in sizes}}
        for i, (what, how, _) in enumerate(columns[middle])
    ]
    sums = {f"n = {n}": f"{sum(size for _, _, size in columns[n]) / GB:.2f}" for n in sizes}
    last = {"": "together", f"arithmetic at n = {middle}": f"of {s.machine.memory / GB:.0f} GB", **sums}
    align = ("left", "left", *["right"] * len(sizes))
    return tabulate.tabulate([*lines, last], headers="keys", tablefmt="simple", disable_numparse=True, colalign=align)


def setting(study, *, hardware: str | None) -> tuple[Setting, str]:
    """Everything the estimates need, and where the architecture is from."""
    if hardware:
        estimates.machine(hardware)  # a wrong name is told before anything is counted
    config, origin = architecture.find(study.model)
    sizes = {0, *study.block_sizes}
    shapes = {
        n: architecture.shape(config, block_size=n, rank=study.lora_rank, targets=study.lora_targets) for n in sizes
    }
    name = hardware or ("h100-80gb" if shapes[0].parameters >= LARGE else "cpu-2-cores")
    return Setting(study=study, machine=estimates.machine(name), shapes=shapes), origin


def notes(s: Setting, plan: dict[str, Row]) -> list[str]:
    """What a reader should know beside the table."""
    machine, whole = s.machine, [row.whole for row in plan.values()]
    largest, hours = max(cost.memory for cost in whole), sum(row.left.seconds for row in plan.values()) / HOUR
    fits, room = largest <= machine.memory, f"{machine.memory / GB:.0f} GB"
    said = [
        f"still to do: {short(hours)} {machine.unit}, {short(hours / machine.jobs_at_once)} h with "
        f"{machine.jobs_at_once} job(s) at once",
        f"largest memory: {short(largest / GB)} GB {'fits' if fits else 'does NOT fit'} into {room}"
        f"{'' if fits else ': lower the batch sizes or max_length'}",
        f"disk: {short(sum(cost.disk for cost in whole) / GB)} GB, and {short(2 * s.shapes[0].parameters / GB)} GB "
        "for the model itself (2 bytes a parameter)",
    ]
    if machine.dtype_bytes < 4:
        said.append(f"host memory: {short(4 * s.shapes[0].parameters / GB)} GB a job: adapters are merged in float32")
    unknown = [name for name in s.study.data_sets if name not in lengths.lengths()["data_sets"]]
    unknown += [name for name in s.study.tasks if name not in lengths.lengths()["tasks"]]
    if unknown:
        like = f"data sets are taken to be like {lengths.LIKE_SET}, tasks like {lengths.LIKE_TASK}"
        said.append(f"never measured: {', '.join(unknown)}; {like}")
    return said


def report(name: str, s: Setting, records: list[dict], *, origin: str) -> str:
    """The whole output."""
    plan, own = rows(s, records), s.shapes[0]
    heads = [
        f"study {name}: {s.study.model}, {own.parameters / GB:.3f} billion parameters, {own.layers} layers",
        f"architecture: {origin}",
        f"hardware: {s.machine.name}; {s.machine.basis}",
        "token lengths: sdd_utils/lengths.yaml; throughput: sdd_utils/throughput.yaml",
    ]
    tails = [
        *notes(s, plan),
        f"prefetch: make prefetch STUDY={name}",
        f"run:      make reproduce STUDY={name}",
        f"left out: {LEFT_OUT}",
    ]
    memory = f"Memory of fine-tuning, GB: {s.study.batch_size} rows of {s.study.max_length} tokens at once, LoRA r "
    memory += f"{s.study.lora_rank} on {s.study.lora_targets}; shorter rows or gradient accumulation need less"
    return "\n".join([*heads, "", table(s, plan), "", memory, "", memory_table(s), "", *tails])


def main() -> int:
    """Parse the command line and print the plan; exit status 2 and one sentence on wrong input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default="embedded", help="name of a file under studies/, or a path")
    parser.add_argument("--run", help="folder whose records count as done (default work/<study>)")
    parser.add_argument("--hardware", help="an entry of sdd_utils/throughput.yaml (default by the model's size)")
    arguments = parser.parse_args()
    try:
        s, origin = setting(studies.load(arguments.study), hardware=arguments.hardware)
        run = arguments.run or f"work/{Path(arguments.study).stem}"
        records = results.read_records(studies.run_folder(run) / "records")
        print(report(arguments.study, s, records, origin=origin))
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
