"""Where models run on this machine, and in which precision: by rule, never by measurement.

Two runs on one machine must not differ in precision: their texts, adapters and scores would. So bfloat16 is used where
the hardware multiplies it natively, and float32 elsewhere; the environment variable SDD_DTYPE overrides the rule.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # commands ask here what SDD_DTYPE says, without waiting for torch
    import torch

ALLOWED = ("float32", "bfloat16")
_NATIVE_ON_CPUS = ("avx512_bf16", "amx_bf16", "bf16")  # the last is Arm's


def wanted_dtype() -> str:
    """What SDD_DTYPE says: "float32", "bfloat16", or "" where it says nothing.

    Raises:
        ValueError: it has a value that is not allowed.
    """
    wanted = os.environ.get("SDD_DTYPE", "")
    if wanted and wanted not in ALLOWED:
        raise ValueError(f"SDD_DTYPE is {wanted!r}: set it to {' or '.join(ALLOWED)}, or not at all")
    return wanted


def dtype_name() -> str:
    """The precision that models compute in here: "float32" or "bfloat16". Raises what `wanted_dtype` raises."""
    return wanted_dtype() or ("bfloat16" if _multiplies_bfloat16() else "float32")


def compute_dtype() -> "torch.dtype":
    """`dtype_name` as torch has it."""
    import torch

    return getattr(torch, dtype_name())


def _multiplies_bfloat16() -> bool:
    """Whether the GPU, or the CPU where there is none, has instructions for it: emulation is slower by orders."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in _NATIVE_ON_CPUS)


def device() -> str:
    """Where models run: the first GPU if there is one, else the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
