"""Grows trees with a pair head: what ``engine.proposers.search`` expands is read by the head, behind its pairs.

The trees of several sessions grow together, so that the head's weights are read once a level for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.cache import KVCache
from engine.models.layers import Place, Places
from engine.proposers.pairs.head import PairHead
from engine.proposers.search import Candidates, Level, Shape, grow_together, noise_at


class Branch:
    """One session's search. A level's keys are scratch behind the committed pairs and the levels before it.

    hidden: [1, H], the head's output at the root's pair; from then on [beams, H], at the level's nodes. noise: float
    [levels, V] by the target's ids.
    """

    def __init__(self, head: PairHead, cache: KVCache, shape: Shape, hidden: Tensor, noise: Tensor | None) -> None:
        self._rotary = head.rotary
        self._cache = cache
        self._shape = shape
        self._ancestors = torch.zeros(1, 0, dtype=torch.bool, device=hidden.device)
        self.hidden = hidden
        self.noise = None if noise is None else noise[: shape.depth, head.to_target]
        if shape.beams > 1 or shape.depth > 1:
            cache.reserve(shape.depth * shape.beams)

    def place(self, level: Level) -> Place:
        """Where a level's keys go. Its nodes see all pairs and their own ancestors."""
        own = torch.eye(level.ids.numel(), dtype=torch.bool, device=level.ids.device)
        self._ancestors = torch.cat([self._ancestors[level.rows], own], 1)
        beams, length = self._shape.beams, self._cache.length
        stop = length + level.level * beams
        view, rotary = self._cache.view(stop), self._rotary
        if view is None:
            slots = self._cache.slots(0, stop).to(rotary.cos.device)
            read: slice | Tensor = slots
            written: slice | Tensor = slots[stop - beams :]
        else:
            read, written = view, slice(view.stop - beams, view.stop)
        mask = None
        if beams > 1:
            mask = torch.ones(beams, stop, dtype=torch.bool, device=rotary.cos.device)
            mask[:, length:] = self._ancestors
        at = slice(length + level.level - 1, length + level.level)
        return Place(written, read, mask, *(table[at].unsqueeze(1).expand(beams, -1, -1) for table in rotary.tables))


def search(head: PairHead, kv: Tensor, branches: Sequence[Branch], shape: Shape) -> list[Candidates]:
    """What the branches find, in the draft vocabulary. kv: the head's [2, slots, kv_heads, head_dim]."""

    def predict(out: Tensor, level: int, rows: int) -> Sequence[Tensor]:
        log_probs, hidden = head.predict(out, _noise(branches, level, rows))
        for branch, own in zip(branches, torch.split(hidden, rows), strict=True):
            branch.hidden = own
        return torch.split(log_probs, rows)

    def expand(levels: Sequence[Level]) -> Sequence[Tensor]:
        tokens = joined([head.to_target[level.ids] for level in levels])
        hidden = [branch.hidden[level.rows] for branch, level in zip(branches, levels, strict=True)]
        place = Places.of([branch.place(level) for branch, level in zip(branches, levels, strict=True)])
        out = head.forward(tokens, joined(hidden), kv, place)
        return predict(out, levels[0].level, shape.beams)

    first = predict(joined([branch.hidden for branch in branches]), 0, 1)
    return grow_together([rows[0] for rows in first], expand, shape)


def _noise(branches: Sequence[Branch], level: int, rows: int) -> Tensor | None:
    """What the logits behind a level's nodes gain: [W] of one branch, [m, W] of several."""
    noise = [noise_at(branch.noise, level) for branch in branches]
    known = next((some for some in noise if some is not None), None)
    if known is None or len(noise) == 1:
        return known
    return torch.cat([(torch.zeros_like(known) if some is None else some).expand(rows, -1) for some in noise])


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The rows of all; of one as they are, without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
