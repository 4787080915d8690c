"""Generation tasks: the decode loop under lm-eval, beside lm-eval's HFLM."""

from benchmarks import multiple_choice, some_rows

NAME = "generation tasks"
TASKS = {"gsm8k": 5} if some_rows.HUB else {"gsm_symbolic": 5}
FULL = {"tasks": TASKS, "limit": 8, "batch_size": 8}
SMALL = {"tasks": {"gsm_symbolic": 1}, "limit": 3, "batch_size": 2}
DTYPE = multiple_choice.DTYPE
prepare, ours = multiple_choice.prepare, multiple_choice.ours  # the same two sides, on other tasks
PEERS = {"lm-eval HFLM": (multiple_choice.hflm, 1)}


def same(state, ours, peer) -> tuple[bool, str]:
    """The same extracted answers, by every filter; whole texts may differ where rounding decides between two tokens."""
    extracted = all(ours[task]["filtered"] == peer[task]["filtered"] for task in peer)
    differ = sum(a != b for task in peer for a, b in zip(ours[task]["resps"], peer[task]["resps"], strict=True))
    tasks = ", ".join(f"{task} {shots}-shot" for task, shots in state["tasks"].items())
    return extracted, f"{tasks}, {state['limit']} documents, {differ} texts differ (counted once per filter)"
