"""The rows of a forward, described by tensors on the device: where each stands, what it writes, what it sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.models.layers import HeadNorms, Rotary

if TYPE_CHECKING:
    from engine.kernels.ops import Ops

WORD = 64
"""Nodes in one word of ``Rows.ancestors``."""


@dataclass(frozen=True, eq=False)
class Rows:
    """n rows of B windows, those of one window next to each other.

    positions: int64 [n], for RoPE. slots: int64 [n], where a row's key and value go.
    tables: int64 [B, P], the page tables. lengths: int64 [B], committed positions, which every row of the window sees.
    computed: int64 [B], scratch nodes behind them that were written by an earlier level. starts: int64 [B + 1], where
    each window's rows begin. ancestors: int64 [n, words], bit j where the row sees scratch node j of its window (its
    own is ``computed`` plus its place in the window); None where every row sees all scratch up to its own node.
    max_rows: of any window. page_tokens: of a page. Rows of a window past the live ones write to a sink and see what
    they like: nobody reads them.
    """

    positions: Tensor
    slots: Tensor
    tables: Tensor
    lengths: Tensor
    computed: Tensor
    starts: Tensor
    ancestors: Tensor | None
    max_rows: int
    page_tokens: int

    @property
    def num_windows(self) -> int:
        return self.tables.shape[0]

    @property
    def num_rows(self) -> int:
        return self.positions.shape[0]


@dataclass(frozen=True, eq=False)
class PagedPlace:
    """As ``engine.models.layers.Place``, with the positions of all windows on the device."""

    rows: Rows
    rotary: Rotary
    ops: Ops

    def write(self, qkv: Tensor, norms: HeadNorms | None, kv: Tensor) -> Tensor:
        return self.ops.write(qkv, norms, kv, self.rows, self.rotary)

    def attend(self, query: Tensor, kv: Tensor) -> Tensor:
        return self.ops.attend(query, kv, self.rows)


def pack_bits(mask: Tensor) -> Tensor:
    """bool [n, m] to int64 [n, ceil(m / 64)]: bit j of word w is ``mask[:, 64 * w + j]``."""
    n, m = mask.shape
    words = max(1, -(-m // WORD))
    padded = torch.zeros(n, words * WORD, dtype=torch.int64, device=mask.device)
    padded[:, :m] = mask
    # A sum of distinct powers of two; the last one is the sign bit, which wraps as it should.
    return (padded.view(n, words, WORD) << torch.arange(WORD, device=mask.device)).sum(-1)


def unpack_bits(words: Tensor, count: int) -> Tensor:
    """int64 [n, w] to bool [n, count], the other way round."""
    bits = (words[:, :, None] >> torch.arange(WORD, device=words.device)) & 1
    return bits.flatten(1)[:, :count].bool()
