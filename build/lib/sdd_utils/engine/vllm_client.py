"""Generation and evaluation by vLLM, which lives in an environment of its own: `make vllm`, see docs/vllm.md.

Every call starts `vllm_process.py` with that environment's interpreter, waits for it and reads what it wrote. A
start takes half a minute to two minutes, so ask for much at once. While a job runs, and after it failed, its folder
`work/vllm/<job>-…/` holds the job and its log.
"""

import contextlib
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from sdd_utils import ROOT
from sdd_utils.base import precision
from sdd_utils.base.files import drop_half_line, read_json_lines
from sdd_utils.engine import vllm_installed, vllm_process
from sdd_utils.models import store

WORK = ROOT / "work" / "vllm"
PROCESS = vllm_process.__name__
# An error as a traceback ends, behind whatever names the process; with the line below it, where that is indented.
_CAUSE = re.compile(
    r"^(?:\(.*?\) )*(?:ERROR .*?\] |\[rank\d+\]: )?(\w[\w.]*(?:Error|Exception): .+(?:\n[ \t]+\S.*)?)$", re.M
)


def generate_texts(
    model: str | Path,
    prompts: dict[str, str],
    *,
    path: Path,
    adapter: Path | None = None,
    dtype=None,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    greedy: Sequence[str] = (),
    speculate: bool = False,
) -> list[dict]:
    """Generate one continuation per prompt into a JSON-lines file, a line as soon as it is finished.

    Rows that the file already has are not generated again; the caller empties it when anything changed.

    Args:
        model: see `store.find_model`.
        prompts: rendered text by id.
        adapter: folder of a LoRA adapter, applied beside the weights.
        dtype: compute dtype, by default `precision.compute_dtype()`.
        temperature: 0 is greedy decoding.
        greedy: ids of rows that are decoded greedily at any temperature.
        speculate: guess tokens by what follows the same n-gram earlier in the text. Faster where an answer copies
            its prompt; the distribution stays the same, but a sampled text differs from the one made without. On a CPU
            it holds for greedy decoding only.

    Returns:
        rows {id, text, finish, n_tokens, end_token, seed} in the order of `prompts`, see `chat_format.finished`. Each
        row is drawn with a seed of its own, so its text does not depend on the batch, up to floating-point ties.

    Raises:
        RuntimeError: vLLM is not installed or failed, in one sentence with the cause and the place of the log.
    """
    drop_half_line(path)
    missing = prompts.keys() - {row["id"] for row in read_json_lines(path)}
    if missing:
        settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k}
        job = {"prompts": {id_: text for id_, text in prompts.items() if id_ in missing}, "out": str(path.absolute())}
        settings |= {"seed": seed, "greedy": [*greedy], "speculate": speculate}
        _run("generate", job | _source(model, adapter, dtype) | settings)
    rows = {row["id"]: row for row in read_json_lines(path)}
    return [rows[id_] for id_ in prompts]


def evaluate(
    model: str | Path,
    *,
    adapter: Path | None = None,
    dtype=None,
    tasks: dict[str, int],
    shots: dict[str, int],
    chat_tasks: list[str],
) -> dict[str, dict]:
    """Score a model on every task with lm-eval's own vLLM class.

    Args:
        model, adapter, dtype: see `generate_texts`.
        tasks: number of documents by task, always the first ones; 0 is all.
        shots: number of few-shot examples by task, where it is not the task's own.
        chat_tasks: the tasks that are asked in the model's chat format.

    Returns:
        by task, what `lm_eval_task.evaluate_task` returns: results, samples (without documents and prompts), n-shot,
        versions and higher_is_better.

    Raises:
        RuntimeError: see `generate_texts`.
    """
    return _result(
        "evaluate", _source(model, adapter, dtype) | {"tasks": tasks, "shots": shots, "chat_tasks": chat_tasks}
    )


def _source(model: str | Path, adapter: Path | None, dtype) -> dict:
    """Where the weights are and how to compute with them, as JSON."""
    return {
        "model": str(store.find_model(str(model))),
        "adapter": str(Path(adapter).absolute()) if adapter else None,
        "ends": store.end_tokens(model),
        "dtype": str(dtype or precision.compute_dtype()).removeprefix("torch."),
        "gpu_share": _gpu_share(),
    }


def _gpu_share() -> float:
    """The share of each GPU's memory that vLLM may claim: it does not start on more than is free, and the calling
    notebook may keep models there. Log-likelihoods of a prompt need room for its logits beside it."""
    gc.collect()
    torch.cuda.empty_cache()
    memory = [torch.cuda.mem_get_info(device) for device in range(torch.cuda.device_count())]
    return min([0.8, *(free / total - 0.05 for free, total in memory)])


def _result(name: str, job: dict) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        _run(name, job | {"out": str(out)})
        return json.loads(out.read_text())


def _run(name: str, job: dict) -> None:
    """Run one job to its end; the folder with its log stays only if it failed."""
    if not vllm_installed.available():
        raise RuntimeError(vllm_installed.MISSING)
    WORK.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=WORK))
    (folder / "job.json").write_text(json.dumps({"job": name} | job))
    log, out = folder / "log.txt", Path(job["out"])
    status = _wait(folder / "job.json", log=log, out=out, rows=len(job.get("prompts", ())))
    if status:
        raise RuntimeError(f"vLLM failed to {name} ({_how(status)}): {_cause(log)} (all of it: {log})")
    shutil.rmtree(folder)


def _wait(job: Path, *, log: Path, out: Path, rows: int) -> int:
    """The exit status of the process; its children end with it. Progress is the number of new lines in `out`."""
    command = [vllm_installed.VENV / "bin" / "python", "-m", PROCESS, job]
    before = _lines(out)
    with (
        log.open("wb") as file,
        tqdm(total=rows, desc="generation by vLLM", unit="row", disable=None if rows else True) as bar,
    ):
        streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}
        process = subprocess.Popen(command, cwd=ROOT, env=_environment(), start_new_session=True, **streams)
        try:
            while process.poll() is None:
                time.sleep(0.2)
                bar.update(_lines(out) - before - bar.n)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode


def _environment() -> dict[str, str]:
    """This process's variables but a notebook's way to draw, which the other environment does not know."""
    return {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _how(status: int) -> str:
    return f"exit status {status}" if status > 0 else f"killed by signal {-status}; 9 may mean that memory ran out"


def _cause(log: Path) -> str:
    """The first error of a log, from which the others follow; its last line if none looks like one."""
    text = log.read_text(encoding="utf-8", errors="replace")
    match = _CAUSE.search(text)
    return " ".join(match[1].split()) if match else next(reversed(text.splitlines()), "its log is empty")
