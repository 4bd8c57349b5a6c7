"""Which devices have units for matrix products in bfloat16."""

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
