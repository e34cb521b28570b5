"""Grows a target to an exact shape, such as Llama 3's 8B or 70B, on the device and in no file.

The function stays: acceptance is the trained pair's, and a step costs what the large shape's step costs. ``padding``
says what is done to the residual stream; here every factor is free, so besides:

- a head may be wider. RoPE turns pair i of a head of n dimensions by theta^(-2i/n), so a small head's pairs are put
  where a wide one has the same frequencies: every second pair at twice the width. Queries are scaled by the square root
  of the width's factor, since attention divides by that of the width.
- the key heads that are added come with query heads of their own; a real query head stays with its key head.
- the vocabulary that is added is masked: its logits are computed, and are minus infinity.

Scales that are no powers of two are rounded in bfloat16, so there the function stays up to that rounding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bench.grow import files
from bench.grow.target import spread
from engine.models.config import DecoderConfig, read_config
from engine.models.decoder import Decoder, assemble
from engine.quantize import reader

NOISE = 0.02
"""Standard deviation of what is multiplied away, or by nothing."""


@dataclass(frozen=True)
class Places:
    """Where the small model's units stand in the large one's: index tensors, and the sizes of the large one."""

    hidden: int
    query: Tensor
    key: Tensor
    inner: int
    small: DecoderConfig
    large: DecoderConfig

    @staticmethod
    def of(small: DecoderConfig, large: DecoderConfig) -> Places:
        """Raises ValueError where the small one does not fit."""
        group, wide_group = (c.num_heads // c.num_kv_heads for c in (small, large))
        if small.num_kv_heads > large.num_kv_heads or group > wide_group:
            raise ValueError(f"{small.num_heads} heads on {small.num_kv_heads} do not fit the larger shape's")
        if large.head_dim % small.head_dim:
            raise ValueError(f"heads of {small.head_dim} do not fit heads of {large.head_dim}")
        dims = _head_dims(small.head_dim, large.head_dim)
        heads = torch.arange(small.num_heads) // group * wide_group + torch.arange(small.num_heads) % group
        return Places(
            hidden=small.hidden_size,
            query=(heads[:, None] * large.head_dim + dims).flatten(),
            key=(torch.arange(small.num_kv_heads)[:, None] * large.head_dim + dims).flatten(),
            inner=small.intermediate_size,
            small=small,
            large=large,
        )

    @property
    def query_scale(self) -> float:
        return math.sqrt(self.large.head_dim / self.small.head_dim)

    @property
    def norm_scale(self) -> float:
        return math.sqrt(self.small.hidden_size / self.large.hidden_size)


def _head_dims(small: int, large: int) -> Tensor:
    """Where each dimension of a small head stands in a large one: the pairs (i, i + n/2) of the same frequencies."""
    pairs = torch.arange(small // 2) * (large // small)
    return torch.cat([pairs, pairs + large // 2])


def exact_config(model: Path, large: DecoderConfig) -> DecoderConfig:
    """``large`` with what the function needs of the small model: its RoPE, and an epsilon for the padded stream."""
    small = read_config(model)
    eps = small.rms_norm_eps * small.hidden_size / large.hidden_size
    return replace(large, rope=small.rope, rms_norm_eps=eps, tied=False)


class GrownTensors:
    """A ``TensorSource`` of the large shape: each tensor is made when it is asked for.

    weights: the small model's, by name. layer_of: the small layer that stands at a large one's place.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        places: Places,
        layer_of: Mapping[int, int],
        dtype: torch.dtype,
        device: torch.device,
        seed: int,
    ) -> None:
        self._weights, self._places, self._layer_of = weights, places, layer_of
        self.dtype, self.device = dtype, device
        self._generator = torch.Generator(device).manual_seed(seed)

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
        if found is None:
            return self._around(name, shape)
        small = self._layer_of.get(int(found[1]))
        weight = None if small is None else self._weights[f"model.layers.{small}.{found[2]}"]
        return self.block_tensor(found[2], weight, shape, streams=1)

    def merge(self, names: list[str], shapes: list[tuple[int, ...]]) -> Tensor:
        return torch.cat([self.take(name, shape) for name, shape in zip(names, shapes, strict=True)])

    def block_tensor(self, part: str, weight: Tensor | None, shape: Sequence[int], *, streams: int) -> Tensor:
        """A block's tensor, by its name in the block. None: of a block that adds nothing. streams: in its input."""
        places = self._places
        if part.endswith(("o_proj.weight", "down_proj.weight")):
            grown = torch.zeros(*shape, dtype=self.dtype, device=self.device)
            if weight is not None:
                columns = places.query if part.endswith("o_proj.weight") else torch.arange(places.inner)
                self._put(grown, torch.arange(places.hidden), columns, weight)
            return grown
        grown = self.random(*shape)
        if part.endswith("norm.weight"):
            if weight is not None:
                grown[: places.hidden] = (weight * places.norm_scale).to(grown)
            return grown
        if weight is None:
            return grown
        rows = {"q": places.query, "k": places.key, "v": places.key}
        name = part.split(".")[-2][0]
        if name == "k":  # of the dimensions that are added to a real head, queries say noise and keys say nothing
            grown[: places.small.num_kv_heads * places.large.head_dim] = 0
        scaled = weight * places.query_scale if name == "q" else weight
        at = rows.get(name, torch.arange(places.inner))
        self._put(grown, at, self.columns(streams), scaled)
        return grown

    def columns(self, streams: int) -> Tensor:
        """The real places of ``streams`` padded streams that lie side by side."""
        starts = torch.arange(streams)[:, None] * self._places.large.hidden_size
        return (starts + torch.arange(self._places.hidden)).flatten()

    def random(self, *shape: int) -> Tensor:
        noise = torch.randn(*shape, dtype=self.dtype, device=self.device, generator=self._generator)
        return noise.mul_(NOISE)

    def answers(self, weight: Tensor, rows: int) -> Tensor:
        """An output matrix: real rows first, noise behind them."""
        grown = self.random(rows, self._places.large.hidden_size)
        self._put(grown, torch.arange(weight.shape[0]), torch.arange(self._places.hidden), weight)
        return grown

    def joins(self, weight: Tensor, streams: int) -> Tensor:
        """A matrix that makes one padded stream of several, with nothing where it must stay zero."""
        hidden = self._places.large.hidden_size
        grown = torch.zeros(hidden, streams * hidden, dtype=self.dtype, device=self.device)
        self._put(grown, torch.arange(self._places.hidden), self.columns(streams), weight)
        return grown

    def _around(self, name: str, shape: Sequence[int]) -> Tensor:
        if name == "model.norm.weight":
            return self.block_tensor(name, self._weights[name], shape, streams=1)
        if name == "model.embed_tokens.weight":
            grown = self.random(*shape)
            grown[:, self._places.hidden :] = 0
            grown[: self._places.small.vocab_size, : self._places.hidden] = self._weights[name].to(grown)
            return grown
        if name == "lm_head.weight":
            tied = self._places.small.tied
            return self.answers(self._weights["model.embed_tokens.weight" if tied else name], shape[0])
        raise KeyError(name)

    def _put(self, grown: Tensor, rows: Tensor, columns: Tensor, weight: Tensor) -> None:
        rows, columns = rows.to(self.device), columns.to(self.device)
        grown[rows[:, None], columns[None]] = weight.to(grown)


class MaskedDecoder(Decoder):
    """A grown decoder, of whose vocabulary only the first ``real`` tokens can come."""

    mask: Tensor | None = None

    def mask_from(self, real: int) -> None:
        self.mask = torch.zeros(self.vocab_size, dtype=self.dtype, device=self.device)
        self.mask[real:] = -torch.inf

    def logits(self, normed: Tensor) -> Tensor:
        logits = super().logits(normed)
        return logits if self.mask is None else logits.add_(self.mask)


@dataclass(frozen=True, eq=False)
class Grown:
    """A grown target, and what its drafters have to follow. layers: where the small model's stand in it."""

    target: MaskedDecoder
    small: DecoderConfig
    source: GrownTensors
    layers: list[int]


def grow_target(
    model: Path,
    large: DecoderConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    pool_tokens: int,
    kernels: str,
    precision: str = "full",
) -> Grown:
    """The decoder in ``model``, grown to the shape of ``large``. precision: of ``engine.quantize.PRECISIONS``; in eight
    bits the function is the small model's in eight bits.

    Raises ValueError where the small shape does not fit into the large one.
    """
    small = read_config(model)
    config = exact_config(model, large)
    layers = spread(small.num_layers, config.num_layers)
    weights = files.read_tensors(model / files.MODEL)
    places = Places.of(small, config)
    source = GrownTensors(weights, places, {at: i for i, at in enumerate(layers)}, dtype, device, seed=0)
    read = reader(precision, None)
    target = assemble(config, source, pool_tokens=pool_tokens, kernels=kernels, decoder=MaskedDecoder, read=read)
    assert isinstance(target, MaskedDecoder)
    target.mask_from(small.vocab_size)
    return Grown(target, small, source, layers)
