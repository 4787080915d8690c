"""What the log-likelihoods of a document's choices say beyond right or wrong.

A document's choices are {"gold": places of the right ones, "nats": log-likelihood of each, "bytes": length of each}.
The bytes are those of the text that was scored, a leading space counted. A text that is scored whole, such as a
worked solution, is a document of one choice. Measures of this kind see at small sizes what accuracy cannot: arXiv
2508.13144 and DataDecide (arXiv 2504.11393).
"""

import base64
import json
import zlib

import numpy as np

Choices = dict[str, list]


def choice_probability(choices: Choices) -> float:
    """p(right) / sum of p, where p is a choice's probability per byte, exp(nats / bytes); chance is 1 / choices."""
    per_byte = np.array(choices["nats"]) / choices["bytes"]
    probabilities = np.exp(per_byte - per_byte.max())
    return float(probabilities[choices["gold"]].sum() / probabilities.sum())


def gold_bits_per_byte(choices: Choices) -> float:
    """-log2 p(right answer) over its bytes; of several right ones the likeliest. 0 is a sure model."""
    return min(-choices["nats"][place] / np.log(2) / choices["bytes"][place] for place in choices["gold"])


def margin(choices: Choices) -> float:
    """Mean log-likelihood of the right choices minus that of the wrong ones, in nats; above 0 the right ones lead."""
    nats, right = np.array(choices["nats"]), np.isin(np.arange(len(choices["nats"])), choices["gold"])
    return float(nats[right].mean() - nats[~right].mean())


def packed(documents: list[Choices]) -> str:
    """The choices of all documents as short text, for a record: a new measure then needs no new run."""
    text = json.dumps(documents, separators=(",", ":"))
    return base64.b85encode(zlib.compress(text.encode(), 9)).decode()


def unpacked(text: str) -> list[Choices]:
    """What was `packed`."""
    return json.loads(zlib.decompress(base64.b85decode(text)))
