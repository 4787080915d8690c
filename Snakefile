"""The sweep as a graph: one rule per notebook, run through papermill. Start it with `make reproduce`.

A job's output is the JSON record that its notebook writes last; the executed notebook is its log. A rule lists the
modules that make its numbers, so editing one of them reruns its jobs; editing a study key reruns the jobs that use
it. The study's figures are drawn by 08 from the records, so `plots` and `side_plots` are inputs of that job alone; a
job's own figures keep the look they were drawn with.
"""

import json
import re
import sys
from pathlib import Path

from sdd_utils import sources, study as studies, vllm_installed
from sdd_utils.parameters import parameters_of

STUDY = config.get("study", "embedded")
S = studies.load(STUDY)
NAME = Path(STUDY).stem
RUN = config.get("run", f"work/{NAME}")
PUBLISH = config.get("publish", f"results/{NAME}")
RECORDS, LOGS = f"{RUN}/records", f"{RUN}/notebooks"
CAPACITIES = studies.capacities(S)
CAPACITY_NAMES = [f"-{name}" for name in CAPACITIES]  # in file names; the study's own capacity has none
TUNED = [(n, seed) for n in S.finetune_block_sizes for seed in S.seeds]

localrules: all, model  # on a cluster, where Snakemake runs: that machine has the network

wildcard_constraints:
    n=r"\d+", seed=r"\d+", rows=r"\d+|all", capacity=f"({'|'.join(map(re.escape, CAPACITY_NAMES))})?",
    data="|".join(S.data_sets), other="|".join(S.data_sets)


def uses(notebook, *modules):
    """A rule's code: its notebook and the modules of sdd_utils that the notebook calls."""
    return [f"notebooks/{notebook}.ipynb", *(f"sdd_utils/{module}.py" for module in modules)]


def parameters(notebook, **which):
    """A job's parameters as JSON: the study's keys that the notebook takes, and what the job is run on."""
    return json.dumps(parameters_of(STUDY, notebook=notebook) | {"study": NAME, "run": RUN} | which)


def tuned(notebook, wildcards, **which):
    """Parameters of a job on one fine-tuned model."""
    which = {"train_rows": S.data_sets[wildcards.data]} | which
    which |= {"block_size": int(wildcards.n), "data_set": wildcards.data, "seed": int(wildcards.seed)}
    return parameters(notebook, **which)


def finetuning_on(wildcards):
    """What one fine-tuning is run on besides: rows, LoRA capacity, and the data sets that fidelity is measured on."""
    capacity = wildcards.capacity[1:]
    which = {"train_rows": int(wildcards.rows.replace("all", "0")), "answer_sets": [*S.data_sets]}
    return which | {"capacity": capacity} | CAPACITIES.get(capacity, {})


def finetuned(**which):
    """The record of a fine-tuning."""
    return f"{RECORDS}/{studies.label('finetuning', **which)}.json"


def main_finetuned(wildcards, data):
    return finetuned(block_size=wildcards.n, data_set=data, rows=S.data_sets[data], seed=wildcards.seed)


def records_among(paths):
    """The file names of the records among a job's inputs: a run's folder may hold those of earlier keys as well."""
    return sorted(Path(path).name for path in paths if Path(path).parent == Path(RECORDS))


def execute(notebook):
    """The command of a job, in a process of its own, which starts in half the time that a `run:` takes."""
    return f"{sys.executable} -m sdd_utils.notebooks {notebook} {{log:q}} {{params.values:q}} {{threads}}"


VLLM = ["vllm_installed", "vllm_client", "vllm_process"] if vllm_installed.available() else []
GENERATING = ["generation", "decoding", "drafts", "slots", "attention", "packed", "models", "hardware", *VLLM]
SCORING = ["evaluation", "shared_context", *GENERATING]
TRAINING = ["finetuning", "arms", "training", "lora"]
MERGING = ["merging", "tensor_files", *SCORING, *(TRAINING if S.train_on_mixture else [])]
RESULTS = "results inference grid domains contrasts claims verdicts report shift side_tables amounts arms paper plots side_plots page similarity".split()
OWN_SOURCES = [sources.own(name, keys) for name, keys in S.own_data.items()]
OWN_FILES = [str(path) for path in map(sources.local_file, OWN_SOURCES) if path]
DATA = ["sdd_utils/data.py", "sdd_utils/sources.py", "sdd_utils/pydoc_names.txt", *OWN_FILES]
TASKS = [*map(str, sorted(Path("sdd_utils/tasks").glob("*.*")))] + ["sdd_utils/facts.py", *DATA]


rule all:
    input: f"{RECORDS}/results.json"

rule model:
    output: touch(f"{RUN}/model.found")
    params: model=S.model
    message: "find or convert the model {params.model}"
    shell: f"{sys.executable} -c 'import sys; from sdd_utils import models; models.find(sys.argv[1])' {{params.model:q}}"

rule similarity:
    input: uses("01_similarity_analysis", "similarity", "models", "hardware"), DATA, rules.model.output
    output: f"{RECORDS}/similarity.json"
    log: f"{LOGS}/similarity.ipynb"
    params: values=parameters("01_similarity_analysis")
    message: "01 similarity"
    resources: mem_mb=3000
    shell: execute("01_similarity_analysis")

rule pruning:
    input: uses("02_pruning", "pruning", "fidelity", *SCORING), TASKS, rules.similarity.output,
        [f"{RECORDS}/distillation-{data}.json" for data in S.data_sets]  # the original's answers
    output: f"{RECORDS}/pruning-n{{n}}.json", f"{RUN}/checkpoints/n{{n}}/manifest.json"
    log: f"{LOGS}/pruning-n{{n}}.ipynb"
    params: values=lambda w: parameters("02_pruning", block_size=int(w.n), answer_sets=[*S.data_sets])
    message: "02 pruning, n = {wildcards.n}"
    priority: 2  # most waits for it
    resources: mem_mb=3000
    shell: execute("02_pruning")

rule distillation:
    input: uses("03_self_data_distillation", "distillation", "fidelity", "arms", *GENERATING), DATA, rules.model.output
    output: f"{RECORDS}/distillation-{{data}}.json"
    log: f"{LOGS}/distillation-{{data}}.ipynb"
    params: values=lambda w: parameters("03_self_data_distillation", data_set=w.data, train_rows=S.data_sets[w.data])
    message: "03 self-data distillation of {wildcards.data}"
    resources: mem_mb=3000
    shell: execute("03_self_data_distillation")

rule finetuning:
    input: uses("04_sft_vs_self_distill", *TRAINING, "fidelity", *SCORING), TASKS,
        rules.distillation.output, rules.pruning.output
    output: f"{RECORDS}/finetuning-n{{n}}-{{data}}-{{rows}}rows{{capacity}}-s{{seed}}.json"
    log: f"{LOGS}/finetuning-n{{n}}-{{data}}-{{rows}}rows{{capacity}}-s{{seed}}.ipynb"
    params: values=lambda w: tuned("04_sft_vs_self_distill", w, **finetuning_on(w))
    message: "04 fine-tuning of each arm, n = {wildcards.n}, {wildcards.data}, {wildcards.rows} rows{wildcards.capacity}, seed {wildcards.seed}"
    priority: 1  # takes longest, so the short jobs fill the end of a run
    resources: mem_mb=4000
    shell: execute("04_sft_vs_self_distill")

rule merging:
    input: uses("05_model_merging", "results", "inference", *MERGING), TASKS,
        rules.pruning.output, f"{RECORDS}/pruning-n0.json", lambda w: [main_finetuned(w, w.data), main_finetuned(w, w.other)]
    output: f"{RECORDS}/merging-n{{n}}-{{data}}+{{other}}-s{{seed}}.json"
    log: f"{LOGS}/merging-n{{n}}-{{data}}+{{other}}-s{{seed}}.ipynb"
    params: values=lambda w: tuned("05_model_merging", w, other_data_set=w.other, other_train_rows=S.data_sets[w.other])
    message: "05 merges of {wildcards.data} and {wildcards.other}, n = {wildcards.n}, seed {wildcards.seed}"
    resources: mem_mb=3000
    shell: execute("05_model_merging")

rule embedding_similarity:
    input: uses("06_embedding_similarity", "results", "embeddings", "fidelity", *GENERATING),
        lambda w: main_finetuned(w, w.data)
    output: f"{RECORDS}/embedding_similarity-n{{n}}-{{data}}-s{{seed}}.json"
    log: f"{LOGS}/embedding_similarity-n{{n}}-{{data}}-s{{seed}}.ipynb"
    params: values=lambda w: tuned("06_embedding_similarity", w)
    message: "06 embedding similarity, n = {wildcards.n}, {wildcards.data}, seed {wildcards.seed}"
    resources: mem_mb=3000
    shell: execute("06_embedding_similarity")

rule results:
    input: uses("08_results", *RESULTS), "sdd_utils/page.html", rules.similarity.output,
        expand(rules.pruning.output, n=[0, *S.block_sizes]), expand(rules.distillation.output, data=S.data_sets),
        [finetuned(**which) for which in studies.finetunings(S)],
        [expand(rules.embedding_similarity.output, n=n, seed=seed, data=S.data_sets) for n, seed in TUNED],
        [expand(rules.merging.output, n=n, seed=seed, data=a, other=b) for n, seed in TUNED for a, b in S.merge_pairs]
    output: f"{RECORDS}/results.json"
    log: f"{LOGS}/results.ipynb"
    params:
        values=lambda w, input: parameters("08_results", publish=PUBLISH, record_names=records_among(input)),
        names=lambda w, input: [*records_among(input), "results.json"]
    message: "08 results: tables, figures and pages into {PUBLISH}"
    shell: f"{execute('08_results')} && {sys.executable} -m sdd_utils.publishing {{RUN:q}} {{PUBLISH:q}} {{params.names:q}}"
