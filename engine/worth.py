"""What drafted nodes are worth: how often nodes of a score were kept, and what an arm's trees hold from the best down.

Numbers alone, learned as it runs. Knows no cost and no choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.tree import DraftTree

_HALF_OCTAVES = 24
_DOUBT = 0.02
"""How far one node that was left out of a probe takes its kind back to the first belief: some fifty make it tried."""
_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
"""Nodes to verify that are compared."""


def probability(score: float) -> float:
    """What a drafter says of a node, as a probability: of what is none (the NaN of a broken head), that of what is
    never right.
    """
    return min(1.0, score) if score > 0.0 else 0.0


def half_octave(score: float, count: int = _HALF_OCTAVES) -> int:
    """Which of ``count`` bins a score falls in, as a probability: 0 from 1 down to the root of a half, and so on."""
    return min(count - 1, int(-2.0 * math.log2(max(probability(score), 1e-9))))


class Calibration:
    """How often nodes of a score were kept. Starts from the belief that scores are what they say."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._kept: list[float] = [2.0 ** (1 - half / 2) for half in range(_HALF_OCTAVES)]
        self._scored = [2.0] * _HALF_OCTAVES

    def of(self, score: float) -> float:
        at = half_octave(score)
        return self._kept[at] / self._scored[at]

    def doubt(self, score: float) -> None:
        """A node was not tried: go back a little to the belief that was there at first."""
        at = half_octave(score)
        self._kept[at] += _DOUBT * (self._scored[at] * 2.0 ** (-at / 2) - self._kept[at])

    def count(self, score: float, kept: bool) -> None:
        at = half_octave(score)
        self._kept[at] = self._kept[at] * self._decay + kept
        self._scored[at] = self._scored[at] * self._decay + 1.0


class Arm:
    """A way of drafting at one size, and what its trees have been worth lately; the one of one node is plain decoding.

    sizes: numbers of nodes that may be left to verify. gains[i]: tokens that the best ``sizes[i]`` nodes add. Starts
    from one hopeful tree: enough to be tried, outweighed as soon as there are real ones. interval: steps after which it
    is tried where it is not chosen; waited: that it was not.
    """

    def __init__(self, way: int, nodes: int, interval: int) -> None:
        self.way = way
        self.nodes = nodes
        self.interval = interval
        self.waited = 0
        self.sizes = [k for k in _SIZES if k < nodes - 1] + [nodes - 1]
        self._trees = 1.0
        self._profile = [0.8 / k for k in range(1, nodes)]
        """Of the k-th best node of a tree, the mean calibrated acceptance."""
        self.gains = self._cumulative()

    @property
    def is_plain(self) -> bool:
        return self.nodes == 1

    def saw(self, values: Sequence[float], decay: float) -> None:
        """A tree was drafted; values: what its nodes are worth, the best first."""
        self._trees = self._trees * decay + 1.0
        share, known = 1.0 / self._trees, self._profile
        for k, value in enumerate(values[: len(known)]):
            known[k] += share * (value - known[k])
        for k in range(len(values), len(known)):
            known[k] -= share * known[k]
        self.gains = self._cumulative()

    def _cumulative(self) -> list[float]:
        total, found, at = 0.0, [], 0
        for size in self.sizes:
            total += sum(self._profile[at:size])
            at = size
            found.append(total)
        return found


def subtree(tree: DraftTree, nodes: Sequence[int]) -> DraftTree:
    """The root and ``nodes``, with every ancestor they need (calibration need not be monotone along a path)."""
    parents = tree.parents.tolist()
    keep = {0}
    for node in nodes:
        while node not in keep:
            keep.add(node)
            node = parents[node]
    return tree.subtree(keep)
