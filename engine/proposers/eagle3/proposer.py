"""Drafts trees with an EAGLE-3 head, by EAGLE-2's dynamic rule (Li et al. 2024, arXiv 2406.16858).

Level by level the most likely ``beams`` nodes are expanded, and at the end the ``budget - 1`` best of all candidates
are kept by cumulative probability. A node is never more likely than its parent, so what is kept is one tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.cache import Geometry, KVCache, PagePool
from engine.interfaces import Draft, Tap
from engine.models.layers import Place
from engine.proposers.eagle3.draft import Eagle3Draft
from engine.proposers.eagle3.head import Head
from engine.tree import DraftTree

CATCH_UP_CHUNK = 512


@dataclass(frozen=True)
class Shape:
    """How a tree is searched: ``depth`` levels of ``beams`` nodes, each with ``beams`` children."""

    depth: int
    beams: int


def shape_for(budget: int) -> Shape:
    """The search for a tree of ``budget`` nodes: deep enough to use them, wide enough to find them."""
    for nodes, shape in ((8, Shape(4, 2)), (16, Shape(5, 4)), (24, Shape(6, 4)), (32, Shape(6, 6))):
        if budget <= nodes:
            return Shape(min(shape.depth, budget - 1), shape.beams)
    return Shape(7, 10)


class Eagle3Proposer:
    """A ``Proposer``. ``source``: its index in trees. ``chain``: draft one continuation instead of a tree."""

    name = "eagle3"
    top_k = 0

    def __init__(
        self, head: Head, *, pool_tokens: int, page_tokens: int = 16, source: int = 0, chain: bool = False
    ) -> None:
        config = head.config
        self.head = head
        self.taps: Sequence[Tap] = config.taps
        norm = head.rotary.cos
        geometry = Geometry(1, config.num_kv_heads, config.head_dim, norm.dtype, norm.device)
        self.pool = PagePool(geometry, max(1, pool_tokens // page_tokens), page_tokens)
        self._source = source
        self._chain = chain

    def start(self) -> Eagle3Draft:
        return Eagle3Draft(KVCache(self.pool))

    def observe(self, draft: Draft, tokens: Tensor, features: Tensor | None, top_ids: Tensor | None) -> None:
        assert isinstance(draft, Eagle3Draft)
        assert features is not None
        draft.extend(tokens, features)

    def catch_up(self, draft: Draft) -> None:
        """Make the pairs whose tokens are known. For times when nobody waits; ``propose`` does it otherwise."""
        assert isinstance(draft, Eagle3Draft)
        self._make_pairs(draft, None)

    def propose(
        self, drafts: Sequence[Draft], roots: Sequence[int], noise: Sequence[Tensor | None], budget: int
    ) -> list[DraftTree]:
        return [self._propose(draft, root, budget) for draft, root in zip(drafts, roots, strict=True)]

    def _propose(self, draft: Draft, root: int, budget: int) -> DraftTree:
        assert isinstance(draft, Eagle3Draft)
        if budget <= 1 or draft.length == 0:
            return DraftTree.chain(torch.tensor([root]))
        if draft.root_pair is not None and draft.root_pair[0] != root:
            draft.redo_root()
        last = self._make_pairs(draft, root)
        if last is not None:
            draft.root_pair = (root, last)
        if draft.root_pair is None:  # rewound and not observed since: the last pair's output is gone
            return DraftTree.chain(torch.tensor([root]))
        shape = Shape(budget - 1, 1) if self._chain else shape_for(budget)
        return _Search(self.head, draft.cache, shape, self._source).run(root, draft.root_pair[1], budget)

    def _make_pairs(self, draft: Eagle3Draft, root: int | None) -> Tensor | None:
        """Run the head over all pairs that can be made; returns the last output [1, H], if there was one."""
        num_ready = draft.num_ready(root)
        if num_ready == 0:
            return None
        draft.cache.reserve(num_ready)  # before anything is taken, so that running out of pages loses nothing
        features, tokens = draft.take(root)
        cache, out = draft.cache, None
        for start in range(0, tokens.numel(), CATCH_UP_CHUNK):
            chain = DraftTree.chain(tokens[start : start + CATCH_UP_CHUNK])
            place = Place.of(cache, chain, self.head.rotary)
            hidden = self.head.fuse(features[start : start + CATCH_UP_CHUNK])
            out = self.head.forward(chain.tokens.to(hidden.device), hidden, self.pool.kv[0], place)
            cache.commit(list(range(len(chain))))
        return None if out is None else out[-1:]


class _Search:
    """One tree's search. Candidates are numbered in the order found, so parents come before their children."""

    def __init__(self, head: Head, cache: KVCache, shape: Shape, source: int) -> None:
        self._head = head
        self._cache = cache
        self._shape = shape
        self._source = source

    def run(self, root: int, hidden: Tensor, budget: int) -> DraftTree:
        """hidden: [1, H], the head's output at the root's pair."""
        depth, beams = self._shape.depth, self._shape.beams
        if beams > 1 or depth > 1:
            self._cache.reserve(depth * beams)
        log_probs, hidden = self._head.predict(hidden)
        score, ids = log_probs[0].topk(beams)
        found_score, found_ids, found_parent = [score], [ids], [torch.full((beams,), -1)]
        chosen = torch.arange(beams)  # candidate numbers of the level in progress
        hidden = hidden.expand(beams, -1)
        ancestors = torch.zeros(beams, 0, dtype=torch.bool)
        count = beams
        for level in range(1, depth):
            ancestors = torch.cat([ancestors, torch.eye(beams, dtype=torch.bool)], 1)
            tokens = self._head.to_target[ids]
            out = self._head.forward(tokens, hidden, self._cache.pool.kv[0], self._place(level, ancestors))
            log_probs, fed = self._head.predict(out)
            child_score, child_ids = log_probs.topk(beams)
            child_score = child_score + score[:, None]
            found_score.append(child_score.flatten())
            found_ids.append(child_ids.flatten())
            found_parent.append(chosen.repeat_interleave(beams))
            score, best = child_score.flatten().topk(beams)
            ids = child_ids.flatten()[best]
            rows = best // beams
            hidden, ancestors = fed[rows], ancestors[rows.to(ancestors.device)]
            chosen = count + best.cpu()
            count += beams * beams
        return self._tree(root, torch.cat(found_score), torch.cat(found_ids), torch.cat(found_parent), budget)

    def _place(self, level: int, ancestors: Tensor) -> Place:
        """Where a level's keys go: behind the committed pairs and the levels before. It sees pairs and ancestors."""
        beams, length = self._shape.beams, self._cache.length
        stop = length + level * beams
        view = self._cache.view(stop)
        if view is None:
            slots = self._cache.slots(0, stop).to(self._head.rotary.cos.device)
            read: slice | Tensor = slots
            written: slice | Tensor = slots[stop - beams :]
        else:
            read, written = view, slice(view.stop - beams, view.stop)
        mask = None
        if beams > 1:
            mask = torch.ones(beams, stop, dtype=torch.bool)
            mask[:, length:] = ancestors
            mask = mask.to(self._head.rotary.cos.device)
        at = length + level - 1
        rotary = self._head.rotary
        return Place(written, read, mask, rotary.cos[at : at + 1].unsqueeze(1), rotary.sin[at : at + 1].unsqueeze(1))

    def _tree(self, root: int, score: Tensor, ids: Tensor, parent: Tensor, budget: int) -> DraftTree:
        """Keep the best ``budget - 1`` candidates. Ties go to the earlier, so no child is kept without its parent."""
        order = score.sort(descending=True, stable=True).indices[: budget - 1]
        kept = order.sort().values.cpu()
        position = torch.full((score.numel() + 1,), -1)
        position[kept + 1] = torch.arange(1, kept.numel() + 1)
        position[0] = 0
        parents = position[parent[kept] + 1]
        n = kept.numel() + 1
        one = torch.ones(1)
        return DraftTree(
            tokens=torch.cat([torch.tensor([root]), self._head.to_target[ids].cpu()[kept]]),
            parents=torch.cat([torch.tensor([-1]), parents]),
            score=torch.cat([one, score.cpu()[kept].exp()]),
            source=torch.full((n,), self._source),
            causal=self._shape.beams == 1,
        )
