"""The precision follows from the hardware and SDD_DTYPE alone, so two runs on one machine never differ in it."""

import pytest
import torch

from sdd_utils.base import precision


@pytest.fixture(autouse=True)
def by_rule(monkeypatch):
    monkeypatch.delenv("SDD_DTYPE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("capabilities", "chosen"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16),
        ({"bf16": True}, torch.bfloat16),
        ({"avx2": True, "avx512_bf16": False}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_cpus_compute_in_bfloat16_where_they_multiply_it_natively(monkeypatch, capabilities, chosen):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert {precision.compute_dtype() for _ in range(20)} == {chosen}


@pytest.mark.parametrize(("native", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_gpus_that_only_emulate_bfloat16_compute_in_float32(monkeypatch, native, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert precision.dtype_name() == chosen


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_the_environment_overrides_the_rule(monkeypatch, name):
    monkeypatch.setenv("SDD_DTYPE", name)
    assert precision.dtype_name() == name


def test_a_wrong_override_is_one_sentence(monkeypatch):
    monkeypatch.setenv("SDD_DTYPE", "fp16")
    with pytest.raises(ValueError, match=r"^SDD_DTYPE is 'fp16': set it to float32 or bfloat16, or not at all$"):
        precision.compute_dtype()
