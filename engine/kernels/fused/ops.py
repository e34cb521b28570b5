"""The Triton kernels behind the seam of ``engine.kernels.ops``."""

from __future__ import annotations

from torch import Tensor

from engine.kernels.fused import attention, block, choose
from engine.kernels.ops import Choice
from engine.kernels.rows import Rows
from engine.models.layers import HeadNorms, Rotary


class FusedOps:
    """``Ops`` by Triton, for float32, bfloat16 and float16."""

    name = "triton"
    paged = True

    def add_norm(self, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return block.add_norm(x, delta, weight, eps)

    def gate(self, gate_up: Tensor) -> Tensor:
        return block.gate(gate_up)

    def write(self, qkv: Tensor, norms: HeadNorms | None, kv: Tensor, rows: Rows, rotary: Rotary) -> Tensor:
        return block.write(qkv, norms, kv, rows, rotary)

    def attend(self, query: Tensor, kv: Tensor, rows: Rows) -> Tensor:
        return attention.attend(query, kv, rows)

    def choose(self, logits: Tensor, choice: Choice) -> Tensor:
        return choose.choose(logits, choice)

    def noise(self, seed: Tensor, index: Tensor, vocab_size: int) -> Tensor:
        return choose.noise(seed, index, vocab_size)
