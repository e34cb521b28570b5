"""A proposer that knows the reply and errs on purpose, so that every accepted length occurs on any weights."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.interfaces import Draft, Tap
from engine.proposers.none import NoDraft
from engine.tree import DraftTree


class OracleProposer:
    """Drafts the target's own continuation up to a random depth, wrong from there on, with or without wrong siblings.

    reference: the whole token log as the target alone would write it. chain: draft a chain instead of a tree. Depths
    are drawn without putting back, so over many replies every one occurs.
    """

    name = "oracle"
    taps: Sequence[Tap] = ()
    top_k = 0
    noise_levels = 0

    def __init__(self, vocab_size: int, seed: int, *, chain: bool = False) -> None:
        self.reference: list[int] = []
        self._vocab_size = vocab_size
        self._random = random.Random(seed)
        self._chain = chain
        self._deck: list[tuple[int, bool]] = []

    def start(self) -> NoDraft:
        return NoDraft()

    def observe(self, draft: Draft, tokens: Tensor, features: Tensor | None, top_ids: Tensor | None) -> None:
        assert isinstance(draft, NoDraft)
        draft.extend(tokens.numel())

    def behind(self, draft: Draft) -> int:
        return 0

    def catch_up(self, draft: Draft) -> None:
        pass

    def propose(
        self, drafts: Sequence[Draft], roots: Sequence[int], noise: Sequence[Tensor | None], budget: int
    ) -> list[DraftTree]:
        return [self._tree(draft.length, root, budget) for draft, root in zip(drafts, roots, strict=True)]

    def _tree(self, position: int, root: int, budget: int) -> DraftTree:
        right = self.reference[position + 1 : position + budget]
        depth, crowded = self._draw(len(right), budget)
        tokens, parents, children = [root], [-1], [set[int]()]

        def add(parent: int, token: int) -> int:
            tokens.append(token)
            parents.append(parent)
            children[parent].add(token)
            children.append(set())
            return len(tokens) - 1

        tip = 0
        for token in right[:depth]:
            if crowded and self._random.random() < 0.3 and len(tokens) < budget - 1:
                self._add_wrong(add, children, tip, token)
            if len(tokens) < budget:
                tip = add(tip, token)
        while len(tokens) < budget:
            parent = len(tokens) - 1 if self._chain else self._random.randrange(len(tokens))
            ahead = position + 1 + depth if parent == tip else -1
            avoid = self.reference[ahead] if 0 <= ahead < len(self.reference) else -1
            if not self._add_wrong(add, children, parent, avoid):
                break
        n = len(tokens)
        return DraftTree(torch.tensor(tokens), torch.tensor(parents), torch.full((n,), 0.5), torch.zeros(n).long())

    def _draw(self, most: int, budget: int) -> tuple[int, bool]:
        """(right tokens to draft, whether wrong siblings stand beside them)."""
        if not any(depth <= most for depth, _ in self._deck):
            self._deck = [(depth, crowded) for depth in range(budget) for crowded in {False, not self._chain}]
            self._random.shuffle(self._deck)
        fitting = [at for at, (depth, _) in enumerate(self._deck) if depth <= most]
        deepest = max(fitting, key=lambda at: self._deck[at])  # there is room for it only where a reply begins
        return self._deck.pop(deepest if self._random.random() < 0.5 else fitting[0])

    def _add_wrong(self, add, children, parent: int, avoid: int) -> bool:  # type: ignore[no-untyped-def]
        token = self._random.randrange(self._vocab_size)
        if token == avoid or token in children[parent]:
            return len(children[parent]) < self._vocab_size - 2
        add(parent, token)
        return True
