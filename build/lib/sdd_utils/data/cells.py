"""A cell of a data set as text. What is no plain text or number is read by a rule or refused: never Python's print."""

import math
import re
from decimal import Decimal
from numbers import Real

# The roles of one turn of a conversation, in their order, and which of them a column is made of.
_TURN = ("system", "user", "assistant")
_ROLES_OF = {"instruction": ("system", "user"), "response": ("assistant",)}
_ANSWER_LINE = re.compile(r"####(?!#)\s*(\S.*)")
_NUMBER = re.compile(r"[-−+]?[$€£]?[-−]?\d[\d.,/]*\s?%?")
_HEADING = re.compile(r"^#", re.MULTILINE)
_MOST_WORDS = 5


def text_of_cell(value, *, column: str, key: str) -> str:
    """A cell as text, without white space around it; a missing one is "".

    Args:
        value: as JSON or the hub gives it. Truth values become "true" and "false". A list of messages
            {role, content} must be one turn of a conversation: an instruction takes what the system and the user
            say, a response what the assistant says.
        column: its name in the source, for an error.
        key: what it stands for: instruction, context, response or answer.

    Raises:
        ValueError: another list or mapping, a date, or text with half a character.
    """
    if isinstance(value, str):
        return _whole(value, column).strip()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Real | Decimal):
        return str(value)
    if key in _ROLES_OF and _ROLES_OF[key][-1] in (turn := _turn(value)):
        return _whole("\n\n".join(turn[role] for role in _ROLES_OF[key] if turn.get(role)), column).strip()
    allowed = " or the messages {role, content} of one turn" if key in _ROLES_OF else ""
    raise ValueError(
        f"column {column!r} holds {_kind(value)}: it must hold text, a number{allowed} (own_data key {key})"
    )


def _whole(text: str, column: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"column {column!r} holds half of a surrogate pair (\\ud800 to \\udfff): correct it") from None
    return text


def _turn(value) -> dict[str, str]:
    """{role: text} of messages that are one turn or a part of it; empty for anything else."""
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        return {}
    roles, contents = ([message.get(part) for message in value] for part in ("role", "content"))
    in_order = roles == [role for role in _TURN if role in roles]  # each once at most
    texts = all(isinstance(content, str) for content in contents)
    return dict(zip(roles, contents, strict=True)) if in_order and texts else {}


def _kind(value) -> str:
    kinds = {list: "a list", dict: "a mapping"}
    shown = repr(value)
    return f"{kinds.get(type(value), f'a {type(value).__name__}')} ({shown if len(shown) < 60 else f'{shown[:57]}...'})"


def answer_line(response: str) -> str:
    """What stands after "####" in the last line of a response, as in GSM8K, or "".

    It must be a number, or at most `_MOST_WORDS` words in a response that has no other line beginning with "#": those
    are Markdown's headings.
    """
    found = _ANSWER_LINE.fullmatch(response.rpartition("\n")[2].strip())
    if not found:
        return ""
    answer = found[1]
    short = len(answer.split()) <= _MOST_WORDS and not answer.endswith(":")
    return answer if _NUMBER.fullmatch(answer) or (short and len(_HEADING.findall(response)) == 1) else ""
