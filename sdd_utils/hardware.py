"""Where models run on this machine, and in which precision."""

import functools
import time

import torch


@functools.cache
def best_dtype() -> torch.dtype:
    """bfloat16 on GPUs, and on CPUs that multiply it faster than float32, which is measured; elsewhere float32.

    A CPU without instructions for bfloat16 emulates it, slower by orders: there nothing is measured.
    """
    if torch.cuda.is_available():
        return torch.bfloat16
    capabilities = torch.cpu.get_capabilities()
    native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    faster = native and _product_seconds(torch.bfloat16) < _product_seconds(torch.float32)
    return torch.bfloat16 if faster else torch.float32


def _product_seconds(dtype: torch.dtype) -> float:
    """The shortest of several times that a small matrix product takes."""
    a, b, seconds = torch.ones(128, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype), []
    for _ in range(10):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def device() -> str:
    """Where models run: the first GPU if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"
