"""One command from a model's name to a folder that serves: `make compress MODEL=… DATA=… CUT=16% OUT=compressed`."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdd_utils.compress.request import Request
    from sdd_utils.compress.settings import Settings

COLUMNS = ("instruction", "context", "response", "answer")
NAMES = ("model", "data", "cut", "arm", "rows", "seed")  # of a request, beside columns


def main() -> int:
    """Parse the command line and compress; exit status 2 and one sentence on wrong input, 130 when interrupted."""
    try:  # imports take seconds, in which one may interrupt as well
        from sdd_utils.base import disk

        arguments = _parser().parse_args()
        with disk.told(), _damage_told(arguments.out):
            _compress(arguments)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)  # libraries say it in many lines
        return 2
    except KeyboardInterrupt:
        print("interrupted: what is done is kept, the same command goes on from there", file=sys.stderr)
        return 130
    return 0


@contextmanager
def _damage_told(out: str) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        said = f"a file of weights is damaged ({error}): remove {out}.work, or get the model anew"
        raise ValueError(said) from None


def _compress(arguments: argparse.Namespace) -> None:
    from sdd_utils.base import precision
    from sdd_utils.engine import vllm_installed

    precision.wanted_dtype()  # wrong environment variables are told before any work
    vllm_installed.engine()
    from sdd_utils.compress import card, chain, plan  # here, for torch's import takes seconds

    request, wanted, block = _asked(arguments)
    chain.check_out(out := Path(arguments.out).absolute(), chain.asked_of(request, wanted))
    print(_told(request, wanted), flush=True)
    if arguments.dry_run:
        print(plan.table(plan.stages_of(wanted)))
        return
    result = chain.compress(request, wanted, out=out, block=block, say=partial(print, flush=True))
    print(f"\n{card.score_table(result).to_string(index=False)}\n\n{card.summary(result, wanted.arm)}")
    work = chain.work_folder(out)
    print(f"{out} holds the model, {work / chain.ANSWERS} the answers; {work} serves only to try another arm or seed")


def _asked(arguments: argparse.Namespace) -> tuple["Request", "Settings", dict | None]:
    """The request with its settings; of a recipe also the block that it cut."""
    from sdd_utils.compress import chain, settings
    from sdd_utils.compress.request import Request

    given = {name: getattr(arguments, name) for name in NAMES if getattr(arguments, name) is not None}
    given |= {name: _number(name, given[name]) for name in ("rows", "seed") if name in given}
    columns = {name: getattr(arguments, name) for name in COLUMNS if getattr(arguments, name)}
    if not arguments.recipe:
        for name in ("model", "data"):
            if not given.get(name):
                raise ValueError(f"no {name} is named: say {name.upper()}=…, see docs/own-model.md")
        request = Request(**given, columns=columns)
        return request, settings.settings_of(request), None
    if also := [*columns, *(given.keys() - {"model", "data"})]:
        raise ValueError(f"RECIPE says all but OUT, MODEL and DATA: leave {also[0].upper()} out, or the recipe")
    places = {name: given.get(name, "") for name in ("model", "data")}
    request, wanted, made = chain.read_recipe(Path(arguments.recipe), **places)
    return request, wanted, made["block"]


def _number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name} {text!r} is no whole number: say, as an example, {name.upper()}=100") from None


def _told(request: "Request", wanted: "Settings") -> str:
    own, rows = wanted.own_data.get(wanted.data_set, {}), wanted.data_sets[wanted.data_set]
    columns = "".join(f"; {key} is its column {own[key]!r}" for key in COLUMNS if key in own)
    return "\n".join(
        [
            f"model: {request.model}, {wanted.block_size} layers are cut (CUT={request.cut})",
            f"data:  {request.data}, {rows} rows to train on, {wanted.held_out} held out{columns}",
            f"arm:   {wanted.arm}; rewrites of {wanted.rewrite_tokens} tokens, rows of {wanted.max_length} at most\n",
        ]
    )


def _parser() -> argparse.ArgumentParser:
    from sdd_utils.compress.request import Request

    parser = argparse.ArgumentParser(prog="sdd_utils.compress", description=__doc__)
    parser.add_argument("--model", help="hub id org/name[@revision], folder, .gguf file or catalogue name")
    parser.add_argument("--data", help="JSON lines, JSON, CSV or Parquet file, hub data set, or a known set's name")
    cut = "layers (4), parameters (16%%) or weights in memory (6GB)"
    parser.add_argument("--cut", help=f"{cut}; default {Request.cut.replace('%', '%%')}")
    parser.add_argument("--out", default="compressed", help="the folder to make; default %(default)s")
    parser.add_argument("--arm", help=f"how the pruned model is healed; default {Request.arm}")
    parser.add_argument("--rows", help="training rows, 0 for all; default 800, or all if there are fewer")
    parser.add_argument("--seed", help=f"of sampling and training; default {Request.seed}")
    for name in COLUMNS:
        parser.add_argument(f"--{name}", help=f"the column with the {name}, if its name does not say so; - for none")
    parser.add_argument("--recipe", help="the recipe.yaml of a compressed folder, in place of all other options")
    parser.add_argument("--dry-run", action="store_true", help="print what it will take, and make nothing")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
