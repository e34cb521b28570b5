"""What matrices are multiplied in: bf16 where the machine has instructions for it, fp32 where it would be emulated (30
times slower than fp32, measured on a CPU with AVX-512 and no BF16).
"""

from contextlib import AbstractContextManager

import torch

_CPU_HAS_BF16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def matrix_dtype(device: str = "cpu") -> torch.dtype:
    """bfloat16 or float32."""
    return torch.bfloat16 if device != "cpu" or _CPU_HAS_BF16 else torch.float32


def autocast(device: str = "cpu") -> AbstractContextManager[object]:
    """Multiplies in ``matrix_dtype``; weights and the rest stay in fp32."""
    dtype = matrix_dtype(device)
    return torch.autocast(device, dtype, enabled=dtype == torch.bfloat16)
