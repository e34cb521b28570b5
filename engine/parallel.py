"""Tensor parallelism (Shoeybi et al. 2019, arXiv 1909.08053): a target whose heads and units are shared among ranks.

Every rank does the same forwards and holds the keys and values of its own heads. Projections into
heads and units are cut by rows and need no words between ranks; those back into the stream are cut by columns, and
their products are summed over all ranks, twice a block. Embedding, norms, LM head and drafters are whole on every rank.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from engine.errors import ModelError
from engine.models.config import DecoderConfig
from engine.models.layers import Weight, linear
from engine.quantize import ReadMatrix, ScaledMatrix
from engine.weights import TensorSource


@dataclass(frozen=True)
class Shard:
    """One rank's share."""

    rank: int
    world: int

    def config(self, whole: DecoderConfig) -> DecoderConfig:
        """The shape of a rank's part. Raises ModelError by name for what cannot be shared evenly."""
        for name in ("num_heads", "num_kv_heads", "intermediate_size"):
            if getattr(whole, name) % self.world:
                raise ModelError(f"{name} {getattr(whole, name)} cannot be shared among {self.world} ranks")
        return replace(
            whole,
            num_heads=whole.num_heads // self.world,
            num_kv_heads=whole.num_kv_heads // self.world,
            intermediate_size=whole.intermediate_size // self.world,
        )

    def part(self, tensor: Tensor, dimension: int) -> Tensor:
        """This rank's of a tensor's equal parts."""
        return tensor.chunk(self.world, dimension)[self.rank]


def device_of(name: str, rank: int) -> torch.device:
    """A rank's own device: the next GPU for each, from the one that is named on. Raises ModelError where it is not
    there.
    """
    device = torch.device(name)
    if device.type != "cuda":
        return device
    index, there = (device.index or 0) + rank, torch.cuda.device_count()
    if index >= there:
        raise ModelError(f"rank {rank} would have GPU {index}, and there are {there}")
    return torch.device("cuda", index)


def join(rank: int, world: int, address: str, device: torch.device) -> Shard:
    """Meet the other ranks, which are on this host, at ``address`` (``file://...``); all have to before any loads."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if sys.platform == "linux":  # what they say to each other is nobody else's, and no other host needs to reach it
        os.putenv("GLOO_SOCKET_IFNAME", "lo")
        os.putenv("NCCL_SOCKET_IFNAME", "lo")
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=address, rank=rank, world_size=world)
    return Shard(rank, world)


class ShardedTensors:
    """A ``TensorSource`` of one rank's part of ``source``, asked for by the part's shapes."""

    def __init__(self, source: TensorSource, shard: Shard) -> None:
        self.source, self._shard = source, shard

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        cut = _cut_dimension(name)
        if cut is None:
            return self.source.take(name, shape)
        return self._shard.part(self.source.take(name, self.whole(name, shape)), cut).contiguous()

    def whole(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the tensor of which a part has ``shape``."""
        cut = _cut_dimension(name)
        return tuple(size * self._shard.world if at == cut else size for at, size in enumerate(shape))

    def merge(self, names: list[str], shapes: list[tuple[int, ...]]) -> Tensor:
        return torch.cat([self.take(name, shape) for name, shape in zip(names, shapes, strict=True)])


def _cut_dimension(name: str) -> int | None:
    """Which dimension of a tensor the ranks share; None where each has the whole."""
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return 1
    into = tuple(f"{part}_proj.{kind}" for part in ("q", "k", "v", "gate", "up") for kind in ("weight", "bias"))
    return 0 if name.endswith(into) else None


@dataclass(frozen=True, eq=False)
class SummedMatrix:
    """A matrix of whose inputs this rank has a part: its product is summed over all ranks."""

    part: Weight

    @property
    def shape(self) -> torch.Size:
        return self.part.shape

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        y = linear(x, self.part)
        dist.all_reduce(y)
        return y if bias is None else y + bias


def sharing(read: ReadMatrix, shard: Shard) -> ReadMatrix:
    """As ``read``, which gives whole matrices in a checkpoint's own eight bits, of this rank's part of each."""

    def read_part(weights: TensorSource, names: list[str], shapes: list[tuple[int, ...]]) -> ScaledMatrix:
        assert isinstance(weights, ShardedTensors)
        parts = []
        for name, shape in zip(names, shapes, strict=True):
            whole = read(weights.source, [name], [weights.whole(name, shape)])
            assert isinstance(whole, ScaledMatrix)
            parts.append(_part_of(whole, name, shard))
        return ScaledMatrix(
            torch.cat([part.weight for part in parts]), torch.cat([part.scale for part in parts]), parts[0].block
        )

    return read_part


def _part_of(matrix: ScaledMatrix, name: str, shard: Shard) -> ScaledMatrix:
    """Raises ModelError where one block of inputs, which has one scale, would be two ranks'."""
    if _cut_dimension(name) == 0:
        return ScaledMatrix(shard.part(matrix.weight, 0), shard.part(matrix.scale, 0), matrix.block)
    inputs = matrix.shape[1] // shard.world
    if matrix.scale.shape[1] == 1:
        return ScaledMatrix(shard.part(matrix.weight, 1), matrix.scale, inputs)
    if inputs % matrix.block:
        raise ModelError(f"{name}: blocks of {matrix.block} inputs cannot be shared among {shard.world} ranks")
    return ScaledMatrix(shard.part(matrix.weight, 1), shard.part(matrix.scale, 1), matrix.block)


def summing(read: ReadMatrix) -> ReadMatrix:
    """As ``read``, with the matrices that lead back into the stream summed over all ranks."""

    def read_part(weights: TensorSource, names: list[str], shapes: list[tuple[int, ...]]) -> Weight:
        matrix = read(weights, names, shapes)
        return SummedMatrix(matrix) if _cut_dimension(names[0]) == 1 else matrix

    return read_part
