"""Token recycling (Luo et al. 2024, arXiv 2408.08696): what the target nearly said before, as a tree.

A table holds, for each token, the target's latest most likely successors in this session; a tree is what the table
says behind the root, successors of successors. Needs no weights and drafts text that never stood in the session.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from engine.cache import KVCache
from engine.interfaces import Draft, Tap
from engine.proposers.setup import Setup
from engine.tree import DraftTree

TOP_K = 8
LEAST_SCORE = 0.02


class RankStatistics:
    """How often the k-th most likely successor of the table was the next token. Starts from a guess."""

    GUESS = (0.42, 0.14, 0.07, 0.045, 0.03, 0.025, 0.02, 0.015)
    WEIGHT = 16.0

    def __init__(self) -> None:
        self._right = [guess * self.WEIGHT for guess in self.GUESS]
        self._tried = self.WEIGHT

    def rates(self) -> list[float]:
        return [right / self._tried for right in self._right]

    def count(self, rank: int | None) -> None:
        """One successor became known; it stood at ``rank`` of the table, or nowhere."""
        self._tried += 1.0
        if rank is not None:
            self._right[rank] += 1.0

    def copy(self) -> RankStatistics:
        other = RankStatistics()
        other._right, other._tried = self._right.copy(), self._tried
        return other


class RecyclingDraft:
    """A ``Draft``: the table and the text's last token.

    A rewind takes back what the tokens behind it have told the table, for whoever goes on from there may be another
    call that shares the beginning. ``statistics`` stay: how often ranks come true is nobody's words.
    """

    def __init__(self) -> None:
        self.rows: dict[int, tuple[int, ...]] = {}
        self.statistics = RankStatistics()
        self._length = 0
        self._last: int | None = None
        self._waiting: list[tuple[Tensor, Tensor | None]] = []
        self._read_to = 0
        self._replaced: list[tuple[int, int, tuple[int, ...] | None]] = []
        """(position whose token told, row's token, the row before), in order of position."""

    @property
    def length(self) -> int:
        return self._length

    def extend(self, tokens: Tensor, top_ids: Tensor | None) -> None:
        """Positions ``length`` and on were committed. Keeps references; ``read`` does the work."""
        self._waiting.append((tokens, top_ids))
        self._length += tokens.numel()

    def read(self) -> None:
        """Take what waits into the table. Where the target's choices were not computed (a prompt), the text itself says
        what followed; ranks are learned from the target's alone.
        """
        for tokens, top_ids in self._waiting:
            rows = None if top_ids is None else top_ids.tolist()
            for i, token in enumerate(tokens.tolist()):
                row = self.rows.get(self._last, ()) if self._last is not None else ()
                if self._last is not None and not row:
                    self._set(self._last, (token,))
                elif len(row) > 1:
                    self.statistics.count(row.index(token) if token in row else None)
                if rows is not None:
                    self._set(token, tuple(rows[i]))
                self._last = token
                self._read_to += 1
        self._waiting.clear()

    def _set(self, token: int, row: tuple[int, ...]) -> None:
        self._replaced.append((self._read_to, token, self.rows.get(token)))
        self.rows[token] = row

    def truncate(self, length: int) -> None:
        if length < self._length:
            self.read()
            while self._replaced and self._replaced[-1][0] >= length:
                _, token, before = self._replaced.pop()
                if before is None:
                    del self.rows[token]
                else:
                    self.rows[token] = before
            self._length, self._read_to, self._last = length, length, None

    def caches(self) -> Sequence[KVCache]:
        return ()

    def fork(self) -> RecyclingDraft:
        self.read()
        child = RecyclingDraft()
        child.rows, child.statistics = self.rows.copy(), self.statistics.copy()
        child._length, child._last, child._read_to = self._length, self._last, self._read_to
        child._replaced = self._replaced.copy()
        return child

    def close(self) -> None:
        self._waiting.clear()
        self.rows.clear()
        self._replaced.clear()
        self._length, self._last, self._read_to = 0, None, 0


class RecyclingProposer:
    """A ``Proposer``. ``source``: its index in trees. ``chain``: only the most likely successors."""

    name = "recycling"
    taps: Sequence[Tap] = ()
    top_k = TOP_K
    noise_levels = 0

    def __init__(self, source: int = 0, *, chain: bool = False) -> None:
        self._source = source
        self._width = 1 if chain else TOP_K

    def start(self) -> RecyclingDraft:
        return RecyclingDraft()

    def observe(self, draft: Draft, tokens: Tensor, features: Tensor | None, top_ids: Tensor | None) -> None:
        assert isinstance(draft, RecyclingDraft)
        draft.extend(tokens, top_ids)

    def behind(self, draft: Draft) -> int:
        return 0

    def catch_up(self, draft: Draft) -> bool:
        assert isinstance(draft, RecyclingDraft)
        draft.read()
        return False

    def propose(
        self, drafts: Sequence[Draft], roots: Sequence[int], noise: Sequence[Tensor | None], budget: int
    ) -> list[DraftTree]:
        return [self._propose(draft, root, budget) for draft, root in zip(drafts, roots, strict=True)]

    def _propose(self, draft: Draft, root: int, budget: int) -> DraftTree:
        """Best first: the most probable node not yet in the tree is next, until the budget is used."""
        assert isinstance(draft, RecyclingDraft)
        draft.read()
        rates = draft.statistics.rates()[: self._width]
        tokens, parents, scores = [root], [-1], [1.0]
        waiting: list[tuple[float, int, int, int]] = []  # (-score, order found, parent, token)
        found = 0

        def expand(node: int) -> None:
            nonlocal found
            for rate, token in zip(rates, draft.rows.get(tokens[node], ()), strict=False):
                if scores[node] * rate >= LEAST_SCORE:
                    heapq.heappush(waiting, (-scores[node] * rate, found, node, token))
                    found += 1

        expand(0)
        while waiting and len(tokens) < budget:
            score, _, parent, token = heapq.heappop(waiting)
            tokens.append(token)
            parents.append(parent)
            scores.append(-score)
            expand(len(tokens) - 1)
        return DraftTree.of(tokens, parents, scores, self._source)


def load(path: Path | None, setup: Setup) -> RecyclingProposer:
    """The table's way in. Needs no checkpoint."""
    return RecyclingProposer(setup.source, chain=setup.chain)
