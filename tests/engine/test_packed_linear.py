"""Packed linear layers beside torch's own: the same values, and nothing left behind."""

import pytest
import torch
from torch import nn

from sdd_utils.engine import packed_linear


def network(dtype):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 16, bias=False)).to(dtype)


def native():
    return [torch.float32, *([torch.bfloat16] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else [])]


@pytest.mark.parametrize("shape", [(24,), (5, 24), (2, 7, 24)])
@pytest.mark.parametrize("dtype", native())
@torch.inference_mode()
def test_products_are_those_of_the_plain_layers(dtype, shape):
    model, inputs = network(dtype), torch.randn(shape, dtype=dtype)
    expected = model.double()(inputs.double())
    model = network(dtype)
    with packed_linear.packed_linears(model):
        assert all("forward" in vars(layer) for layer in model if isinstance(layer, nn.Linear))
        found = model(inputs)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, atol=20 * torch.finfo(dtype).eps, rtol=0)


def test_layers_are_themselves_again_even_after_an_error_and_weights_may_change():
    model, inputs = network(torch.float32), torch.randn(3, 24)
    with (
        pytest.raises(KeyError),
        packed_linear.packed_linears(model),
        packed_linear.packed_linears(model),
    ):  # the inner one changes nothing
        raise KeyError
    assert not any("forward" in vars(layer) for layer in model)
    nn.init.zeros_(model[2].weight)
    assert model(inputs).requires_grad
    with torch.inference_mode(), packed_linear.packed_linears(model):
        assert not model(inputs).any()


def test_other_layers_and_large_models_stay_as_they_are(monkeypatch):
    class Own(nn.Linear):
        """An adapter's layer, which does more than a product."""

    with packed_linear.packed_linears(own := nn.Sequential(Own(4, 4), nn.Linear(4, 4))):
        assert ["forward" in vars(layer) for layer in own] == [False, True]
    monkeypatch.setattr(packed_linear, "MOST_BYTES", 10)
    with packed_linear.packed_linears(large := network(torch.float32)):
        assert not any("forward" in vars(layer) for layer in large)
