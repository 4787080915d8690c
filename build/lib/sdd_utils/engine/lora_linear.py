"""LoRA's update added to a layer's product where it lies, on CPUs.

peft computes W x + s B A x with a scaling, a sum and casts, each a pass over a tensor as large as the layer's output.
On CPUs these passes and their gradients are a large part of a training. Here one product adds s B (A x) to W x in
place, and another one adds its gradient to that of W x. Values differ by rounding only.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


@contextmanager
def added_in_place(model: nn.Module) -> Iterator[None]:
    """Let a model on a CPU with a LoRA adapter add its updates in place; adapters of other kinds stay as they are."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    layers = [layer for layer in model.modules() if on_cpu and _plain(layer)]
    for layer in layers:
        layer.forward = _multiply(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _plain(layer: nn.Module) -> bool:
    """Whether a layer is W x + s B A x: a linear map and one adapter without dropout, bias, or other terms."""
    if not hasattr(layer, "lora_A") or type(layer).forward is not _peft_linear().forward or "forward" in vars(layer):
        return False
    names = [*layer.lora_A]
    return (
        layer.active_adapters == names == ["default"]
        and type(layer.get_base_layer()) is nn.Linear
        and isinstance(layer.lora_dropout["default"], nn.Identity)
        and layer.lora_B["default"].bias is None
        and not (layer.merged or layer.disable_adapters or layer.lora_variant)
    )


def _peft_linear() -> type:
    from peft.tuners.lora.layer import Linear  # here, for its import takes seconds and most models have no adapter

    return Linear


def _multiply(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    base, scaling = layer.get_base_layer(), layer.scaling["default"]

    def forward(inputs: Tensor) -> Tensor:
        rows = inputs.to(base.weight.dtype).flatten(0, -2)
        down = layer.lora_A["default"].weight.to(rows.dtype)  # read here: processes that share a model put others there
        up = (layer.lora_B["default"].weight * scaling).to(rows.dtype)
        if torch.is_grad_enabled():
            outputs = _Adapted.apply(rows, base.weight, base.bias, down, up)
        else:
            outputs = base(rows).addmm_(linear(rows, down), up.T)
        return outputs.view(*inputs.shape[:-1], -1)

    return forward


class _Adapted(torch.autograd.Function):
    """W x + b + B A x, with gradients for all but W and b.

    Shapes: rows (tokens, inputs), weight (outputs, inputs), down (rank, inputs), up (outputs, rank).
    """

    @staticmethod
    def forward(context, rows, weight, bias, down, up):
        inner = linear(rows, down)
        context.save_for_backward(rows, inner, weight, down, up)
        return linear(rows, weight, bias).addmm_(inner, up.T)

    @staticmethod
    def backward(context, gradient):
        rows, inner, weight, down, up = context.saved_tensors
        of_inner = gradient @ up
        of_rows = (gradient @ weight).addmm_(of_inner, down) if context.needs_input_grad[0] else None
        return of_rows, None, None, of_inner.T @ rows, (inner.T @ gradient).T
