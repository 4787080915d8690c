"""Fused LoRA layers against peft's own: the same output, the same gradients; and whatever does more is left to peft."""

import pytest
import torch
from conftest import tiny_llama
from peft import LoraConfig, get_peft_model

from sdd_utils import lora

IDS = torch.arange(24).reshape(2, 12)


def adapted(tokenizer, **changes):
    """A model of two layers with an adapter whose both factors are random."""
    torch.manual_seed(0)
    config = LoraConfig(
        **{"r": 3, "lora_alpha": 12, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | changes
    )
    model = get_peft_model(tiny_llama(tokenizer, layers=2), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def gradients(model) -> dict:
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}
    return found | {"loss": loss.detach()}


def layers(model) -> list:
    return [module for module in model.modules() if type(module) is lora.Linear]


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_losses_and_gradients_are_those_of_peft(tokenizer, targets):
    model = adapted(tokenizer, target_modules=targets)
    expected = gradients(model)
    with lora.fused(model):
        assert all("forward" in vars(layer) for layer in layers(model))
        found = gradients(model)
    assert len(expected) > 4
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert not any("forward" in vars(layer) for layer in layers(model))


def test_a_layer_with_a_bias_is_fused_with_it():
    model = get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(5, 7)), LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
    )
    x = torch.randn(3, 4, 5)
    expected = model(x)
    with lora.fused(model):
        assert "forward" in vars(layers(model)[0])
        torch.testing.assert_close(model(x), expected)


@pytest.mark.filterwarnings("ignore:.lora_bias=True.")
@pytest.mark.parametrize("more", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}])
def test_layers_that_do_more_stay_as_they_are(tokenizer, more):
    model = adapted(tokenizer, **more)
    with lora.fused(model):
        assert layers(model)
        assert not any("forward" in vars(layer) for layer in layers(model))


def test_gradients_are_those_of_finite_differences():
    shapes = (2, 3, 4), (5, 4), (5,), (2, 4), (5, 2)
    x, weight, bias, a, b = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    trained = [tensor.requires_grad_() for tensor in (x, a, b)]
    torch.autograd.gradcheck(lambda x, a, b: lora.Adapted.apply(x, weight, bias, a, b, 1.5), trained)
