"""Where models run on this machine, and in which precision: by rule, never by measurement.

Two runs on one machine must not differ in precision: their texts, adapters and scores would. So bfloat16 is used where
the hardware multiplies it natively, and float32 elsewhere; the environment variable SDD_DTYPE overrides the rule.
"""

import os

import torch

ALLOWED = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_NATIVE_ON_CPUS = ("avx512_bf16", "amx_bf16", "bf16")  # the last is Arm's


def compute_dtype() -> torch.dtype:
    """The precision that models compute in here.

    Raises:
        ValueError: SDD_DTYPE has a value that is not allowed.
    """
    wanted = os.environ.get("SDD_DTYPE", "")
    if wanted and wanted not in ALLOWED:
        raise ValueError(f"SDD_DTYPE is {wanted!r}: set it to {' or '.join(ALLOWED)}, or not at all")
    return ALLOWED[wanted] if wanted else torch.bfloat16 if _multiplies_bfloat16() else torch.float32


def dtype_name() -> str:
    """`compute_dtype` as text: "float32" or "bfloat16"."""
    return str(compute_dtype()).removeprefix("torch.")


def _multiplies_bfloat16() -> bool:
    """Whether the GPU, or the CPU where there is none, has instructions for it: emulation is slower by orders."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in _NATIVE_ON_CPUS)


def device() -> str:
    """Where models run: the first GPU if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"
