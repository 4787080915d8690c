"""LoRA adapters beside a model's weights, as they were trained, or merged into them for an export.

A merged update is lost where it is smaller than half a step of a bfloat16 weight. So models are scored with their
adapters beside the weights, and an export says what its rounding cost.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from sdd_utils.models import checkpoints

REPORT = "training.json"  # beside an adapter that was trained here: on which weights, and how that went


def attach(model: nn.Module, adapter: Path, *, weights: dict):
    """Put an adapter into a model, in place and unmerged, in the precision that the model computes in.

    Args:
        weights: what the model's weights are, see `store.identity`.

    Returns:
        peft's wrapper around the model, for `merge`; the model itself computes with the adapter, too.

    Raises:
        ValueError: the adapter was trained on other weights, or its tensors are not those that this model needs.
    """
    import peft  # here, for its import takes seconds and most loads need none

    _check_parent(adapter, weights)
    wrong = f"adapter {adapter.name} does not fit this {type(model).__name__}"
    fix = "name the checkpoint that it was trained on"
    try:
        wrapped = peft.PeftModel(model, peft.PeftConfig.from_pretrained(adapter), autocast_adapter_dtype=False)
        report = wrapped.load_adapter(adapter, "default", autocast_adapter_dtype=False)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{wrong}: {fix} ({' '.join(str(error).split())[:150]})") from error
    if apart := sorted([*report.missing_keys, *report.unexpected_keys]):
        raise ValueError(f"{wrong}: {fix} ({len(apart)} tensors are in only one of them, such as {apart[0]})")
    depth, changed = model.config.get_text_config().num_hidden_layers, _depth(wrapped)
    if changed < depth and wrapped.peft_config["default"].layers_to_transform is None:
        raise ValueError(f"{wrong}: {fix} (it changes the first {changed} of {depth} layers)")
    for layer in lora_layers(model):
        layer.to(layer.get_base_layer().weight.dtype)
    # peft froze the weights: torch multiplies a slice of a batch with a frozen one by copying it for every row.
    model.requires_grad_(True)
    return wrapped


def _check_parent(adapter: Path, weights: dict) -> None:
    """Raise ValueError if an adapter says that it was trained on other weights; one from elsewhere does not say."""
    report = adapter / REPORT
    trained_on = json.loads(report.read_text()).get("weights") if report.is_file() else None
    if trained_on not in (None, weights):
        raise ValueError(f"adapter {adapter.name} was trained on other weights: name its checkpoint, or train again")


def _depth(model: nn.Module) -> int:
    """One more than the highest number of a layer that an adapter changes."""
    changed = {*lora_layers(model)}
    names = [name for name, module in model.named_modules() if module in changed]
    return 1 + max(int(number) for name in names for number in re.findall(r"\.(\d+)\.", name)[:1])


def lora_layers(model: nn.Module) -> Iterator[nn.Module]:
    """The modules of a model that an adapter changes."""
    from peft.tuners.lora import LoraLayer

    return (module for module in model.modules() if isinstance(module, LoraLayer))


@torch.no_grad()
def rounding_share(model: nn.Module, *, dtype: torch.dtype = torch.bfloat16) -> float:
    """How much of an adapter's update would be lost by merging it into weights of `dtype`; 0 is nothing.

        |round(W + D) - (W + D)| / |D|, over all matrices W and their updates D, in Frobenius norms

    Args:
        model: with an adapter beside its weights.
    """
    lost = update = 0.0
    for layer in lora_layers(model):
        delta = layer.get_delta_weight("default").float()
        merged = layer.get_base_layer().weight.float() + delta
        lost += float((merged.to(dtype).float() - merged).square().sum())
        update += float(delta.square().sum())
    return math.sqrt(lost / update) if update else 0.0


@torch.no_grad()
def merge(wrapped) -> nn.Module:
    """The model with its adapter added into the weights.

    Args:
        wrapped: what `attach` returned for a model in float32.

    Raises:
        ValueError: an adapted matrix is tied to another module, or the sum computes other logits than its parts.
    """
    model = wrapped.get_base_model()
    if shared := tied_modules(model, {layer.get_base_layer() for layer in lora_layers(model)}):
        raise ValueError(f"{shared[0]} shares its weights with another module: merging its adapter would change both")
    apart = checkpoints.some_logits(model)
    merged = wrapped.merge_and_unload().requires_grad_(True)
    if checkpoints.largest_gap(apart, checkpoints.some_logits(merged)) > checkpoints.LARGEST_GAP:
        raise ValueError(f"{type(model).__name__} computes other logits with its adapter merged than with it beside")
    return merged


def tied_modules(model: nn.Module, chosen: set[nn.Module]) -> list[str]:
    """Names of the modules among `chosen` whose weight another module of the model holds, too."""
    holders: dict[int, list] = {}
    for name, module in model.named_modules():
        if (weight := module._parameters.get("weight")) is not None:
            holders.setdefault(id(weight), []).append((name, module))
    return [name for group in holders.values() if len(group) > 1 for name, module in group if module in chosen]
