"""What an arm's training reads of a row: token ids, and which of them the loss sees."""

import itertools
from collections.abc import Iterator

from sdd_utils.data.arms import ARMS
from sdd_utils.data.rows import load_rows, question_of, text_of
from sdd_utils.models import chat_format

BETWEEN = "\n\n"  # two texts that lie one behind the other
TOKENS_AT_ONCE = 1536  # of a training step on a CPU: more in one pass make it no faster, and hold more memory


def rows_at_once(batch_size: int, longest: int) -> int:
    """Rows of a step that a CPU reads in one pass: the most that share a batch evenly within `TOKENS_AT_ONCE`.

    Args:
        longest: tokens of the longest row. Where even one is too many, rows are read one by one.
    """
    fitting = [rows for rows in range(1, batch_size + 1) if rows * longest <= TOKENS_AT_ONCE]
    return max((rows for rows in fitting if batch_size % rows == 0), default=1)


def encode(tokenizer, row: dict, response: str) -> dict:
    """Token ids of prompt and response, and which of them the loss sees.

    The prompt ends where the assistant's turn begins. The response ends with the token that ends a turn in the
    model's chat format, which is trained: masking goes by position, because the padding token may be the same id.

    Returns:
        {input_ids, completion_mask}: two lists of one length; the mask is 1 on response tokens and the end.
    """
    prompt = chat_format.render(tokenizer, [{"role": "user", "content": question_of(row)}])
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    response_ids = _response_ids(tokenizer, response)
    return {
        "input_ids": prompt_ids + response_ids,
        "completion_mask": [0] * len(prompt_ids) + [1] * len(response_ids),
    }


def _response_ids(tokenizer, response: str) -> list[int]:
    return tokenizer(response, add_special_tokens=False)["input_ids"] + [chat_format.turn_end(tokenizer)]


def encode_text(ids: list[int]) -> dict:
    """The same of plain text, where every token but the first is trained."""
    return {"input_ids": ids, "completion_mask": [0] + [1] * (len(ids) - 1)}


def encoded(
    tokenizer, rows: list[dict], sets: dict[str, dict[str, dict]], arms: list[str]
) -> dict[str, list[dict | None]]:
    """By arm, what its training reads of each row; see `encode` and `encode_text`. None where it does not learn it."""

    def of(row: dict, response: str | list[int] | None) -> dict | None:
        if response is None:
            return None
        return encode_text(response) if isinstance(response, list) else encode(tokenizer, row, response)

    return {arm: [of(*pair) for pair in zip(rows, ARMS[arm](rows, sets), strict=True)] for arm in arms}


def plain_text(tokenizer, rows: list[dict], *, names: list[str], own_data: dict | None = None) -> list[dict]:
    """A piece of running text for each row, with as many trained tokens as the row's original response has.

    The texts are the training rows of the calibration sets without a chat format, by turns and from the last row on:
    a small study fine-tunes on the first ones. They lie one behind the other, from the start again where they end,
    and are cut into pieces. A piece begins with the token that begins texts, if the tokenizer has one.

    Returns:
        rows {id, input_ids}.
    """
    sets = [load_rows(name, split="train", rows=0, own_data=own_data)[::-1] for name in names]
    texts = [text_of(row) for turn in itertools.zip_longest(*sets) for row in turn if row]
    stream, start = _endless(tokenizer, texts), tokenizer("")["input_ids"][:1]
    lengths = [len(_response_ids(tokenizer, row["response"])) + 1 - len(start) for row in rows]
    return [
        {"id": row["id"], "input_ids": start + list(itertools.islice(stream, length))}
        for row, length in zip(rows, lengths, strict=True)
    ]


def _endless(tokenizer, texts: list[str]) -> Iterator[int]:
    for text in itertools.cycle(texts):
        yield from tokenizer(text + BETWEEN, add_special_tokens=False)["input_ids"]
