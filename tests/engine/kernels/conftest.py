"""Where there is no GPU, Triton interprets its kernels, on the CPU and on the same code."""

from __future__ import annotations

from bench.gpu.interpret import interpret_without_gpu

interpret_without_gpu()
