"""Tensor parallelism (Shoeybi et al. 2019, arXiv 1909.08053): a target whose heads and units are shared among ranks.

Every rank runs the same loop on the same commands and holds the keys and values of its own heads. Projections into
heads and units are cut by rows and need no words between ranks; those back into the stream are cut by columns, and
their products are summed over all ranks, twice a block. Embedding, norms, LM head and drafters are whole on every rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from engine.errors import ModelError
from engine.models.config import DecoderConfig
from engine.models.layers import Weight, linear
from engine.quantize import ReadMatrix
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
        if whole.scheme is not None:
            raise ModelError("a checkpoint that is quantised already cannot be shared among ranks")
        return replace(
            whole,
            num_heads=whole.num_heads // self.world,
            num_kv_heads=whole.num_kv_heads // self.world,
            intermediate_size=whole.intermediate_size // self.world,
        )


def join(rank: int, world: int, address: str, device: torch.device) -> Shard:
    """Meet the other ranks at ``address`` (``tcp://host:port``), which all have to do before any loads."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=address, rank=rank, world_size=world)
    return Shard(rank, world)


class ShardedTensors:
    """A ``TensorSource`` of one rank's part of ``source``, asked for by the part's shapes."""

    def __init__(self, source: TensorSource, shard: Shard) -> None:
        self._source, self._shard = source, shard

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        cut = _cut_dimension(name)
        if cut is None:
            return self._source.take(name, shape)
        whole = tuple(size * self._shard.world if at == cut else size for at, size in enumerate(shape))
        return self._source.take(name, whole).chunk(self._shard.world, cut)[self._shard.rank].contiguous()

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


def summing(read: ReadMatrix) -> ReadMatrix:
    """As ``read``, with the matrices that lead back into the stream summed over all ranks."""

    def read_part(weights: TensorSource, names: list[str], shapes: list[tuple[int, ...]]) -> Weight:
        matrix = read(weights, names, shapes)
        return SummedMatrix(matrix) if _cut_dimension(names[0]) == 1 else matrix

    return read_part
