"""The null proposer: a root and nothing else, which makes every step plain decoding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.cache import KVCache
from engine.interfaces import Draft, Tap
from engine.tree import DraftTree


class NoDraft:
    """Counts positions, so that rewinding works as for any other draft."""

    def __init__(self, length: int = 0) -> None:
        self._length = length

    @property
    def length(self) -> int:
        return self._length

    def extend(self, num_tokens: int) -> None:
        self._length += num_tokens

    def truncate(self, length: int) -> None:
        self._length = min(self._length, length)

    def caches(self) -> Sequence[KVCache]:
        return ()

    def fork(self) -> NoDraft:
        return NoDraft(self._length)

    def close(self) -> None:
        pass


class NoProposer:
    """Drafts nothing."""

    name = "none"
    taps: Sequence[Tap] = ()
    top_k = 0
    noise_levels = 0

    def start(self) -> NoDraft:
        return NoDraft()

    def observe(self, draft: Draft, tokens: Tensor, features: Tensor | None, top_ids: Tensor | None) -> None:
        assert isinstance(draft, NoDraft)
        draft.extend(tokens.numel())

    def behind(self, draft: Draft) -> int:
        return 0

    def catch_up(self, draft: Draft) -> bool:
        return False

    def propose(
        self, drafts: Sequence[Draft], roots: Sequence[int], noise: Sequence[Tensor | None], budget: int
    ) -> list[DraftTree]:
        return [DraftTree.chain(torch.tensor([root])) for root in roots]
