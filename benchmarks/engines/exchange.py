"""What the scripts of this folder do with their pipes; each runs in the environment of its engine.

The first line of standard input holds the settings {model, ends, rows, longest, threads, ...}, every further one a job
{prompts, max_new_tokens} in token ids. A job is answered by a line of JSON, the new tokens of every prompt in their
order, with the end token. The process ends with its input.
"""

import json
import os
import sys
from collections.abc import Callable

Decode = Callable[[list[list[int]], int], list[list[int]]]  # (prompts, max_new_tokens) -> new tokens


def serve(start: Callable[..., Decode]) -> None:
    """Start an engine with the settings, then answer job after job, greedily.

    Engines print what they like: it goes where errors go, so that answers alone are on standard output.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    decode = start(**json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(decode(job["prompts"], job["max_new_tokens"])), file=answers, flush=True)
