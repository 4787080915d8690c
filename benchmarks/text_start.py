"""Whether a model's blocks would be chosen otherwise if texts began without its BOS token, and what a cut does to a
configuration that names its layers' kinds.

    python -m benchmarks.text_start gemma3-270m --block-size 4       # a minute; adds to text_start.json and .md here

Blocks are chosen from the embedded study's calibration set, as notebook 01 does it.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import pandas as pd

from benchmarks import run
from benchmarks.compare import model_name
from sdd_utils.base.provenance import process_provenance
from sdd_utils.data.rows import calibration_set, text_of
from sdd_utils.models import architecture, store
from sdd_utils.steps import similarity
from sdd_utils.study.schema import load_study

OUT = Path(__file__).with_suffix(".json")


def compare(name: str, texts: list[str], *, block_size: int, max_length: int, batch_size: int) -> dict:
    """The block that is chosen with and without BOS, whether there is one, and the layers of each kind around the cut.

    Returns:
        {adds_bos, blocks: {as it is, without BOS}, tied, layer_types: {before, after}}; `layer_types` are the numbers
        of the layers of each kind, by kind, and empty where the configuration names none.
    """
    model, tokenizer = store.load_model(name)
    settings = {"batch_size": batch_size, "max_length": max_length}
    bare = partial(tokenizer, add_special_tokens=False)
    block, other = (_block(model, reader, texts, block_size, **settings) for reader in (tokenizer, bare))
    cut = architecture.pruned_config(model.config, start=block["start"], block_size=block_size)
    return {
        "adds_bos": tokenizer("text")["input_ids"] != bare("text")["input_ids"],
        "blocks": {"as it is": block, "without BOS": other},
        "tied": bool(model.config.tie_word_embeddings),
        "layer_types": {"before": kinds_of(model.config), "after": kinds_of(cut)},
    }


def _block(model, tokenizer, texts: list[str], block_size: int, **settings) -> dict:
    measured = similarity.measure_similarity(model, tokenizer, texts, **settings)
    return similarity.choose_blocks(measured, [block_size])[0]


def kinds_of(config) -> dict[str, list[int]]:
    """The numbers of the layers of each kind."""
    kinds = getattr(config.get_text_config(), "layer_types", None) or []
    return {kind: [number for number, own in enumerate(kinds) if own == kind] for kind in sorted(set(kinds))}


def table(entries: list[dict]) -> pd.DataFrame:
    """A row per model and block size."""
    return pd.DataFrame(
        {
            "model": model_name(entry["model"]),
            "opens texts with BOS": "yes" if entry["adds_bos"] else "no",
            **{f"block {how}": _shown(block) for how, block in entry["blocks"].items()},
            **{f"layers of each kind, {when}": _counted(kinds) for when, kinds in entry["layer_types"].items()},
        }
        for entry in entries
    )


def _shown(block: dict) -> str:
    return f"[{block['start']}, {block['start'] + block['block_size']}), distance {block['distance']:.4f}"


def _counted(kinds: dict[str, list[int]]) -> str:
    return ", ".join(f"{kind.removesuffix('_attention')} {len(numbers)}" for kind, numbers in kinds.items()) or "-"


def main() -> None:
    """Compare one model and keep what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="catalogue name, folder, GGUF file or hub id")
    parser.add_argument("--block-size", type=int, required=True)
    given, study = parser.parse_args(), load_study("embedded")
    texts = [text_of(row) for row in calibration_set(study.calibration_sets, rows=study.calibration_rows)]
    settings = {"max_length": study.max_length, "batch_size": study.calibration_batch}
    found = compare(given.model, texts, block_size=given.block_size, **settings)
    on = {"model": given.model, "weights": store.weights_digest(given.model), "block_size": given.block_size}
    entry = on | found | {"provenance": process_provenance(seed=None)}
    run.keep([entry], OUT, key=("model", "block_size"), table=table)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
