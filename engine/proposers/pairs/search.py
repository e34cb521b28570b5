"""Grows a tree with a pair head: what ``engine.proposers.search`` expands is read by the head, behind its pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.cache import KVCache
from engine.models.layers import Place
from engine.proposers.pairs.head import PairHead
from engine.proposers.search import Shape, grow, noise_at
from engine.tree import DraftTree


class Search:
    """One tree's search. A level's keys are scratch behind the committed pairs and the levels before it."""

    def __init__(self, head: PairHead, cache: KVCache, shape: Shape, source: int) -> None:
        self._head = head
        self._cache = cache
        self._shape = shape
        self._source = source
        self._noise: Tensor | None = None
        self._hidden = self._ancestors = torch.empty(0)

    def run(self, root: int, hidden: Tensor, budget: int, noise: Tensor | None = None) -> DraftTree:
        """hidden: [1, H], the head's output at the root's pair. noise: float [levels, V] by the target's ids."""
        depth, beams = self._shape.depth, self._shape.beams
        if beams > 1 or depth > 1:
            self._cache.reserve(depth * beams)
        to_target = self._head.to_target
        self._noise = None if noise is None else noise[:depth, to_target]
        log_probs, self._hidden = self._head.predict(hidden, noise_at(self._noise, 0))
        self._ancestors = torch.zeros(1, 0, dtype=torch.bool, device=hidden.device)
        return grow(log_probs[0], self._expand, self._shape).tree(root, budget, self._source, to_target)

    def _expand(self, level: int, ids: Tensor, rows: Tensor) -> Tensor:
        own = torch.eye(ids.numel(), dtype=torch.bool, device=ids.device)
        self._ancestors = torch.cat([self._ancestors[rows], own], 1)
        tokens, kv = self._head.to_target[ids], self._cache.pool.kv[0]
        out = self._head.forward(tokens, self._hidden[rows], kv, self._place(level))
        log_probs, self._hidden = self._head.predict(out, noise_at(self._noise, level))
        return log_probs

    def _place(self, level: int) -> Place:
        """Where a level's keys go. Its nodes see all pairs and their own ancestors."""
        beams, length = self._shape.beams, self._cache.length
        stop = length + level * beams
        view = self._cache.view(stop)
        rotary = self._head.rotary
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
        at = length + level - 1
        return Place(written, read, mask, rotary.cos[at : at + 1].unsqueeze(1), rotary.sin[at : at + 1].unsqueeze(1))
