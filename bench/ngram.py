"""A 5-gram table as a proposer: what a drafter must beat before anyone calls a corpus hard or a head good.

Counts every 1- to 5-gram of a corpus; drafts the best-first tree under stupid back-off (Brants et al. 2007).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.cache import KVCache
from engine.interfaces import Draft, Tap
from engine.tree import DraftTree

BACK_OFF = 0.4
Ids = npt.NDArray[np.int64]


class NgramTable:
    """Successors of every context of up to ``order - 1`` tokens, most frequent first.

    A context and its successor are packed into one 64-bit integer, so vocabulary bits times ``order`` must fit 63.
    """

    def __init__(self, ids: Ids, vocab_size: int, order: int = 5, top: int = 16) -> None:
        self._bits = int(vocab_size - 1).bit_length()
        if self._bits * order > 63:
            raise ValueError(f"{order}-grams over {vocab_size} tokens do not fit 63 bits")
        self._order = order
        self._top = top
        self._levels = [self._count(ids, length) for length in range(1, order + 1)]

    def _count(self, ids: Ids, length: int) -> tuple[Ids, Ids, npt.NDArray[np.float64]]:
        """(contexts, successors, relative frequency), sorted by context and then by falling frequency."""
        packed = np.zeros(len(ids) - length + 1, np.int64)
        for offset in range(length):
            packed = (packed << self._bits) | ids[offset : len(ids) - length + 1 + offset]
        grams, counts = np.unique(packed, return_counts=True)
        contexts, successors = grams >> self._bits, grams & ((1 << self._bits) - 1)
        order = np.lexsort((-counts, contexts))
        contexts, successors, counts = contexts[order], successors[order], counts[order]
        starts = np.flatnonzero(np.r_[True, contexts[1:] != contexts[:-1]])
        sizes = np.diff(np.r_[starts, len(contexts)])
        totals = np.repeat(np.add.reduceat(counts, starts), sizes)
        rank = np.arange(len(contexts)) - np.repeat(starts, sizes)
        keep = rank < self._top
        return contexts[keep], successors[keep], (counts / totals)[keep]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for level in self._levels for array in level)

    def successors(self, context: Sequence[int], count: int) -> list[tuple[int, float]]:
        """Up to ``count`` distinct next tokens with their scores, the longest matching context first."""
        found: dict[int, float] = {}
        weight = 1.0
        for length in range(min(self._order - 1, len(context)), -1, -1):
            key = 0
            for token in context[len(context) - length :]:
                key = (key << self._bits) | token
            contexts, successors, frequency = self._levels[length]
            start, stop = np.searchsorted(contexts, (key, key + 1))
            for token, share in zip(successors[start:stop].tolist(), frequency[start:stop].tolist(), strict=True):
                found.setdefault(token, weight * share)
                if len(found) == count:
                    return list(found.items())
            weight *= BACK_OFF
        return list(found.items())


class RecentTokens:
    """The last tokens of a session, as the draft of a table that looks no further back."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    @property
    def length(self) -> int:
        return len(self.tokens)

    def truncate(self, length: int) -> None:
        del self.tokens[length:]

    def caches(self) -> Sequence[KVCache]:
        return ()

    def fork(self) -> RecentTokens:
        return RecentTokens(self.tokens.copy())

    def close(self) -> None:
        pass


class NgramProposer:
    """Drafts the ``budget`` most likely continuations of the table, as one tree."""

    name = "5-gram"
    taps: Sequence[Tap] = ()
    top_k = 0
    noise_levels = 0

    def __init__(self, table: NgramTable, *, branches: int = 8, max_depth: int = 8) -> None:
        self._table = table
        self._branches = branches
        self._max_depth = max_depth

    def start(self) -> RecentTokens:
        return RecentTokens([])

    def observe(self, draft: Draft, tokens: Tensor, features: Tensor | None, top_ids: Tensor | None) -> None:
        assert isinstance(draft, RecentTokens)
        draft.tokens.extend(tokens.tolist())

    def behind(self, draft: Draft) -> int:
        return 0

    def catch_up(self, draft: Draft) -> None:
        pass

    def propose(
        self, drafts: Sequence[Draft], roots: Sequence[int], noise: Sequence[Tensor | None], budget: int
    ) -> list[DraftTree]:
        trees = []
        for draft, root in zip(drafts, roots, strict=True):
            assert isinstance(draft, RecentTokens)
            trees.append(self._tree([*draft.tokens[-4:], root], budget))
        return trees

    def _tree(self, context: list[int], budget: int) -> DraftTree:
        tokens, parents, scores = [context[-1]], [-1], [1.0]
        heap: list[tuple[float, int, int, list[int], int]] = []
        self._push(heap, 1.0, 0, context, 0)
        while heap and len(tokens) < budget:
            score, token, parent, before, depth = heapq.heappop(heap)
            tokens.append(token)
            parents.append(parent)
            scores.append(-score)
            if depth < self._max_depth:
                self._push(heap, -score, len(tokens) - 1, [*before, token], depth)
        n = len(tokens)
        return DraftTree(torch.tensor(tokens), torch.tensor(parents), torch.tensor(scores), torch.zeros(n).long())

    def _push(
        self,
        heap: list[tuple[float, int, int, list[int], int]],
        score: float,
        parent: int,
        context: list[int],
        depth: int,
    ) -> None:
        for token, share in self._table.successors(context[-4:], self._branches):
            heapq.heappush(heap, (-score * share, token, parent, context, depth + 1))
