"""`docs/architectures.md` from the record that `run` writes."""

from collections import defaultdict

COLUMNS = ("cut", "reload", "decode", "train", "score")
HEAD = """# Architectures

Every architecture that transformers {transformers} has a causal language model for, and what the package does with it. `make architectures` made this
page: a tiny random model of each (six layers, float32, CPU) is pruned, saved, loaded, decoded, trained and scored, beside plain forward passes of
one row. See [own-model.md](own-model.md) for your own model.

- **exact**: our own way serves, and gives what plain passes give.
- **falls back**: a slower way serves (`generate`, rows one by one or padded, lm-eval's own passes), and gives what plain passes give.
- **refused**: one sentence instead of a result; [below](#refusals).

Blocks are cut at three places: the first layer, three layers in the middle, the last two layers. *Reload*: the pruned checkpoint after saving and
loading. *Decode*: two prompts of different lengths at once. *Train*: the first loss of a batch of three rows, LoRA on all linear layers. *Score*:
log-likelihoods of choices after contexts of different lengths.

{summary}

| architecture | cut | reload | decode | packed training | score |
|---|---|---|---|---|---|
"""


def page_of(record: dict) -> str:
    """The page as Markdown."""
    rows = record["rows"]
    checked = [row for row in rows if "cut" in row]
    table = "".join(f"| {row['architecture']} | {' | '.join(_cell(row[name]) for name in COLUMNS)} |\n" for row in checked)
    head = HEAD.format(transformers=record["versions"]["transformers"], summary=_summary(checked))
    return head + table + _refusals(checked) + _left_out(rows)


def _cell(answer: str | dict) -> str:
    """One word for all blocks, or the word of most of them and those that differ."""
    if isinstance(answer, str):
        return _word(answer)
    words = {block: _word(said) for block, said in answer.items()}
    best = min(words.values(), key=["exact", "falls back", "refused", "WRONG"].index)
    others = [f"{block}: {word}" for block, word in words.items() if word != best]
    return "; ".join([best, *others])


def _word(answer: str) -> str:
    return answer.partition(":")[0]


def _summary(checked: list[dict]) -> str:
    """How many architectures are exact in all columns, and so on."""
    words = [{_word(said) for name in COLUMNS for said in _answers(row[name])} for row in checked]
    exact = sum(found == {"exact"} for found in words)
    served = sum(found == {"exact", "falls back"} for found in words)
    refused = len(words) - exact - served
    return (
        f"Of {len(checked)} decoders {exact} are exact throughout, {served} fall back somewhere, "
        f"and {refused} are refused somewhere."
    )


def _answers(answer: str | dict) -> list[str]:
    return [answer] if isinstance(answer, str) else list(answer.values())


def _refusals(checked: list[dict]) -> str:
    said = defaultdict(list)
    for row in checked:
        for name in COLUMNS:
            for answer in dict.fromkeys(_answers(row[name])):
                if _word(answer) not in ("exact", "falls back"):
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
