"""A linear layer and its LoRA adapter as one function of autograd, for training in float32 on CPUs.

peft adds `scaling * B(A(x))` to a layer's output by operations that read and write activations as large as the output,
forward and backward, several times. Here the small products are added where the large ones lie: the same sums, in about
0.9 of a training's time. In bfloat16 nothing is won, so there peft's own stay.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn


@contextmanager
def fused(model: nn.Module) -> Iterator[None]:
    """Let each adapted layer of a model on a CPU compute itself and its adapter in one; not under autocast.

    Layers that do more (dropout, a bias of the adapter, several adapters, a variant such as DoRA) stay peft's.
    """
    layers = [layer for layer in model.modules() if type(layer) is Linear and _plain(layer)]
    for layer in layers:
        layer.forward = _forward(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _plain(layer: Linear) -> bool:
    plain = type(layer.get_base_layer()) is nn.Linear and layer.weight.device.type == "cpu"
    if not plain or layer.weight.dtype != torch.float32 or len(layer.active_adapters) != 1:
        return False
    name = layer.active_adapters[0]
    extras = layer.lora_bias[name], layer.merged, layer.disable_adapters, name in layer.lora_variant
    return isinstance(layer.lora_dropout[name], nn.Identity) and not any(extras)


def _forward(layer: Linear) -> Callable[[Tensor], Tensor]:
    (name,), base = layer.active_adapters, layer.get_base_layer()
    a, b, scaling = layer.lora_A[name], layer.lora_B[name], layer.scaling[name]
    # Weights are looked up anew in every call: sharded training puts others in their place.
    return lambda x: Adapted.apply(x, base.weight, base.bias, a.weight, b.weight, scaling)


class Adapted(torch.autograd.Function):
    """x W^T + bias + scaling (x A^T) B^T, in float32; W and its bias are frozen.

    Shapes: x (..., in), W (out, in), A (rank, in), B (out, rank).
    """

    @staticmethod
    def forward(ctx, x, weight, bias, a, b, scaling):
        flat = x.flatten(0, -2)
        low = flat @ a.T
        ctx.save_for_backward(flat, weight, a, b, low)
        ctx.shape, ctx.scaling = x.shape, scaling
        return nn.functional.linear(flat, weight, bias).addmm_(low, b.T, alpha=scaling).unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx, gradient):
        flat, weight, a, b, low = ctx.saved_tensors
        gradient = gradient.flatten(0, -2)
        inner, of_x = (gradient @ b).mul_(ctx.scaling), None
        if ctx.needs_input_grad[0]:  # not below the first trained layer
            of_x = (gradient @ weight).addmm_(inner, a).view(ctx.shape)
        return of_x, None, None, inner.T @ flat, (gradient.T @ low).mul_(ctx.scaling), None
