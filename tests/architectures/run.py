"""The table of architectures: `make architectures`, or `python -m architectures.run [architecture ...]` within tests/.

Builds a tiny random model of every architecture that transformers has a causal language model for, checks on it what
the package does (`checks`), and writes `results/architectures.json` and `docs/architectures.md`. Rows of finished
architectures are kept under `work/architectures`, so an interrupted run goes on; rows of other code are made again.
"""

import contextlib
import faulthandler
import functools
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

SETTINGS = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}
SETTINGS |= {"SDD_DTYPE": "float32", "SDD_ENGINE": "transformers", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
os.environ |= SETTINGS  # before torch and transformers are imported

import torch  # noqa: E402
import transformers  # noqa: E402
from architectures import checks, tiny  # noqa: E402
from architectures.page import is_right, page_of  # noqa: E402

from sdd_utils import ROOT  # noqa: E402
from sdd_utils.base.files import digest, json_text, write_json, write_text  # noqa: E402
from sdd_utils.base.import_graph import code_digest  # noqa: E402
from sdd_utils.models import store  # noqa: E402

RECORD, PAGE = ROOT / "results" / "architectures.json", ROOT / "docs" / "architectures.md"
WORK = ROOT / "work" / "architectures"
VERSIONS = {name: version(name) for name in ("transformers", "torch", "peft", "trl", "lm-eval")}
BATCH, PROCESSES, SECONDS = 20, 2, 120  # architectures a process, processes at once, seconds an architecture


def row_of(kind: str) -> dict:
    """What the package does with one architecture; see `checks.run` for the answers."""
    row = {"architecture": kind, "class": tiny.CLASSES[kind]}
    if reason := tiny.left_out(kind):
        return row | {"left_out": reason}
    try:
        model = tiny.tiny_model(kind)
        ahead = checks.attends_ahead(model)
    except Exception as error:  # noqa: BLE001
        return row | {"not_built": checks.one_line(error)}
    return row | ({"left_out": "attends to later tokens: an encoder"} if ahead else answers(model))


def answers(model) -> dict:
    """The five columns of one row; the first two by block."""
    tokenizer, found = tiny.tokenizer(), {"cut": {}, "reload": {}}
    refused = checks.run(lambda: store.check_decoder(model.config, type(model).__name__))
    if refused:
        every = dict.fromkeys(checks.BLOCKS, refused)
        return {"cut": every, "reload": every} | dict.fromkeys(("decode", "train", "score"), refused)
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        scratch = Path(scratch)
        for block, (start, size) in checks.BLOCKS.items():
            where = {"start": start, "block_size": size}
            found["cut"][block] = checks.run(lambda where=where: checks.cut(model, **where))
            found["reload"][block] = checks.run(
                lambda where=where: checks.reload(model, tokenizer, scratch=scratch, **where)
            )
        found["decode"] = checks.run(lambda: checks.decode(model, tokenizer))
        found["train"] = checks.run(lambda: checks.train(model, tokenizer, scratch=scratch))
        found["score"] = checks.run(lambda: checks.score(model, tokenizer))
    return found


@functools.cache
def key() -> str:
    """Digest of all that rows depend on: the package's code that makes numbers, what builds and checks, versions."""
    code = code_digest(f"sdd_utils.{room}" for room in ("models", "engine", "steps"))
    own = [Path(module.__file__).read_text("utf-8") for module in (checks, tiny)]
    return digest(code, own, VERSIONS)


def work(kinds: Iterable[str]) -> None:
    """Write the rows of some architectures, one after another; ends the process where one takes too long."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    for kind in kinds:
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        write_json(WORK / f"{kind}.json", {"key": key(), "row": row_of(kind)})
        faulthandler.cancel_dump_traceback_later()


def finished(kind: str) -> dict | None:
    """The row of an architecture, if this code made it."""
    path = WORK / f"{kind}.json"
    kept = json.loads(path.read_text()) if path.is_file() else {}
    return kept["row"] if kept.get("key") == key() else None


def work_apart(kinds: list[str]) -> None:
    """`work` in a process of its own; an architecture that ends the process gets a row that says so."""
    while kinds := [kind for kind in kinds if not finished(kind)]:
        command = [sys.executable, "-m", "architectures.run", "--rows", *kinds]
        with (WORK / f"{kinds[0]}.log").open("w") as log:
            status = subprocess.run(command, cwd=ROOT / "tests", stdout=log, stderr=log, check=False).returncode
        broken = next((kind for kind in kinds if not finished(kind)), None)
        if broken:
            row = {"architecture": broken, "class": tiny.CLASSES[broken]}
            row["not_built"] = f"the process ended with status {status}, or took more than {SECONDS} s"
            write_json(WORK / f"{broken}.json", {"key": key(), "row": row})


def main(kinds: list[str]) -> int:
    """Make the rows that are missing, then the record and the page; exit status 1 where a row is wrong."""
    if kinds[:1] == ["--rows"]:
        work(kinds[1:])
        return 0
    WORK.mkdir(parents=True, exist_ok=True)
    missing = [kind for kind in kinds or tiny.CLASSES if not finished(kind)]
    with ThreadPoolExecutor(PROCESSES) as pool:
        list(pool.map(work_apart, [missing[i : i + BATCH] for i in range(0, len(missing), BATCH)]))
    rows = [finished(kind) for kind in kinds or tiny.CLASSES]
    if kinds:
        print(json_text(RECORD, rows))
    else:
        record = {"versions": VERSIONS, "rows": rows}
        write_json(RECORD, record)
        write_text(PAGE, page_of(record))
    wrong = [row["architecture"] for row in rows if not is_right(row)]
    print(f"{len(rows)} architectures; wrong or crashed: {', '.join(wrong) or 'none'}")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
