"""Drafts by prompt lookup: the tokens that followed where a row's two newest tokens last stood together before.

Rewrites copy spans of their prompt, and small models repeat themselves. A draft is read together with the row's newest
token, and tokens are kept up to the first that the model chose otherwise, so a draft changes no text, only the time:
a row's keys and values, which a joint step on a CPU is bound by, are read once for several tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

DRAFT = 2  # tokens of a draft at most; more are wrong too often


@dataclass
class Row:
    """A row that is being decoded: its tokens, of which the first `given` are its prompt."""

    id: str
    given: int
    tokens: list[int]
    after: dict[tuple[int, ...], int] = field(default_factory=dict)  # where what follows two tokens stands

    def __post_init__(self):
        for position in range(2, self.given):
            self._note(position)

    @property
    def new_tokens(self) -> list[int]:
        return self.tokens[self.given :]

    @property
    def n_new(self) -> int:
        return len(self.tokens) - self.given

    def append(self, token: int) -> None:
        self.tokens.append(token)
        self._note(len(self.tokens) - 1)

    def _note(self, position: int) -> None:
        self.after[tuple(self.tokens[position - 2 : position])] = position

    def draft(self, most: int) -> list[int]:
        """At most so many tokens that may come next."""
        position = self.after.get(tuple(self.tokens[-2:]))
        return self.tokens[position : position + most] if position else []


def confirmed(draft: list[int], chosen: Iterator[int]) -> list[int]:
    """Of the tokens that were chosen behind a row's newest token and each of its draft's, those that hold.

    Args:
        chosen: of many rows, of which this one's are taken.
    """
    chosen = list(islice(chosen, len(draft) + 1))
    right = next((i for i, token in enumerate(draft) if token != chosen[i]), len(draft))
    return chosen[: right + 1]
