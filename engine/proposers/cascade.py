"""Several proposers' trees merged into one, so that they share a verification.

Sources are asked in the order given, cheap ones first. Each node's score is the acceptance that nodes of its source,
depth and own score have had; the best nodes fill the budget. A source whose turn comes late is not asked where what
was already drafted should yield as many tokens as it usually does.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress

from torch import Tensor

from engine.cache import KVCache
from engine.errors import OutOfPages
from engine.interfaces import Draft, Proposer, Tap
from engine.tree import DraftTree
from engine.worth import half_octave, probability

DEPTHS, SCORES = 8, 12
PRIOR = 6.0
"""Nodes' worth of belief in what a source itself says of its nodes."""
MEMORY = 200.0
"""Nodes of one kind, or trees of one source, after which older ones count half."""
KNOWN_TREES, ASKED_EVERY = 16, 32
"""A source is not spared before so many of its trees are known, and asked again after so many trees at the latest."""


class Calibration:
    """Measured acceptance by source, depth and score (in half octaves); numbers alone, shared by all sessions."""

    def __init__(self, sources: int) -> None:
        self._right = [[[0.0] * SCORES for _ in range(DEPTHS)] for _ in range(sources)]
        self._tried = [[[0.0] * SCORES for _ in range(DEPTHS)] for _ in range(sources)]
        self._tokens, self._trees, self._spared = [0.0] * sources, [0.0] * sources, [0] * sources

    def rate(self, source: int, depth: int, score: float) -> float:
        d, s = min(depth, DEPTHS) - 1, half_octave(score, SCORES)
        return (self._right[source][d][s] + PRIOR * probability(score)) / (self._tried[source][d][s] + PRIOR)

    def count(self, source: int, depth: int, score: float, right: bool) -> None:
        d, s = min(depth, DEPTHS) - 1, half_octave(score, SCORES)
        right_nodes, tried = self._right[source][d], self._tried[source][d]
        right_nodes[s] += right
        tried[s] += 1.0
        if tried[s] > MEMORY:
            right_nodes[s], tried[s] = right_nodes[s] / 2, tried[s] / 2

    def count_tree(self, source: int, right_tokens: int) -> None:
        self._tokens[source] += right_tokens
        self._trees[source] += 1.0
        if self._trees[source] > MEMORY:
            self._tokens[source], self._trees[source] = self._tokens[source] / 2, self._trees[source] / 2

    def spares(self, source: int, gain: float) -> bool:
        """Whether trees that should yield ``gain`` tokens make up for not asking the source."""
        trees = self._trees[source]
        spared = trees >= KNOWN_TREES and gain >= self._tokens[source] / trees and self._spared[source] < ASKED_EVERY
        self._spared[source] = self._spared[source] + 1 if spared else 0
        return spared


class CascadeDraft:
    """A ``Draft``: one per source, and the trees whose outcome is not known yet."""

    def __init__(self, parts: Sequence[Draft]) -> None:
        self.parts = list(parts)
        self.open: list[tuple[int, int, DraftTree]] = []
        """(position of the root, source, that source's own tree) whose right nodes are not all known yet: no more than
        a tree is deep, since every step brings a token."""
        self._recent: list[int] = []  # the text's last tokens, up to position length - 1

    @property
    def length(self) -> int:
        return self.parts[0].length

    def extend(self, tokens: Sequence[int]) -> None:
        self._recent = [*self._recent[-64:], *tokens][-128:]

    def following(self, position: int) -> list[int] | None:
        """The text behind ``position``, or None where its beginning is not kept any more."""
        start = len(self._recent) - (self.length - position) + 1
        return self._recent[start:] if start >= 0 else None

    def truncate(self, length: int) -> None:
        if length < self.length:
            del self._recent[max(0, len(self._recent) - (self.length - length)) :]
            self.open.clear()
        for part in self.parts:
            part.truncate(length)

    def caches(self) -> Sequence[KVCache]:
        return [cache for part in self.parts for cache in part.caches()]

    def fork(self) -> CascadeDraft:
        child = CascadeDraft([part.fork() for part in self.parts])
        child._recent = self._recent.copy()
        return child

    def close(self) -> None:
        self.open.clear()
        self._recent.clear()
        for part in self.parts:
            part.close()


class Cascade:
    """A ``Proposer`` of proposers. ``parts[i]`` must draft with source i. frugal: which of them run no model."""

    def __init__(self, parts: Sequence[Proposer], frugal: Collection[int] = ()) -> None:
        self.parts = parts
        self._frugal = frozenset(frugal)
        self.name = "+".join(part.name for part in parts)
        self.taps: Sequence[Tap] = tuple(dict.fromkeys(tap for part in parts for tap in part.taps))
        self.top_k = max(part.top_k for part in parts)
        self.noise_levels = max(part.noise_levels for part in parts)
        self.calibration = Calibration(len(parts))
        self._columns = [[list(self.taps).index(tap) for tap in part.taps] for part in parts]

    @property
    def cheaper(self) -> Proposer | None:
        """Drafts from the same drafts with the frugal parts alone; None where there is no difference, or nothing left.

        The other parts observe what they always do, and catch up when they are asked again.
        """
        if not self._frugal or len(self._frugal) == len(self.parts):
            return None
        return _Some(self, self._frugal)

    def start(self) -> CascadeDraft:
        return CascadeDraft([part.start() for part in self.parts])

    def observe(self, draft: Draft, tokens: Tensor, features: Tensor | None, top_ids: Tensor | None) -> None:
        assert isinstance(draft, CascadeDraft)
        for part, own, columns in zip(self.parts, draft.parts, self._columns, strict=True):
            wanted = None
            if columns:
                assert features is not None
                wanted = features if len(columns) == features.shape[1] else features[:, columns]
            ids = top_ids[:, : part.top_k] if part.top_k and top_ids is not None else None
            part.observe(own, tokens, wanted, ids)
        draft.extend(tokens.tolist())
        self._learn(draft)

    def behind(self, draft: Draft) -> int:
        return self.behind_of(range(len(self.parts)), draft)

    def behind_of(self, sources: Collection[int], draft: Draft) -> int:
        """``behind`` of some of the parts."""
        return max(self.parts[source].behind(_parts(draft)[source]) for source in sources)

    def catch_up(self, draft: Draft) -> bool:
        assert isinstance(draft, CascadeDraft)
        more = False
        for part, own in zip(self.parts, draft.parts, strict=True):
            with suppress(OutOfPages):
                more |= part.catch_up(own)
        return more

    def propose(
        self, drafts: Sequence[Draft], roots: Sequence[int], noise: Sequence[Tensor | None], budget: int
    ) -> list[DraftTree]:
        return self.propose_of(range(len(self.parts)), drafts, roots, noise, budget)

    def propose_of(
        self,
        sources: Collection[int],
        drafts: Sequence[Draft],
        roots: Sequence[int],
        noise: Sequence[Tensor | None],
        budget: int,
    ) -> list[DraftTree]:
        """``propose`` by some of the parts. Each is asked once, for all the sessions that it is not spared for."""
        merged = [MergedTree(root) for root in roots]
        for source, part in enumerate(self.parts):
            if source not in sources:
                continue
            asked = [
                at
                for at, tree in enumerate(merged)
                if source == min(sources) or not self.calibration.spares(source, tree.gain(budget))
            ]
            if not asked:
                continue
            own = [_parts(drafts[at])[source] for at in asked]
            with suppress(OutOfPages):  # the others have drafted, or will
                found = part.propose(own, [roots[at] for at in asked], [noise[at] for at in asked], budget)
                for at, tree in zip(asked, found, strict=True):
                    if len(tree) > 1:
                        draft = drafts[at]
                        assert isinstance(draft, CascadeDraft)
                        draft.open.append((draft.length, source, tree))
                        merged[at].add(tree, source, self.calibration)
        return [tree.tree(budget) for tree in merged]

    def _learn(self, draft: CascadeDraft) -> None:
        """Compare the open trees with the text. A tree stays open while it may yet be right further down."""
        still_open = []
        for position, source, tree in draft.open:
            following = draft.following(position)
            if following is None:
                continue
            right = right_nodes(tree, following)
            if right is None:
                still_open.append((position, source, tree))
                continue
            scores = zip(tree.depth.tolist()[1:], tree.score.tolist()[1:], right[1:], strict=True)
            for depth, score, is_right in scores:
                self.calibration.count(source, depth, score, is_right)
            self.calibration.count_tree(source, sum(right) - 1)
        draft.open = still_open


def _parts(draft: Draft) -> list[Draft]:
    assert isinstance(draft, CascadeDraft)
    return draft.parts


class _Some:
    """A ``Proposer``: some of a cascade's parts, over the whole cascade's drafts."""

    def __init__(self, whole: Cascade, sources: Collection[int]) -> None:
        self._whole = whole
        self._sources = sources
        self.name = "+".join(part.name for source, part in enumerate(whole.parts) if source in sources)
        self.taps, self.top_k = whole.taps, whole.top_k
        self.noise_levels = max(part.noise_levels for source, part in enumerate(whole.parts) if source in sources)
        self.start, self.observe, self.catch_up = whole.start, whole.observe, whole.catch_up

    def behind(self, draft: Draft) -> int:
        return self._whole.behind_of(self._sources, draft)

    def propose(
        self, drafts: Sequence[Draft], roots: Sequence[int], noise: Sequence[Tensor | None], budget: int
    ) -> list[DraftTree]:
        return self._whole.propose_of(self._sources, drafts, roots, noise, budget)


def right_nodes(tree: DraftTree, following: Sequence[int]) -> list[bool] | None:
    """Which nodes the text behind the root turned out to say; None while it is too short to tell."""
    depths, tokens, parents = tree.depth.tolist(), tree.tokens.tolist(), tree.parents.tolist()
    right = [True] * len(tree)
    for node in range(1, len(tree)):
        if right[parents[node]] and depths[node] > len(following):
            return None
        right[node] = right[parents[node]] and tokens[node] == following[depths[node] - 1]
    return right


class MergedTree:
    """Trees of one root laid over each other; a node that two sources draft has the better of the two scores."""

    def __init__(self, root: int) -> None:
        self._tokens, self._parents, self._scores, self._sources = [root], [-1], [1.0], [-1]
        self._at: dict[tuple[int, int], int] = {}

    def add(self, tree: DraftTree, source: int, calibration: Calibration) -> None:
        place = [0] * len(tree)
        tokens, parents, scores = tree.tokens.tolist(), tree.parents.tolist(), tree.score.tolist()
        for node, depth in zip(range(1, len(tree)), tree.depth.tolist()[1:], strict=True):
            parent = place[parents[node]]
            # Calibration need not fall along a path, and a child is never kept without its parent.
            score = min(calibration.rate(source, depth, scores[node]), self._scores[parent])
            place[node] = at = self._at.setdefault((parent, tokens[node]), len(self._tokens))
            if at == len(self._tokens):
                self._tokens.append(tokens[node])
                self._parents.append(parent)
                self._scores.append(score)
                self._sources.append(source)
            elif score > self._scores[at]:
                self._scores[at], self._sources[at] = score, source

    def gain(self, budget: int) -> float:
        """Tokens that the best ``budget - 1`` nodes should add."""
        return sum(sorted(self._scores[1:], reverse=True)[: max(0, budget - 1)])

    def tree(self, budget: int) -> DraftTree:
        """The root and the ``budget - 1`` best nodes, parents before their children."""
        return DraftTree.of(self._tokens, self._parents, self._scores, self._sources).best(budget)
