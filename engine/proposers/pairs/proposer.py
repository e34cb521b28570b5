"""Drafts with any head that reads pairs of a target's state and the token that followed it (EAGLE-3, MTP)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from engine.cache import Geometry, KVCache, PagePool
from engine.errors import OutOfPages
from engine.interfaces import Draft, Tap
from engine.models.layers import Place, Places
from engine.proposers.pairs.draft import PROMPT_TOKENS, PairDraft
from engine.proposers.pairs.head import PairHead
from engine.proposers.pairs.search import Branch, joined, search
from engine.proposers.pairs.waiting import rows_of
from engine.proposers.search import NOISE_LEVELS, shape_for
from engine.tree import DraftTree

CATCH_UP_CHUNK = 512
CATCH_UP_TOGETHER = 256


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
        self.source = source
        self._chain = chain

    def start(self) -> PairDraft:
        return PairDraft(KVCache(self.pool))

    def observe(self, draft: Draft, tokens: Tensor, features: Tensor | None, top_ids: Tensor | None) -> None:
        assert isinstance(draft, PairDraft)
        assert features is not None
        draft.extend(tokens, features)
        is_prompt = tokens.numel() >= PROMPT_TOKENS
        if is_prompt and (surplus := draft.prompt_surplus) > 0:
            # Otherwise the beginning of a long prompt, where the instructions are, would be lost to the call for good.
            # No more than that: others talk in this step.
            with suppress(OutOfPages):
                self._make_pairs([draft], [None], most=surplus)
        if draft.overdue:
            draft.restart()
        if is_prompt:
            draft.waiting.project_surplus(self.head.fuse)
        else:
            draft.waiting.project(self.head.fuse)

    def behind(self, draft: Draft) -> int:
        assert isinstance(draft, PairDraft)
        return draft.num_ready(None)

    def catch_up(self, draft: Draft) -> bool:
        """Make some of the pairs whose tokens are known. For times when nobody waits; ``propose`` does it otherwise."""
        assert isinstance(draft, PairDraft)
        self._make_pairs([draft], [None], most=CATCH_UP_TOGETHER)
        return draft.num_ready(None) > 0

    def propose(
        self, drafts: Sequence[Draft], roots: Sequence[int], noise: Sequence[Tensor | None], budget: int
    ) -> list[DraftTree]:
        """As ``Proposer.propose``. One of several sessions that finds no pages drafts nothing."""
        trees = [DraftTree.chain(torch.tensor([root])) for root in roots]
        asked = [at for at, draft in enumerate(drafts) if budget > 1 and draft.length]
        known = [_pair_draft(drafts[at], roots[at]) for at in asked]
        self._make_pairs(known, [roots[at] for at in asked])
        shape = shape_for(budget, chain=self._chain)
        branches: dict[int, Branch] = {}
        for at, draft in zip(asked, known, strict=True):
            if draft.root_pair is not None:  # else rewound and not observed since: the last pair's output is gone
                with self._alone_or_spared(known):
                    branches[at] = Branch(self.head, draft.cache, shape, draft.root_pair[1], noise[at])
        if branches:
            found = search(self.head, self.pool.kv[0], list(branches.values()), shape)
            for at, candidates in zip(branches, found, strict=True):
                trees[at] = candidates.tree(roots[at], budget, self.source, self.head.to_target)
        return trees

    def _make_pairs(self, drafts: Sequence[PairDraft], roots: Sequence[int | None], most: int | None = None) -> None:
        """Run the head over the pairs that can be made, those of all sessions together.

        Those with the fewest come first, and what is above ``most`` waits for the next step: where many were not
        drafted for, nobody's reply stands still until all have caught up. Without a given ``most`` that is all of one
        session's, and ``CATCH_UP_TOGETHER`` of several.
        """
        if most is None:
            most = CATCH_UP_TOGETHER if len(drafts) > 1 else sum(draft.num_ready(roots[0]) for draft in drafts)
        waiting: dict[PairDraft, tuple[list[Tensor], Tensor]] = {}
        known = dict(zip(drafts, roots, strict=True))
        room = most
        for draft in sorted(drafts, key=lambda draft: draft.num_ready(known[draft])):
            root, num_ready = known[draft], draft.num_ready(known[draft])
            whole = num_ready <= room
            count = num_ready if whole else min(room, draft.num_ready(None))
            if count > 0:
                with self._alone_or_spared(drafts):
                    draft.cache.reserve(count)  # before anything is taken: running out of pages loses nothing
                    waiting[draft] = draft.take(root) if whole else draft.take_part(count)
                    room -= count
            if not whole:
                known[draft] = None
        while waiting:
            part = {d: (rows_of(f, 0, CATCH_UP_CHUNK), t[:CATCH_UP_CHUNK]) for d, (f, t) in waiting.items()}
            try:
                last = self._read(part)
            except Exception:
                for draft in waiting:  # their features are taken, and would be missed at every later try
                    draft.start_over()
                raise
            rest = {d: (rows_of(f, CATCH_UP_CHUNK, len(t)), t[CATCH_UP_CHUNK:]) for d, (f, t) in waiting.items()}
            waiting = {draft: (features, tokens) for draft, (features, tokens) in rest.items() if tokens.numel()}
            for draft, output in last.items():
                root = known[draft]
                if root is not None and draft not in waiting:
                    draft.root_pair = (root, output)

    def _read(self, pairs: dict[PairDraft, tuple[list[Tensor], Tensor]]) -> dict[PairDraft, Tensor]:
        """Make some pairs of every session; returns the outputs [1, H] at each one's last."""
        chains = [DraftTree.chain(tokens) for _, tokens in pairs.values()]
        place = Places.of([Place.of(d.cache, chain, self.head.rotary) for d, chain in zip(pairs, chains, strict=True)])
        features, tokens = zip(*pairs.values(), strict=True)
        hidden = self._hidden([piece for pieces in features for piece in pieces])
        out = self.head.forward(joined(tokens).to(hidden.device), hidden, self.pool.kv[0], place)
        found: dict[PairDraft, Tensor] = {}
        for draft, own in zip(pairs, torch.split(out, [len(chain) for chain in chains]), strict=True):
            draft.cache.commit(list(range(own.shape[0])))
            found[draft] = own[-1:]
        return found

    def _hidden(self, pieces: Sequence[Tensor]) -> Tensor:
        """The head's hidden states [m, H] of features, of which those that were not projected are so together."""
        raw = [piece for piece in pieces if piece.dim() == 3]
        if len(raw) == len(pieces):
            return self.head.fuse(joined(raw))
        made = iter(torch.split(self.head.fuse(joined(raw)), [len(piece) for piece in raw]) if raw else ())
        return joined([next(made) if piece.dim() == 3 else piece for piece in pieces])

    @contextmanager
    def _alone_or_spared(self, drafts: Sequence[PairDraft]) -> Iterator[None]:
        """Running out of pages is told to whoever asks for one session; of several it harms no other."""
        try:
            yield
        except OutOfPages:
            if len(drafts) == 1:
                raise


def _pair_draft(draft: Draft, root: int) -> PairDraft:
    """The draft, without a last pair that was made with another root."""
    assert isinstance(draft, PairDraft)
    if draft.root_pair is not None and draft.root_pair[0] != root:
        draft.redo_root()
    return draft
