"""Weights in eight bits: read from published checkpoints, or made at load. Activations stay as they are.

A step at batch one is bound by reading the weights, so half the bytes is half the time; the products are computed in
the model's own dtype. Scales go by row, and by block of the input where a checkpoint has them so.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.errors import ModelError
from engine.models.layers import Weight
from engine.models.scheme import FP8, Scheme
from engine.weights import TensorSource, Weights, pack

LARGEST = {FP8: 448.0, torch.int8: 127.0}
PRECISIONS = {"full": None, "fp8": FP8, "int8": torch.int8}
"""What weights may be made into at load."""


def _has_triton() -> bool:
    try:
        return importlib.util.find_spec("triton") is not None
    except ModuleNotFoundError:  # somebody keeps it from being found
        return False


TRITON = _has_triton()
"""Whether there is a kernel for products on a GPU; it is Triton's with ``kernels = "plain"`` too."""

ReadMatrix = Callable[[TensorSource, list[str], list[tuple[int, ...]]], Weight]
"""Reads several matrices that share their input, stacked, in the form that a forward wants."""


@dataclass(frozen=True, eq=False)
class ScaledMatrix:
    """[out, in] in eight bits. scale: float32 [out, blocks], of each row's ``block`` inputs; one block is the row."""

    weight: Tensor
    scale: Tensor
    block: int

    @property
    def shape(self) -> torch.Size:
        return self.weight.shape

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if x.device.type == "cuda" and TRITON:
            from engine.kernels.fused.matmul import scaled_linear

            y = scaled_linear(x, self.weight, self.scale, self.block)
        elif self.scale.shape[1] == 1:
            y = F.linear(x, self.weight.to(x.dtype)) * self.scale[:, 0].to(x.dtype)
        else:
            y = F.linear(x, self.full(x.dtype))
        return y if bias is None else y + bias

    def full(self, dtype: torch.dtype) -> Tensor:
        """The matrix that it stands for."""
        wide = self.scale.repeat_interleave(self.block, 1)[:, : self.weight.shape[1]]
        return (self.weight.float() * wide).to(dtype)


def quantise(matrix: Tensor, kind: torch.dtype) -> ScaledMatrix:
    """To the nearest of ``kind``, with one scale a row: the largest of a row is the largest that there is."""
    wide = matrix.float()
    scale = wide.abs().amax(1, keepdim=True).clamp_min(1e-12) / LARGEST[kind]
    scaled = wide / scale
    if kind == torch.int8:
        scaled = scaled.round_()
    return ScaledMatrix(scaled.to(kind), scale, matrix.shape[1])


def packed(weights: TensorSource, names: list[str], shapes: list[tuple[int, ...]]) -> Weight:
    """As they are."""
    return pack(weights.merge(names, shapes))


def reader(precision: str, scheme: Scheme | None) -> ReadMatrix:
    """What reads the matrices of a decoder's layers. Raises ModelError for a precision that is not known, or asked of
    a checkpoint that has its own."""
    if precision not in PRECISIONS:
        raise ModelError(f"weights {precision!r} are not known; these are: {', '.join(PRECISIONS)}")
    kind = PRECISIONS[precision]
    if scheme is not None:
        if kind not in (None, scheme.kind):
            raise ModelError(f"weights {precision!r} were asked for, and the checkpoint is quantised already")
        return published(scheme)
    if kind is None:
        return packed
    return lambda weights, names, shapes: quantise(weights.merge(names, shapes), kind)


def published(scheme: Scheme) -> ReadMatrix:
    """Reads a checkpoint's own eight bits and scales. Raises ModelError where they are not what its config says."""
    if scheme.block is not None and not all(isinstance(size, int) and size > 0 for size in scheme.block):
        said = f"block_structure or weight_block_size begins with {scheme.block}"
        raise ModelError(f"{said}, which are no numbers; [rows, inputs] were expected")

    def read(weights: TensorSource, names: list[str], shapes: list[tuple[int, ...]]) -> ScaledMatrix:
        assert isinstance(weights, Weights)
        parts = [_one(scheme, weights, name, shape) for name, shape in zip(names, shapes, strict=True)]
        block = shapes[0][1] if scheme.block is None else scheme.block[1]
        return ScaledMatrix(torch.cat([weight for weight, _ in parts]), torch.cat([by for _, by in parts]), block)

    return read


def _one(scheme: Scheme, weights: Weights, name: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(weight, scale [out, blocks]) of one matrix."""
    weight = weights.raw(name, shape)
    if weight.dtype != scheme.kind:
        raise ModelError(f"{name} is {weight.dtype}, and the config says {scheme.kind}")
    named = name.removesuffix("weight") + scheme.scale
    scale = weights.raw(named).float()
    if scheme.block is None:
        if scale.numel() not in (1, shape[0]):
            raise ModelError(f"{named} has shape {tuple(scale.shape)}, one for each of {shape[0]} rows was expected")
        return weight, scale.reshape(-1, 1).expand(shape[0], 1).contiguous()
    rows, inputs = scheme.block
    blocks = (-(-shape[0] // rows), -(-shape[1] // inputs))
    if tuple(scale.shape) != blocks:
        raise ModelError(f"{named} has shape {tuple(scale.shape)}, {blocks} was expected")
    return weight, scale.repeat_interleave(rows, 0)[: shape[0]].contiguous()
