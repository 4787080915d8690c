"""The sweep as a graph: one rule per notebook, run through papermill. Start it with `make reproduce`.

The jobs are those of `sdd_utils.study.jobs`. A job's output is the JSON record that its notebook writes last; the
executed notebook is its log. A rule's code is its notebook and the modules behind it in the rooms that make numbers,
read from the import graph: editing one of them reruns its jobs, and editing a study key reruns the jobs that use it.
"""

import json
import os
import re
import shlex
import sys
from functools import cache
from pathlib import Path

import nbformat

from sdd_utils import ROOT
from sdd_utils.base.import_graph import NUMBERS, files_behind, modules_of_notebook
from sdd_utils.base.records import NOTEBOOKS
from sdd_utils.data.sources import local_file, own_source
from sdd_utils.study.jobs import study_jobs
from sdd_utils.study.notebook_parameters import parameters_of
from sdd_utils.study.schema import load_study, name_of

GIVEN = config | config.get("sweep", {})  # by `reproduce`, or key by key
STUDY = str(GIVEN.get("study", "embedded"))
S, NAME = load_study(STUDY), name_of(STUDY)
RUN = GIVEN.get("run", f"work/{NAME}")
RECORDS, LOGS = f"{RUN}/records", f"{RUN}/notebooks"
JOBS = {job.name: job for job in study_jobs(S)}
# What else decides numbers: another precision or engine that is asked for runs the jobs again.
ENVIRONMENT = {name: os.environ.get(name, "") for name in ("SDD_DTYPE", "SDD_ENGINE")}
PYTHON = shlex.quote(sys.executable).replace("{", "{{").replace("}", "}}")  # commands are formatted


def from_here(paths):
    """Paths as they are seen from the repository, whose own place may hold what Snakemake takes for a wildcard."""
    return [str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path) for path in paths]


OWN_FILES = from_here(path for name, keys in S.own_data.items() if (path := local_file(own_source(name, keys))))

localrules: all, model  # on a cluster, where Snakemake runs: that machine has the network


def code(step, *more, rooms=NUMBERS):
    """The files of code that a step's numbers depend on: behind its notebook, and behind these modules."""
    notebook = f"notebooks/{NOTEBOOKS[step]}.ipynb"
    cells = [cell.source for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    return [notebook, *from_here(files_behind({*modules_of_notebook(cells), *more}, rooms=rooms))]


def of(step):
    """The wildcard that stands for the jobs of a step: what follows its name in a record's name."""
    names = [re.escape(name.removeprefix(f"{step}-")) for name, job in JOBS.items() if job.step == step]
    return f"{{job,{'|'.join(names) or 'none'}}}"


def needed(step):
    """A function from a job to the records that it reads."""
    return lambda w: [f"{RECORDS}/{name}.json" for name in JOBS["-".join([step, *w])].needs]


def parameters(name, **more):
    """A job's parameters as JSON: the study's keys that its notebook takes, and what the job is run on."""
    job = JOBS[name]
    return json.dumps(parameters_of(S, notebook=NOTEBOOKS[job.step]) | {"study": NAME, "run": RUN} | job.parameters | more)


@cache
def planned_memory():
    """The plan's peak memory of every job; it loads torch, so only where a job is about to run."""
    from sdd_utils.sweep.plan import memory_of_jobs

    return memory_of_jobs(S)


def memory(step):
    """A function from a job to the MB of main memory that the plan expects it to take."""
    return lambda w: planned_memory()["-".join([step, *w])]


def execute(step):
    """The command of a job, in a process of its own, which starts in half the time that a `run:` takes."""
    return f"{PYTHON} -m sdd_utils.sweep.run_notebook {NOTEBOOKS[step]} {{log:q}} {{params.values:q}} {{threads}}"


rule all:  # every record, so that one which was deleted is made again
    input: [f"{RECORDS}/{name}.json" for name in JOBS]

rule model:
    output: touch(f"{RUN}/model.found")
    params: model=S.model
    message: "find or convert the model {params.model}"
    shell: f"{PYTHON} -m sdd_utils.models.store {{params.model:q}}"

rule similarity:
    input: code("similarity"), OWN_FILES, rules.model.output
    output: f"{RECORDS}/similarity.json"
    log: f"{LOGS}/similarity.ipynb"
    params: values=parameters("similarity"), environment=ENVIRONMENT
    message: "01 similarity"
    resources: mem_mb=memory("similarity")
    shell: execute("similarity")

rule pruning:
    input: code("pruning"), OWN_FILES, needed("pruning")
    output: f"{RECORDS}/pruning-{of('pruning')}.json", f"{RUN}/checkpoints/{{job}}/manifest.json"
    log: f"{LOGS}/pruning-{{job}}.ipynb"
    params: values=lambda w: parameters(f"pruning-{w.job}"), environment=ENVIRONMENT
    message: "02 pruning, {wildcards.job}"
    priority: 2  # most waits for it
    resources: mem_mb=memory("pruning")
    shell: execute("pruning")

rule selection:
    input: code("selection"), OWN_FILES, needed("selection")
    output: f"{RECORDS}/selection-{of('selection')}.json"
    log: f"{LOGS}/selection-{{job}}.ipynb"
    params: values=lambda w: parameters(f"selection-{w.job}"), environment=ENVIRONMENT
    message: "02b layer selection, {wildcards.job}"
    resources: mem_mb=memory("selection")
    shell: execute("selection")

rule distillation:
    input: code("distillation"), OWN_FILES, rules.model.output
    output: f"{RECORDS}/distillation-{of('distillation')}.json"
    log: f"{LOGS}/distillation-{{job}}.ipynb"
    params: values=lambda w: parameters(f"distillation-{w.job}"), environment=ENVIRONMENT
    message: "03 self-data distillation of {wildcards.job}"
    resources: mem_mb=memory("distillation")
    shell: execute("distillation")

rule finetuning:
    input: code("finetuning"), OWN_FILES, needed("finetuning")
    output: f"{RECORDS}/finetuning-{of('finetuning')}.json"
    log: f"{LOGS}/finetuning-{{job}}.ipynb"
    params: values=lambda w: parameters(f"finetuning-{w.job}"), environment=ENVIRONMENT
    message: "04 fine-tuning of each arm, {wildcards.job}"
    priority: 1  # takes longest, so the short jobs fill the end of a run
    resources: mem_mb=memory("finetuning")
    shell: execute("finetuning")

rule merging:
    input: code("merging"), OWN_FILES, needed("merging")
    output: f"{RECORDS}/merging-{of('merging')}.json"
    log: f"{LOGS}/merging-{{job}}.ipynb"
    params: values=lambda w: parameters(f"merging-{w.job}"), environment=ENVIRONMENT
    message: "05 merges, {wildcards.job}"
    priority: 2  # the adapters that it reads are not saved
    resources: mem_mb=memory("merging")
    shell: execute("merging")

rule embedding_similarity:
    input: code("embedding_similarity"), needed("embedding_similarity")
    output: f"{RECORDS}/embedding_similarity-{of('embedding_similarity')}.json"
    log: f"{LOGS}/embedding_similarity-{{job}}.ipynb"
    params: values=lambda w: parameters(f"embedding_similarity-{w.job}"), environment=ENVIRONMENT
    message: "06 embedding similarity, {wildcards.job}"
    priority: 2  # the adapters that it reads are not saved
    resources: mem_mb=memory("embedding_similarity")
    shell: execute("embedding_similarity")

rule speculative_decoding:
    input: code("speculative_decoding"), OWN_FILES, needed("speculative_decoding")
    output: f"{RECORDS}/speculative_decoding.json"
    log: f"{LOGS}/speculative_decoding.ipynb"
    params: values=lambda w: parameters("speculative_decoding"), environment=ENVIRONMENT
    message: "07 speculative decoding"
    priority: 2  # the adapters that it reads are not saved
    resources: mem_mb=memory("speculative_decoding")
    shell: execute("speculative_decoding")

rule quantization:
    input: code("quantization"), needed("quantization")
    output: f"{RECORDS}/quantization.json"
    log: f"{LOGS}/quantization.ipynb"
    params: values=lambda w: parameters("quantization"), environment=ENVIRONMENT
    message: "08 quantization"
    priority: 2  # the adapters that it reads are not saved
    resources: mem_mb=memory("quantization")
    shell: execute("quantization")

rule results:
    input: code("results", "sdd_utils.report.redraw", rooms=("base.number_format", "data.arms", "analysis", "report")),
        "sdd_utils/report/page.html",
        [f"{RECORDS}/{name}.json" for name in JOBS["results"].needs]
    output: f"{RECORDS}/results.json"
    log: f"{LOGS}/results.ipynb"
    params:
        values=parameters("results", record_names=[f"{name}.json" for name in JOBS["results"].needs])
    message: "09 results: tables, figures and page into {RUN}"
    shell: f"{execute('results')} && {PYTHON} -m sdd_utils.report.redraw {{RUN:q}}/ > /dev/null"
