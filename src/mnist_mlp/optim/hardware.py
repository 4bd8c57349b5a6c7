"""Processor features and memory settings that training uses."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def bfloat16_units() -> str:
    """Return the CPU's units for matrix products in bfloat16: "AMX", "AVX-512 BF16" or "none".

    "none" also if torch is told not to use them (`ATEN_CPU_CAPABILITY=avx2`).
    """
    if torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        if torch.cpu._is_amx_tile_supported():
            return "AMX"
        if torch.cpu._is_avx512_bf16_supported():
            return "AVX-512 BF16"
    return "none"


def multiplies_bfloat16(device: torch.device | str = "cpu") -> bool:
    """Return whether the device has units for products in bfloat16; emulation is slow."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and bfloat16_units() != "none"


def keep_freed_memory() -> None:
    """Make glibc keep up to 64 MB of freed memory for the next step.

    Else it returns most of a step's memory to the system, and the next step faults it in again
    page by page. Freeing one block of nearly 32 MiB raises both of its thresholds; nothing is
    written to the block. Source: mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.
    """
    torch.empty(32_000_000, dtype=torch.uint8)


@contextmanager
def float32_products() -> Iterator[None]:
    """Let oneDNN multiply in float32 where that is faster; restore the setting afterwards.

    torch leaves products in float32 to MKL, which has half of oneDNN's rate on AMD's processors
    with AVX-512. The setting also allows oneDNN to round to bfloat16, which it does on AMX only:
    there, and where there is a setting already, nothing is changed.
    Source: PyTorch's "Numerical accuracy", reduced precision on oneDNN.
    """
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    if before == "none" and bfloat16_units() == "AVX-512 BF16":
        matmul.fp32_precision = "bf16"  # without AMX oneDNN still computes in float32
    try:
        yield
    finally:
        matmul.fp32_precision = before
