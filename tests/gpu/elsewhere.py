"""A model on a card that is not there: which code would put a tensor on the wrong device, seen without a GPU.

All tensors stay on the CPU. Those that code puts on "cuda", and what is computed from them, are known by their memory
and say that they are there; an operation that mixes both places raises, as it would on a card.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from sdd_utils.base import precision
from sdd_utils.models import store

CARD, HERE = torch.device("cuda"), torch.device("cpu")
_TAKES_INDICES = (
    "index",
    "index_put",
    "_index_put_impl",
    "_unsafe_index",
)  # of a card's tensor, by numbers from the CPU


class Places:
    """Where each piece of memory is said to be; it is kept alive, so that none is taken for another."""

    def __init__(self):
        self.on_card, self.alive = set(), []

    def put(self, tensor: torch.Tensor, place: torch.device) -> torch.Tensor:
        self.alive.append(tensor)
        address = tensor.untyped_storage()._cdata
        (self.on_card.add if place.type == "cuda" else self.on_card.discard)(address)
        return tensor

    def holds(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self.on_card


class Computing(TorchDispatchMode):
    """Results lie where their inputs do; inputs that lie in both places are refused, single numbers apart."""

    def __init__(self, places: Places):
        super().__init__()
        self.places = places

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [one for one in tree_iter((args, kwargs)) if isinstance(one, torch.Tensor)]
        if func.overloadpacket.__name__ in _TAKES_INDICES:
            tensors = tensors[:1]
        large = {self.places.holds(one) for one in tensors if one.dim()}
        if len(large) > 1 and func.overloadpacket.__name__ != "copy_":
            raise RuntimeError(f"{func} was given tensors on the card and on the CPU")
        found = func(*args, **kwargs or {})
        on_card = any(map(self.places.holds, tensors))
        for one in tree_iter(found):
            if isinstance(one, torch.Tensor) and not any(one is tensor for tensor in tensors):
                self.places.put(one, CARD if on_card else HERE)
        return found


class Placing(TorchFunctionMode):
    """Code that names a device gets a tensor that is said to be there, and a tensor says where it is."""

    def __init__(self, places: Places):
        super().__init__()
        self.places = places

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:
            return CARD if self.places.holds(args[0]) else HERE
        if func == torch.Tensor.is_cuda.__get__:
            return self.places.holds(args[0])
        if func is torch.Tensor.numpy and self.places.holds(args[0]):
            raise TypeError("a tensor on the card has no numpy array: copy it with .cpu() first")
        if func is torch.Tensor.cpu:
            return self.places.put(args[0].clone(), HERE)
        moves = func is torch.Tensor.to
        named = [one for one in (*args[1:], kwargs.get("device")) if isinstance(one, torch.device | str)]
        place = torch.device(named[0]) if named and (moves or "device" in kwargs) else None
        if place not in (CARD, HERE):
            return func(*args, **kwargs)  # where no device is named, or "meta"
        args = [HERE if moves and isinstance(one, torch.device | str) else one for one in args]
        found = func(*args, **kwargs | ({"device": HERE} if "device" in kwargs else {}))
        return self.places.put(found.clone() if moves else found, place)


@contextmanager
def on_a_card() -> Iterator[None]:
    """Let models be loaded onto a card that is not there."""
    places, plain = Places(), store._read

    def read(*args):  # in a thread, which has no modes: transformers fills tensors in place whatever they say
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(plain, *args).result()

    patches = (mock.patch.object(precision, "device", return_value="cuda"), mock.patch.object(store, "_read", read))
    with patches[0], patches[1], Placing(places), Computing(places):
        yield
