"""A full disk, told in one sentence, whichever library met it."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

_SAID = "the disk is full: free some space"
FULL = f"{_SAID}, then run the same command again, it goes on from there"
_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
# The system's words, alone where a library keeps no number (safetensors, a notebook's traceback); then torch's, whose
# writer of archives says no more than that a file is shorter than what was written.
_WORDS = re.compile(
    r"No space left on device|Disk quota exceeded|\(os error 28\)|"
    + _SAID
    + r"|inline_container\.cc:\d+\] \. (?:unexpected pos|PytorchStreamWriter failed writing)"
)


def is_full(what: BaseException | str) -> bool:
    """Whether an error, or one that led to it, or a text comes from a disk or a quota without room."""
    if isinstance(what, str):
        return bool(_WORDS.search(what))
    before = what.__cause__ or what.__context__
    full = getattr(what, "errno", None) in _NUMBERS or is_full(str(what))
    return full or (before is not None and is_full(before))


@contextmanager
def told() -> Iterator[None]:
    """Turn every error of a full disk into OSError with the one sentence, `FULL`; other errors stay as they are."""
    try:
        yield
    except Exception as error:
        if is_full(error) and _SAID not in str(error):
            raise OSError(FULL) from error
        raise
