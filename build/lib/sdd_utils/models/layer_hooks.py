"""Run a model as if it had fewer layers, without changing it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def passed_over(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Let these layers give what they were given."""

    def skip(_, inputs: tuple, named: dict, output):
        states = inputs[0] if inputs else named["hidden_states"]
        return type(output)((states, *output[1:])) if isinstance(output, tuple | list) else states

    hooks = [layer.register_forward_hook(skip, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
