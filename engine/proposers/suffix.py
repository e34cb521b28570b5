"""Self-speculation: what followed the last time that the session's text stood like this (prompt lookup, Saxena 2023;
SuffixDecoding, Oliaro et al. 2024, arXiv 2411.04975).

Everything in the token log counts: the system prompt, tool schemas, the caller's words and earlier replies. The index
belongs to one session and is never shared, so no tenant drafts from, or times, another's words. Needs no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from engine.cache import KVCache
from engine.interfaces import Draft, Tap
from engine.proposers.setup import Setup
from engine.tree import DraftTree

ORDERS = (12, 4, 2, 1)
"""Lengths of the token runs whose places are chained, longest first: phrases that stand often (a schema's, say) must
not hide the one place where much more agrees.
"""
TRIED = (16, 16, 16, 8)
"""Places looked at per order, the latest first."""
LONGEST = 32
"""Tokens of a match that are counted; longer ones are alike."""
MOST_MATCHES = 8
DEEPEST = 24
LEAST_SCORE = 0.02


class SuffixIndex:
    """A growing text's tokens, and for every run of ``ORDERS`` tokens where it ended before.

    Hash chains, as in DEFLATE (RFC 1951, section 4): the latest place by a run's hash, and from each place to the one
    before it. Adding or taking back a token costs the same however long the text is. Some 300 bytes a token.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.tokens: list[int] = []
        self._latest: tuple[dict[int, int], ...] = tuple({} for _ in ORDERS)
        self._before: tuple[list[int], ...] = tuple([] for _ in ORDERS)

    def append(self, token: int) -> None:
        self.tokens.append(token)
        at = len(self.tokens) - 1
        for order, latest, before in zip(ORDERS, self._latest, self._before, strict=True):
            if at + 1 < order:
                before.append(-1)
                continue
            run = hash(tuple(self.tokens[-order:]))
            before.append(latest.get(run, -1))
            latest[run] = at

    def truncate(self, length: int) -> None:
        """Take back the tokens at positions ``length`` and on, one after the other, but for all of them."""
        if length == 0:
            self._clear()
        while len(self.tokens) > length:
            for order, latest, before in zip(ORDERS, self._latest, self._before, strict=True):
                previous = before.pop()
                if len(self.tokens) < order:
                    continue
                run = hash(tuple(self.tokens[-order:]))
                if previous >= 0:
                    latest[run] = previous
                else:
                    del latest[run]
            self.tokens.pop()

    def copy(self) -> SuffixIndex:
        other = SuffixIndex()
        other.tokens = self.tokens.copy()
        other._latest = tuple(latest.copy() for latest in self._latest)
        other._before = tuple(before.copy() for before in self._before)
        return other

    def matches(self, root: int) -> list[tuple[int, int]]:
        """(place, length) of earlier ends of the text's last tokens, ``root`` behind them included.

        At most ``MOST_MATCHES``, the longest first and among equals the latest. Of each order the latest ``TRIED``
        places are looked at, the longest order that finds enough alone: so the longest of all is among them unless
        its run of the next smaller order ended at more places than that since, and one of that order always is.
        """
        found: dict[int, int] = {}
        for order, tried, latest, before in zip(ORDERS, TRIED, self._latest, self._before, strict=True):
            if len(self.tokens) < order - 1:
                continue
            place = latest.get(hash((*self.tokens[len(self.tokens) - order + 1 :], root)), -1)
            while place >= 0 and tried > 0:
                if place not in found and (length := self._agreeing(place, root)):  # else of the same hash alone
                    found[place] = length
                place, tried = before[place], tried - 1
            if len(found) >= MOST_MATCHES:
                break
        return sorted(found.items(), key=lambda match: (-match[1], -match[0]))[:MOST_MATCHES]

    def _agreeing(self, place: int, root: int) -> int:
        """How many tokens up to the root agree with those up to ``place``."""
        tokens, end = self.tokens, len(self.tokens)
        if tokens[place] != root:
            return 0
        length = 1
        while length < LONGEST and place >= length and tokens[place - length] == tokens[end - length]:
            length += 1
        return length

    def continuation(self, place: int, root: int, count: int) -> list[int]:
        """The ``count`` tokens behind ``place``. Past the root the text goes on with what was just read, so that a
        repeated phrase is drafted round and round.
        """
        end = len(self.tokens)
        out = self.tokens[place + 1 : place + 1 + count]
        if len(out) < count:
            out.append(root)
            start = end - place  # out[start:] continues behind the root: what stood there is out itself
            while len(out) < count:
                out.append(out[len(out) - start])
        return out[:count]


class MatchStatistics:
    """How often the token behind a match was right, by the match's length. Starts from a guess worth a few tokens."""

    BOUNDS = (1, 2, 3, 4, 6, 9, 14, 22)
    GUESS = (0.30, 0.50, 0.62, 0.70, 0.78, 0.85, 0.90, 0.94)
    WEIGHT = 8.0

    def __init__(self) -> None:
        self._right = [guess * self.WEIGHT for guess in self.GUESS]
        self._tried = [self.WEIGHT] * len(self.GUESS)

    def rate(self, length: int) -> float:
        at = self._bucket(length)
        return self._right[at] / self._tried[at]

    def count(self, length: int, right: bool) -> None:
        at = self._bucket(length)
        self._right[at] += right
        self._tried[at] += 1.0

    def copy(self) -> MatchStatistics:
        other = MatchStatistics()
        other._right, other._tried = self._right.copy(), self._tried.copy()
        return other

    def _bucket(self, length: int) -> int:
        return sum(length > bound for bound in self.BOUNDS[:-1])


class SuffixDraft:
    """A ``Draft``. Remembers what the longest match said last, to learn how far such matches hold."""

    def __init__(self, index: SuffixIndex, statistics: MatchStatistics) -> None:
        self.index = index
        self.statistics = statistics
        self._claims: list[tuple[int, int, int]] = []  # (position, token, length of the match), in order

    @property
    def length(self) -> int:
        return len(self.index.tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self._settle(token)
            self.index.append(token)

    def _settle(self, token: int) -> None:
        """The token at position ``length`` is known. Past the first wrong one a claim says nothing."""
        if self._claims and self._claims[0][0] == self.length:
            _, claimed, matched = self._claims.pop(0)
            self.statistics.count(matched, claimed == token)
            if claimed != token:
                self._claims.clear()

    def claim(self, root: int, tokens: Sequence[int], matched: int) -> None:
        """The longest match, of ``matched`` tokens, says that ``tokens`` come behind the root.

        What the step before said stays open as long as it was right: longer matches would hardly be learned of if only
        their first tokens counted.
        """
        if self._claims:
            position, claimed, length = self._claims[0]
            if position == self.length:
                if claimed == root:
                    return
                self.statistics.count(length, False)
        start = self.length + 1
        self._claims = [(start + i, token, matched + i) for i, token in enumerate(tokens)]

    def truncate(self, length: int) -> None:
        if length < self.length:
            self._claims.clear()
            self.index.truncate(length)

    def caches(self) -> Sequence[KVCache]:
        return ()

    def fork(self) -> SuffixDraft:
        return SuffixDraft(self.index.copy(), self.statistics.copy())

    def close(self) -> None:
        self.index = SuffixIndex()
        self._claims.clear()


class SuffixProposer:
    """A ``Proposer``. ``source``: its index in trees. ``chain``: only what the longest match says."""

    name = "suffix"
    taps: Sequence[Tap] = ()
    top_k = 0
    noise_levels = 0

    def __init__(self, source: int = 0, *, chain: bool = False) -> None:
        self._source = source
        self._most = 1 if chain else MOST_MATCHES

    def start(self) -> SuffixDraft:
        return SuffixDraft(SuffixIndex(), MatchStatistics())

    def observe(self, draft: Draft, tokens: Tensor, features: Tensor | None, top_ids: Tensor | None) -> None:
        assert isinstance(draft, SuffixDraft)
        draft.extend(tokens.tolist())

    def behind(self, draft: Draft) -> int:
        return 0

    def catch_up(self, draft: Draft) -> bool:
        return False

    def propose(
        self, drafts: Sequence[Draft], roots: Sequence[int], noise: Sequence[Tensor | None], budget: int
    ) -> list[DraftTree]:
        return [self._propose(draft, root, budget) for draft, root in zip(drafts, roots, strict=True)]

    def _propose(self, draft: Draft, root: int, budget: int) -> DraftTree:
        """The matches' continuations laid over each other. A shorter match gets what the longer ones leave over."""
        assert isinstance(draft, SuffixDraft)
        depth = min(budget - 1, DEEPEST)
        matches = draft.index.matches(root)[: self._most] if depth > 0 else []
        trie = Trie(root)
        for rank, (place, matched) in enumerate(matches):
            following = draft.index.continuation(place, root, depth)
            if rank == 0:
                draft.claim(root, following, matched)
            rates = [draft.statistics.rate(min(LONGEST, matched + i)) for i in range(len(following))]
            trie.add(following, rates, LEAST_SCORE)
        return trie.tree(budget, self._source)


class Trie:
    """Continuations of one root laid over each other, each node with the probability that it is what comes."""

    def __init__(self, root: int) -> None:
        self.tokens, self.parents, self.scores = [root], [-1], [1.0]
        self._children: list[dict[int, int]] = [{}]
        self._left = [1.0]  # of a node's probability, what its children so far leave over

    def add(self, tokens: Sequence[int], rates: Sequence[float], least: float) -> None:
        """One continuation; ``rates[i]``: how probable its token i is behind those before it. Ends where a node's
        probability falls below ``least``."""
        at = 0
        for token, rate in zip(tokens, rates, strict=True):
            child = self._children[at].get(token)
            if child is None:
                score = self.scores[at] * self._left[at] * rate
                if score < least:
                    return
                self._left[at] *= 1.0 - rate
                child = self._new(at, token, score)
            at = child

    def _new(self, parent: int, token: int, score: float) -> int:
        self.tokens.append(token)
        self.parents.append(parent)
        self.scores.append(score)
        self._children[parent][token] = len(self.tokens) - 1
        self._children.append({})
        self._left.append(1.0)
        return len(self.tokens) - 1

    def tree(self, budget: int, source: int) -> DraftTree:
        """The root and the ``budget - 1`` most probable nodes."""
        return DraftTree.of(self.tokens, self.parents, self.scores, source).best(budget)


def load(path: Path | None, setup: Setup) -> SuffixProposer:
    """The table's way in. Needs no checkpoint."""
    return SuffixProposer(setup.source, chain=setup.chain)
