"""Describes windows as ``Rows``: what the host knows of caches and trees, brought to the device in one copy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.interfaces import Window
from engine.kernels.rows import Rows, pack_bits


def rows_of(windows: Sequence[Window], device: torch.device, page_tokens: int) -> Rows:
    """The rows of a forward of ``windows``, whose caches have reserved them."""
    counts = [len(window.tree) - window.computed for window in windows]
    words = max(-(-len(window.tree) // 64) for window in windows)
    causal = all(window.tree.causal for window in windows)
    positions, slots, ancestors = [], [], []
    for window in windows:
        length, first = window.cache.length, window.computed
        positions.append(window.tree.depth[first:] + length)
        slots.append(window.cache.slots(length + first, length + len(window.tree)))
        if not causal:
            bits = torch.zeros(len(window.tree) - first, words, dtype=torch.int64)
            own = pack_bits(window.tree.mask[first:])
            bits[:, : own.shape[1]] = own
            ancestors.append(bits)
    width = max(window.cache.num_pages for window in windows)
    tables = torch.zeros(len(windows), width, dtype=torch.int64)
    for row, window in enumerate(windows):
        pages = torch.tensor(window.cache.pages)
        tables[row, : len(pages)] = pages
    starts = torch.tensor([0, *counts]).cumsum(0)
    facts = torch.tensor([[w.cache.length for w in windows], [w.computed for w in windows]])
    packed = [
        torch.cat(positions),
        torch.cat(slots),
        tables,
        starts,
        facts,
        *([] if causal else [torch.cat(ancestors)]),
    ]
    placed = _to_device(packed, device)
    return Rows(
        positions=placed[0],
        slots=placed[1],
        tables=placed[2],
        lengths=placed[4][0],
        computed=placed[4][1],
        starts=placed[3],
        ancestors=None if causal else placed[5],
        max_rows=max(counts),
        page_tokens=page_tokens,
    )


def _to_device(parts: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """int64 tensors, brought over together."""
    flat = torch.cat([part.flatten() for part in parts])
    if device.type == "cuda":
        flat = flat.pin_memory().to(device, non_blocking=True)
    pieces = torch.split(flat, [part.numel() for part in parts])
    return [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)]
