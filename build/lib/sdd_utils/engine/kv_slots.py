"""Keys and values in slots that are allocated once, one row each."""

import functools
from types import SimpleNamespace

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

BLOCK = 16  # slots that attention reads together on a CPU, as far as the longest of their rows reaches


class SlotLayer(DynamicLayer):
    """One layer's keys and values, (slots, heads, capacity, dim), written in place where `window` says."""

    def __init__(self, window: SimpleNamespace, *, slots: int, capacity: int):
        super().__init__()
        self.window, self.slots, self.capacity = window, slots, capacity

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            # Zeros, as a position that is masked out must still be finite.
            self.keys, self.values = (
                states.new_zeros(self.slots, self.capacity, *states.shape[1::2]).transpose(1, 2)
                for states in (key_states, value_states)
            )
        window = self.window
        for store, states in ((self.keys, key_states), (self.values, value_states)):
            places = store.transpose(1, 2).flatten(0, 1).flatten(1)  # a view: one place's heads lie side by side
            places.index_copy_(0, window.places, states.transpose(1, 2).flatten(0, 1).flatten(1))
        return self.keys[window.rows, :, : window.width], self.values[window.rows, :, : window.width]


class SlotCache(Cache):
    """A KV cache of fixed slots, for models whose layers all attend to everything before them."""

    def __init__(self, model, *, slots: int, capacity: int):
        self.window, self.dtype = SimpleNamespace(), model.dtype  # the window is one for all layers
        self.capacity = capacity
        depth = len(DynamicCache(config=model.config).layers)
        super().__init__(layers=[SlotLayer(self.window, slots=slots, capacity=capacity) for _ in range(depth)])

    def arguments(self, positions: Tensor, *, first: int) -> dict:
        """What a model takes to read tokens at these positions, (rows, tokens), of the slots from `first` on."""
        window, rows = self.window, len(positions)
        window.rows, slots = slice(first, first + rows), torch.arange(first, first + rows, device=positions.device)
        window.places = (slots[:, None] * self.capacity + positions).flatten()
        window.width = int(positions.max()) + 1
        hidden = torch.arange(window.width, device=positions.device) > positions[:, None, :, None]
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=positions.device)
        mask.masked_fill_(hidden, torch.finfo(self.dtype).min)
        return {"attention_mask": mask, "position_ids": positions, "past_key_values": self, "use_cache": True}

    def ragged(self, starts: list[int], counts: list[int]) -> dict:
        """What a model that attends by blocks takes to read tokens of the first slots, end to end in one sequence.

        Args:
            starts, counts: the position of each slot's first token, and how many it reads.
        """
        start, count = torch.tensor([starts, counts])[:, :, None]
        column = torch.arange(max(counts))
        read, column = column < count, column.minimum(count - 1)  # a slot that reads fewer tokens repeats its last
        positions = start + column
        taken = self.arguments(positions, first=0)
        self.window.places = self.window.places[read.flatten()]
        by_block = [*zip(taken["attention_mask"].split(BLOCK), positions.split(BLOCK), strict=True)]

        @functools.cache  # all layers have as many heads
        def masks(heads: int) -> list[Tensor]:
            return [mask[..., : int(places.max()) + 1].repeat(1, 1, heads, 1) for mask, places in by_block]

        grid = count.cumsum(0) - count + column
        return taken | {"position_ids": positions[read][None], "masks": masks, "grid": grid, "read": read.flatten()}

    def copy(self, source: int, target: slice, *, length: int) -> None:
        """Copy the first positions of one slot into others."""
        for layer in self.layers:
            if layer.is_initialized and length:
                layer.keys[target, :, :length] = layer.keys[source, :, :length].clone()
                layer.values[target, :, :length] = layer.values[source, :, :length].clone()
