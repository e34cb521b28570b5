"""What a step is made of beside matrix products, twice: plain PyTorch, and Triton kernels for NVIDIA GPUs.

``ops_for`` picks one by the device, or the one that is asked for. The plain version is the reference that the kernels
are tested against, and what runs where there is no Triton. Everything that changes from step to step (lengths, page
tables, positions, who sees whom, seeds) is read from tensors on the device, so a captured CUDA graph serves every call.
"""

from engine.kernels.ops import KERNELS, Ops, ops_for
from engine.kernels.rows import PagedPlace, Rows

__all__ = ["KERNELS", "Ops", "PagedPlace", "Rows", "ops_for"]
