"""How many rewrites are kept, by the wording of the prompt that asks for them.

    python -m benchmarks.rewrite_wordings gsm8k --model FOLDER --name "Qwen2.5-Coder-0.5B-Instruct"

Every call adds its entries to `rewrite_wordings.json`. Texts are kept under `work/`: a call that was stopped goes on.
The wordings: `present` is the one of `steps.distillation`, `former` the one that it replaced.
"""

import argparse
import json
from pathlib import Path

import pandas as pd
from scipy.stats import binomtest

from sdd_utils import ROOT
from sdd_utils.base.provenance import process_provenance
from sdd_utils.data.rows import load_rows, question_of
from sdd_utils.models import store
from sdd_utils.steps import answer_check, distillation

OUT = Path(__file__).with_suffix(".json")
FORMER = (
    "Below are an instruction that describes a task and a reference answer. Use the reference answer as a guide "
    "and write your own response to the instruction.\n\n"
    "### Instruction:\n{instruction}\n\n### Reference Answer:\n{response}\n\n### Response:\n"
)
FORMER_MATH_SYSTEM = "You are an expert in math. Below are a math question and its reference answer."
FORMER_MATH = (
    "Write your own step-by-step solution, with the reference answer as a guide. {ending}\n\n"
    "### Question:\n{instruction}\n\n### Reference Answer:\n{response}\n"
)
FORMER_OPENING = "Let's solve this step by step:\n"


def former(row: dict) -> list[dict]:
    """The template of the parent method, SDFT (arXiv 2402.13669): one turn, with the response as "Reference Answer"."""
    fields = {"instruction": question_of(row), "response": row["response"]}
    ending = answer_check.ENDINGS.get(answer_check.check_of(row))
    if ending is None:
        return [{"role": "user", "content": FORMER.format(**fields)}]
    return [
        {"role": "system", "content": FORMER_MATH_SYSTEM},
        {"role": "user", "content": FORMER_MATH.format(**fields, ending=ending)},
        {"role": "assistant", "content": FORMER_OPENING},
    ]


NUMBERS = {"rows": 200, "max-response-words": 0, "max-new-tokens": 320, "attempts": 3, "top-k": 0, "batch-size": 64}
WORDINGS = {"present": distillation.rewrite_messages, "former": former}


def measure(model: str, rows: list[dict], wording: str, *, path: Path, settings: dict) -> dict:
    """Acceptance of the rewrites that a wording brings, after each attempt and by reason."""
    distillation.ASKED_BY[wording] = WORDINGS[wording]
    written = distillation.rewrite(model, rows, path=path, which=wording, **settings)
    first, last = ([*distillation.judge(rows, texts)] for texts in (written[: len(rows)], written))
    found = distillation.statistics(rows, last)
    counts = [
        sum(entry["kept"] for entry in found["attempts"][:number]) for number in range(1, settings["attempts"] + 1)
    ]
    return {
        "rows": len(rows),
        "kept": [
            {"rows": count, "share": count / len(rows), "interval": _interval(count, len(rows))} for count in counts
        ],
        "first_attempt": distillation.statistics(rows, first)["reasons"],
        "attempts": found["attempts"],
        "copy_rate": found["copy_rate"],
        "overlap_8gram": found["overlap_8gram"],
        "words_per_response": sum(found["words_original"]) / len(rows),
        "words_per_kept_rewrite": _mean_words(last),
        "tokens_per_rewrite": sum(text["n_tokens"] for text in written) / len(written),
    }


def _interval(count: int, rows: int) -> list[float]:
    """95 %, Wilson's."""
    return [float(bound) for bound in binomtest(count, rows).proportion_ci(method="wilson")]


def _mean_words(judged: list[dict]) -> float:
    kept = [len(row["response"].split()) for row in judged if row["source"] == "distilled"]
    return sum(kept) / max(len(kept), 1)


def add(entry: dict) -> None:
    """Put an entry in the place of the one with the same name, data set and wording."""
    keys = ("model", "data_set", "wording")
    before = json.loads(OUT.read_text()) if OUT.is_file() else []
    others = [other for other in before if [other[key] for key in keys] != [entry[key] for key in keys]]
    entries = sorted([*others, entry], key=lambda one: [one[key] for key in keys])
    OUT.write_text(json.dumps(entries, indent=1) + "\n")
    OUT.with_suffix(".md").write_text(table(entries).to_markdown(index=False, disable_numparse=True) + "\n")


def table(entries: list[dict]) -> pd.DataFrame:
    """The entries as text: shares of the rows, with their intervals."""
    words = {"model": "model", "data_set": "data set", "wording": "wording"}
    return pd.DataFrame(
        {name: entry[key] for key, name in words.items()}
        | {"rows": entry["rows"]}
        | {f"kept after {number}": _percent(kept) for number, kept in enumerate(entry["kept"], 1)}
        for entry in entries
    )


def _percent(kept: dict) -> str:
    low, high = (f"{bound:.0%}".rstrip("%") for bound in kept["interval"])
    return f"{kept['share']:.0%} [{low}, {high}]"


def main() -> None:
    """Measure the wordings asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_set")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="catalogue name, folder or hub id")
    parser.add_argument("--name", help="the model's name in the record (default: as given)")
    parser.add_argument("--wordings", nargs="*", default=[*WORDINGS], choices=WORDINGS)
    for key, value in NUMBERS.items():
        parser.add_argument(f"--{key}", type=int, default=value)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-p", type=float, default=0.8)
    given = parser.parse_args()
    names = ("max_new_tokens", "attempts", "temperature", "top_p", "top_k", "batch_size")
    settings = {name: getattr(given, name) for name in names} | {"seed": 0}
    asked = {"rows": given.rows, "max_response_words": given.max_response_words}
    rows = load_rows(given.data_set, split="train", **asked)
    name = given.name or given.model
    on = {"model": name, "weights": store.weights_digest(given.model), "data_set": given.data_set}
    for wording in given.wordings:
        path = ROOT / "work" / "rewrite_wordings" / f"{Path(name).name}-{given.data_set}-{wording}.jsonl"
        found = measure(given.model, rows, wording, path=path, settings=settings)
        add(
            on | {"wording": wording, "settings": settings | asked} | found | {"provenance": process_provenance(seed=0)}
        )
        print(name, given.data_set, wording, found["attempts"], found["first_attempt"], flush=True)


if __name__ == "__main__":
    main()
