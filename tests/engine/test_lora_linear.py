"""Adapters that are added in place, beside peft's own forward pass: the same values and gradients."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from sdd_utils.engine import lora_linear, packed_linear

IDS = torch.randint(0, 200, (2, 9), generator=torch.Generator().manual_seed(0))


def adapted(model, **settings) -> PeftModel:
    """With updates that are as large as the weights, in all linear layers."""
    config = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    wrapped, generator = get_peft_model(model, config), torch.Generator().manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return wrapped


def replaced(model) -> list[str]:
    return [name for name, module in model.named_modules() if hasattr(module, "lora_A") and "forward" in vars(module)]


def loss_and_gradients(model) -> tuple[torch.Tensor, dict]:
    loss = model(IDS, labels=IDS).loss
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    return loss.detach(), dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def test_losses_and_gradients_are_those_of_peft(model):
    model = adapted(model)
    expected, gradients = loss_and_gradients(model)
    with lora_linear.added_in_place(model):
        assert len(replaced(model)) == 5 * 7
        found, others = loss_and_gradients(model)
    assert not replaced(model)
    torch.testing.assert_close(found, expected)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(others[name], gradient, atol=1e-5 * float(gradient.abs().max()), rtol=1e-4)


def test_in_bfloat16_gradients_are_as_close_to_exact_ones_as_those_of_peft(model):
    _, exact = loss_and_gradients(adapted(copy.deepcopy(model)))
    model = adapted(model.bfloat16())

    def errors() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            _, gradients = loss_and_gradients(model)
        assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}  # as the adapter's weights
        return torch.stack([(gradients[name] - exact[name]).norm() / exact[name].norm() for name in exact])

    of_peft = errors()
    with lora_linear.added_in_place(model):
        assert errors().mean() < 1.1 * of_peft.mean()


@torch.inference_mode()
def test_logits_are_those_of_peft_with_packed_weights_too(model):
    model = adapted(model)
    expected = model(IDS).logits
    with packed_linear.packed_linears(model):
        assert len(replaced(model)) == 5 * 7
        torch.testing.assert_close(model(IDS).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}])
def test_adapters_of_other_kinds_stay_as_they_are(model, settings):
    model = adapted(model, **settings)
    with lora_linear.added_in_place(model):
        assert not replaced(model)


def test_an_adapter_that_is_off_stays_off(model):
    expected = model(IDS).logits
    model = adapted(model)
    with model.disable_adapter(), lora_linear.added_in_place(model):
        torch.testing.assert_close(model(IDS).logits, expected)
