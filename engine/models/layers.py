"""The parts that decoders and draft heads are made of: norm, rotary positions, attention over a paged cache, MLP.

All of it works on the n tokens of one window, or of several that share a pass, with weights given as plain tensors.
Knows no checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.page_table import PageTable
from engine.tree import DraftTree


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm (Zhang, Sennrich 2019) over the last dimension.

    In float64 the statistics are rounded to float32, as transformers does, so that equality suites compare like with
    like; elsewhere torch's fused kernel already keeps them in float32.
    """
    if x.dtype == torch.float64:
        narrow = x.float()
        return weight * (narrow * torch.rsqrt(narrow.pow(2).mean(-1, keepdim=True) + eps)).double()
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


class Rotary:
    """Rotary position tables (Su et al. 2021), with the llama3 scaling of long contexts where the config asks for it.

    cos, sin: [positions, head_dim], computed in float32 and rounded to the model's dtype. The first half of ``sin`` is
    negated, so that rotating is one multiply, one roll and one fused multiply-add.
    """

    def __init__(
        self,
        parameters: Mapping[str, Any],
        head_dim: int,
        max_positions: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        frequency = _inverse_frequency(parameters, head_dim)
        angles = torch.arange(max_positions, dtype=torch.float32)[:, None] * frequency
        cos, sin = angles.cos(), angles.sin()
        self.cos = torch.cat([cos, cos], -1).to(device, dtype)
        self.sin = torch.cat([-sin, sin], -1).to(device, dtype)

    @property
    def tables(self) -> tuple[Tensor, Tensor]:
        """(cos, sin)"""
        return self.cos, self.sin

    def at(self, start: int, tree: DraftTree, first: int = 0) -> tuple[Tensor, Tensor]:
        """(cos, sin), each [n, 1, head_dim], for the nodes from ``first`` on of a tree behind ``start`` positions."""
        if tree.causal:
            rows: slice | Tensor = slice(start + first, start + len(tree))
        else:
            rows = tree.depth[first:] + start
        return self.cos[rows].unsqueeze(1), self.sin[rows].unsqueeze(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [n, heads, head_dim] by the tables of its n positions."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


@dataclass(frozen=True, eq=False)
class HeadNorms:
    """RMSNorm weights [head_dim] of every query and every key head (Qwen3)."""

    query: Tensor
    key: Tensor
    eps: float


def rotate_heads(qkv: Tensor, kv_heads: int, norms: HeadNorms | None, cos: Tensor, sin: Tensor) -> Tensor:
    """The query and key heads of qkv [n, heads + 2 * kv_heads, head_dim], normed where the model does, and rotated."""
    qk = qkv[:, :-kv_heads]
    if norms is not None:
        query = rms_norm(qk[:, :-kv_heads], norms.query, norms.eps)
        qk = torch.cat([query, rms_norm(qk[:, -kv_heads:], norms.key, norms.eps)], 1)
    return rotate(qk, cos, sin)


def _inverse_frequency(parameters: Mapping[str, Any], head_dim: int) -> Tensor:
    """parameters: as ``engine.models.config.rope_parameters`` has checked them."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequency: Tensor = 1.0 / parameters["rope_theta"] ** exponent
    if parameters["rope_type"] == "default":
        return frequency
    if parameters["rope_type"] == "linear":
        return frequency / float(parameters["factor"])
    factor, low, high = (float(parameters[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(parameters["original_max_position_embeddings"])
    wavelength = 2 * math.pi / frequency
    smooth = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - smooth) * frequency / factor + smooth * frequency


class WritesAndAttends(Protocol):
    """Where the rows of a pass stand: what a block's attention needs beside its weights."""

    def write(self, qkv: Tensor, norms: HeadNorms | None, kv: Tensor) -> Tensor:
        """Write the rows' keys and values into a layer's; the rotated queries [n, heads, head_dim] come back.

        qkv: [n, heads + 2 * kv_heads, head_dim], as projected. kv: [2, slots, kv_heads, head_dim].
        """
        ...

    def attend(self, query: Tensor, kv: Tensor) -> Tensor:
        """Attention of the rows, whose keys were written before, over all that they see: [n, heads * head_dim]."""
        ...


@dataclass(frozen=True, eq=False)
class Place:
    """Where a window's keys go in the pool and which of them its queries see. Made once, used by every layer.

    written: slots of the new nodes, in order. read: slots of everything attended to. Both are slices when the session's
    pages form one run, so nothing is gathered. mask: bool [n, read], or None when every query sees every key.
    """

    written: slice | Tensor
    read: slice | Tensor
    mask: Tensor | None
    cos: Tensor
    sin: Tensor
    _biases: dict[int, Tensor] = field(init=False, default_factory=dict)

    def bias(self, group: int, dtype: torch.dtype) -> Tensor | None:
        """The mask as it is added to the scores of ``group`` heads folded into rows, [group * n, read]: 0 or -inf.

        Made by the first layer for all: SDPA would make it of a mask of booleans in each of them.
        """
        if self.mask is None:
            return None
        if group not in self._biases:
            bias = torch.zeros(self.mask.shape, dtype=dtype, device=self.mask.device)
            self._biases[group] = bias.masked_fill_(~self.mask, -math.inf).repeat(group, 1)
        return self._biases[group]

    @staticmethod
    def of(cache: PageTable, tree: DraftTree, rotary: Rotary, computed: int = 0, start: int | None = None) -> Place:
        """The place of the tree's nodes from ``computed`` on, behind the cache's committed positions."""
        length = cache.length if start is None else start
        stop = length + len(tree)
        new = len(tree) - computed
        view = cache.view(stop)
        if view is None:
            slots = cache.slots(0, stop).to(rotary.cos.device)
            read: slice | Tensor = slots
            written: slice | Tensor = slots[stop - new :]
        else:
            read, written = view, slice(view.stop - new, view.stop)
        mask = None
        if len(tree) > 1 and not (tree.causal and new == 1):
            mask = torch.ones(new, stop, dtype=torch.bool)
            mask[:, length:] = tree.mask[computed:]
            mask = mask.to(rotary.cos.device)
        cos, sin = rotary.at(length, tree, computed)
        return Place(written, read, mask, cos, sin)

    def write(self, qkv: Tensor, norms: HeadNorms | None, kv: Tensor) -> Tensor:
        """As ``WritesAndAttends.write``."""
        kv_heads = kv.shape[2]
        qk = rotate_heads(qkv, kv_heads, norms, self.cos, self.sin)
        self.put(kv, qk[:, -kv_heads:], qkv[:, -kv_heads:])
        return qk[:, :-kv_heads]

    def put(self, kv: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write keys and values, each [n, kv_heads, head_dim]."""
        kv[0, self.written] = keys
        kv[1, self.written] = values

    def attend(self, query: Tensor, kv: Tensor) -> Tensor:
        """As ``WritesAndAttends.attend``."""
        return attend(query, kv, self)


@dataclass(frozen=True, eq=False)
class Places:
    """The places of several windows that share a pass: rows of the first, then of the second, and so on.

    Everything but attention reads the weights once for all of them.
    """

    parts: Sequence[Place]
    rows: list[int]
    cos: Tensor
    sin: Tensor

    @staticmethod
    def of(parts: Sequence[Place]) -> Places | Place:
        """One place stays what it is."""
        if len(parts) == 1:
            return parts[0]
        rows = [part.cos.shape[0] for part in parts]
        return Places(parts, rows, torch.cat([part.cos for part in parts]), torch.cat([part.sin for part in parts]))

    def write(self, qkv: Tensor, norms: HeadNorms | None, kv: Tensor) -> Tensor:
        """As ``Place.write``, of all rows."""
        kv_heads = kv.shape[2]
        qk = rotate_heads(qkv, kv_heads, norms, self.cos, self.sin)
        keys, values = torch.split(qk[:, -kv_heads:], self.rows), torch.split(qkv[:, -kv_heads:], self.rows)
        for part, some_keys, some_values in zip(self.parts, keys, values, strict=True):
            part.put(kv, some_keys, some_values)
        return qk[:, :-kv_heads]

    def attend(self, query: Tensor, kv: Tensor) -> Tensor:
        """As ``Place.attend``, of all rows: each window sees its own session alone."""
        queries = zip(self.parts, torch.split(query, self.rows), strict=True)
        return torch.cat([part.attend(some, kv) for part, some in queries])


def attend(query: Tensor, kv: Tensor, place: Place) -> Tensor:
    """Attention of n queries over a layer's paged keys and values.

    query: [n, heads, head_dim]; kv: [2, slots, kv_heads, head_dim], the new nodes already written. Returns
    [n, heads * head_dim]. Heads that share a key head are folded into query rows, so no key is repeated.
    """
    n, heads, head_dim = query.shape
    kv_heads = kv.shape[2]
    group = heads // kv_heads
    keys, values = kv[0, place.read].transpose(0, 1), kv[1, place.read].transpose(0, 1)  # [KV, T, hd]
    folded = query.view(n, kv_heads, group, head_dim).permute(1, 2, 0, 3).reshape(kv_heads, group * n, head_dim)
    bias = place.bias(group, query.dtype)
    out = F.scaled_dot_product_attention(folded[None], keys[None], values[None], attn_mask=bias)
    return out.view(kv_heads, group, n, head_dim).permute(2, 0, 1, 3).reshape(n, heads * head_dim)


class Matrix(Protocol):
    """A weight that is not a plain tensor: quantised, or one shard of several."""

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[n, in] -> [n, out]"""
        ...

    @property
    def shape(self) -> torch.Size: ...


Weight = Tensor | Matrix


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """[n, in] -> [n, out], whatever the weight is kept as."""
    return F.linear(x, weight, bias) if isinstance(weight, Tensor) else weight.linear(x, bias)


def gated(gate_up: Tensor) -> Tensor:
    """SiLU of the first half of each row times its second half (Shazeer 2020): [n, 2 * inner] -> [n, inner]."""
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate).mul_(up)


def swiglu(x: Tensor, gate_up: Weight, down: Weight) -> Tensor:
    """The gated MLP with gate and up projections merged: [n, d] -> [n, d]."""
    return linear(gated(linear(x, gate_up)), down)
