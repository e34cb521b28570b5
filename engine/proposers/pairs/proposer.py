"""Drafts with any head that reads pairs of a target's state and the token that followed it (EAGLE-3, MTP)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.cache import Geometry, KVCache, PagePool
from engine.interfaces import Draft, Tap
from engine.models.layers import Place
from engine.proposers.pairs.draft import PairDraft
from engine.proposers.pairs.head import PairHead
from engine.proposers.pairs.search import Search
from engine.proposers.search import NOISE_LEVELS, shape_for
from engine.tree import DraftTree

CATCH_UP_CHUNK = 512


class PairProposer:
    """A ``Proposer``. ``source``: its index in trees. ``chain``: draft one continuation instead of a tree."""

    top_k = 0
    noise_levels = NOISE_LEVELS

    def __init__(
        self,
        name: str,
        head: PairHead,
        *,
        pool_tokens: int,
        page_tokens: int = 16,
        source: int = 0,
        chain: bool = False,
    ) -> None:
        self.name = name
        self.head = head
        self.taps: Sequence[Tap] = head.taps
        cos = head.rotary.cos
        geometry = Geometry(1, head.num_kv_heads, head.head_dim, cos.dtype, cos.device)
        self.pool = PagePool(geometry, max(1, pool_tokens // page_tokens), page_tokens)
        self._source = source
        self._chain = chain

    def start(self) -> PairDraft:
        return PairDraft(KVCache(self.pool))

    def observe(self, draft: Draft, tokens: Tensor, features: Tensor | None, top_ids: Tensor | None) -> None:
        assert isinstance(draft, PairDraft)
        assert features is not None
        draft.extend(tokens, features)

    def catch_up(self, draft: Draft) -> bool:
        """Make the pairs whose tokens are known. For times when nobody waits; ``propose`` does it otherwise."""
        assert isinstance(draft, PairDraft)
        self._make_pairs(draft, None)  # no more than MAX_WAITING of them
        return False

    def propose(
        self, drafts: Sequence[Draft], roots: Sequence[int], noise: Sequence[Tensor | None], budget: int
    ) -> list[DraftTree]:
        sessions = zip(drafts, roots, noise, strict=True)
        return [self._propose(draft, root, its_noise, budget) for draft, root, its_noise in sessions]

    def _propose(self, draft: Draft, root: int, noise: Tensor | None, budget: int) -> DraftTree:
        assert isinstance(draft, PairDraft)
        if budget <= 1 or draft.length == 0:
            return DraftTree.chain(torch.tensor([root]))
        if draft.root_pair is not None and draft.root_pair[0] != root:
            draft.redo_root()
        last = self._make_pairs(draft, root)
        if last is not None:
            draft.root_pair = (root, last)
        if draft.root_pair is None:  # rewound and not observed since: the last pair's output is gone
            return DraftTree.chain(torch.tensor([root]))
        search = Search(self.head, draft.cache, shape_for(budget, chain=self._chain), self._source)
        return search.run(root, draft.root_pair[1], budget, noise)

    def _make_pairs(self, draft: PairDraft, root: int | None) -> Tensor | None:
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
