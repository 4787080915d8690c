"""`docs/architectures.md` from the record that `run` writes."""

from collections import defaultdict

COLUMNS = ("cut", "reload", "decode", "train", "score")
WORDS = ("exact", "falls back", "refused", "crash", "WRONG")  # the best first
HEAD = """# Architectures

Every architecture that transformers {transformers} has a causal language model for, and what the package does with it.
`make architectures` made this page. It prunes, saves, loads, decodes, trains and scores a tiny random model of each:
six layers, float32, on the CPU. Each result is compared with plain forward passes of one row.
[own-model.md](own-model.md) is about your own model.

- **exact**: our own way serves, and gives what plain passes give.
- **falls back**: a slower way serves (`generate`, lm-eval's own passes, rows one by one), and gives what they give.
- **refused**: one sentence instead of a result; see [below](#refusals).

The columns:

- *cut*: the model without its first layer, without three in the middle, and without its last two.
- *reload*: each of these, saved and loaded.
- *decode*: two prompts of different lengths at once.
- *packed training*: the first loss of a batch of three rows, with LoRA on all linear layers that peft allows.
- *score*: log-likelihoods of choices after contexts of different lengths.

{summary}

| architecture | cut | reload | decode | packed training | score |
|---|---|---|---|---|---|
"""


def page_of(record: dict) -> str:
    """The page as Markdown."""
    rows = record["rows"]
    checked = [row for row in rows if "cut" in row]
    table = "".join(
        f"| {row['architecture']} | {' | '.join(_cell(row[name]) for name in COLUMNS)} |\n" for row in checked
    )
    head = HEAD.format(transformers=record["versions"]["transformers"], summary=_summary(checked))
    return head + table + _refusals(checked) + _left_out(rows)


def _cell(answer: str | dict) -> str:
    """One word for all blocks, or the word of most of them and those that differ."""
    if isinstance(answer, str):
        return word_of(answer)
    words = {block: word_of(said) for block, said in answer.items()}
    best = min(words.values(), key=WORDS.index)
    others = [f"{block}: {word}" for block, word in words.items() if word != best]
    return "; ".join([best, *others])


def word_of(answer: str) -> str:
    """The word that a cell shows."""
    return answer.partition(":")[0]


def _summary(checked: list[dict]) -> str:
    """How many architectures are exact in all columns, and so on."""
    words = [{word_of(said) for name in COLUMNS for said in answers_of(row[name])} for row in checked]
    exact = sum(found == {"exact"} for found in words)
    served = sum("falls back" in found and found <= {"exact", "falls back"} for found in words)
    wrong = sum(not is_right(row) for row in checked)
    refused = len(words) - exact - served - wrong
    return (
        f"Of {len(checked)} decoders {exact} are exact throughout, {served} fall back somewhere, "
        f"{refused} are refused somewhere{f', and {wrong} are WRONG or crash somewhere' if wrong else ''}."
    )


def is_right(row: dict) -> bool:
    """Whether every cell of a row is exact, falls back or is refused."""
    said = [answer for name in COLUMNS for answer in answers_of(row.get(name, {}))]
    return {word_of(answer) for answer in said} <= {"exact", "falls back", "refused"}


def answers_of(answer: str | dict) -> list[str]:
    """What was said of a column: one answer, or one of each block."""
    return [answer] if isinstance(answer, str) else list(answer.values())


def _refusals(checked: list[dict]) -> str:
    said = defaultdict(list)
    for row in checked:
        for name in COLUMNS:
            for answer in dict.fromkeys(answers_of(row[name])):
                if word_of(answer) not in ("exact", "falls back"):
                    said[row["architecture"]].append(f"{name}: {answer.partition(': ')[2]}")
    lines = [f"- **{kind}**, {sentence}\n" for kind, sentences in said.items() for sentence in sentences]
    return "\n## Refusals\n\n" + "".join(lines) if lines else ""


def _left_out(rows: list[dict]) -> str:
    by_reason = defaultdict(list)
    for row in rows:
        if reason := row.get("left_out"):
            by_reason[reason].append(row["architecture"])
    lines = [f"- {reason}: {', '.join(kinds)}\n" for reason, kinds in sorted(by_reason.items())]
    page = "\n## Left out\n\n" + "".join(lines)
    unbuilt = [f"- {row['architecture']}: {row['not_built']}\n" for row in rows if "not_built" in row]
    return page + ("\n## Not built\n\nNo tiny model of these could be built.\n\n" + "".join(unbuilt) if unbuilt else "")
