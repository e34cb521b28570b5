"""The seam: what plain PyTorch and the Triton kernels both offer, and which of them is used."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.kernels.rows import Rows
from engine.models.layers import HeadNorms, Rotary

KERNELS = ("auto", "triton", "plain")
"""``auto`` is ``triton`` on CUDA where Triton is installed, and ``plain`` elsewhere."""


@dataclass(frozen=True, eq=False)
class Choice:
    """How each of n rows is chosen, as tensors on the device.

    seed: int64 [n], of the turn. index: int64 [n], of the token in the reply. temperature, top_p, min_p: float32 [n];
    top_k: int64 [n], as in ``engine.sampling.Sampling`` (0 and 1 are off). allowed: int32 [n, ceil(V / 32)], bit j of
    word w for token 32 * w + j; None where everything may come.
    """

    seed: Tensor
    index: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    allowed: Tensor | None = None


class Ops(Protocol):
    """The parts of a step beside its matrix products."""

    @property
    def name(self) -> str: ...

    @property
    def paged(self) -> bool:
        """Whether forwards should describe their windows as ``Rows`` rather than as slices of the pool."""
        ...

    def add_norm(self, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """(x + delta, RMSNorm of it), each [n, d]. Without a delta x comes back as it is."""
        ...

    def gate(self, gate_up: Tensor) -> Tensor:
        """As ``engine.models.layers.gated``: [n, 2 * inner] -> [n, inner]."""
        ...

    def write(self, qkv: Tensor, norms: HeadNorms | None, kv: Tensor, rows: Rows, rotary: Rotary) -> Tensor:
        """Norm and rotate queries and keys, write keys and values to ``rows.slots``: the queries [n, heads, head_dim].

        qkv: [n, heads + 2 * kv_heads, head_dim]. kv: a layer's [2, slots, kv_heads, head_dim].
        """
        ...

    def attend(self, query: Tensor, kv: Tensor, rows: Rows) -> Tensor:
        """Attention of query [n, heads, head_dim] over what each row sees, its own key included: [n, heads * hd]."""
        ...

    def choose(self, logits: Tensor, choice: Choice) -> Tensor:
        """int64 [n]: the token behind each row of logits [n, V], by the rule of ``engine.sampling.Sampler.choose``.

        -1 where the rule could not be settled in a bounded number of rounds: then it has to be asked for the row.
        """
        ...

    def noise(self, seed: Tensor, index: Tensor, vocab_size: int) -> Tensor:
        """float32 [n, V]: the noise that ``choose`` adds to a sampled row of that seed and index, both int64 [n]."""
        ...


def ops_for(device: torch.device, kind: str = "auto", *, dtype: torch.dtype = torch.float32, head_dim: int = 64) -> Ops:
    """Raises ModelError for a kind that is not known, and for ``triton`` where it is not installed or does not serve
    such a model."""
    if kind not in KERNELS:
        raise ModelError(f"kernels {kind!r} are not known; these are: {', '.join(KERNELS)}")
    from engine.kernels.plain import PlainOps

    if kind == "plain" or (kind == "auto" and device.type != "cuda"):
        return PlainOps()
    if importlib.util.find_spec("triton") is None:
        if kind == "auto":
            return PlainOps()
        raise ModelError("kernels 'triton' were asked for, and triton is not installed")
    from engine.kernels.fused.ops import FusedOps

    unserved = _unserved(dtype, head_dim)
    if unserved and kind == "triton":
        raise ModelError(f"the Triton kernels do not serve {unserved}; kernels = 'plain' does")
    return PlainOps() if unserved else FusedOps()


def _unserved(dtype: torch.dtype, head_dim: int) -> str:
    """What of a model the kernels do not serve, in words."""
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return str(dtype)
    if dtype == torch.float32 and head_dim == 256:
        return "heads of 256 in float32"  # their tiles are in no registers, and take a minute to compile
    return f"heads of {head_dim}" if not 16 <= head_dim <= 256 or head_dim & (head_dim - 1) else ""
