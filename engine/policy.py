"""How much to draft: from costs measured at start and acceptance measured as it runs.

A policy changes only how fast a reply comes, never what it says. Knows costs and acceptance, no model and no text.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.tree import DraftTree


class DraftPolicy(Protocol):
    """Decides the size of each step's tree."""

    def budget(self, cached_tokens: int, room: int) -> int:
        """Nodes to draft at most, root included; 1 is plain decoding. ``room``: tokens that the reply may still gain
        beyond the next one."""
        ...

    def prune(self, tree: DraftTree) -> DraftTree:
        """Cut a drafted tree to what is worth verifying."""
        ...

    def observe(self, tree: DraftTree, path: Sequence[int]) -> None:
        """Learn from a verified tree which of its nodes (``path``, root first) were kept."""
        ...

    @property
    def reason(self) -> str:
        """Why the last budget was chosen, for telemetry."""
        ...


@dataclass(frozen=True)
class FixedPolicy:
    """Always the same budget: for benchmarks, tests and forced modes. A budget of 1 is plain decoding."""

    nodes: int = 1

    def budget(self, cached_tokens: int, room: int) -> int:
        return self.nodes if room > 0 else 1

    def prune(self, tree: DraftTree) -> DraftTree:
        return tree

    def observe(self, tree: DraftTree, path: Sequence[int]) -> None:
        pass

    @property
    def reason(self) -> str:
        return f"fixed at {self.nodes} nodes"


@dataclass(frozen=True)
class StepCosts:
    """Measured seconds: ``verify[i]`` of a forward of ``nodes[i]`` nodes, ``draft[i]`` of drafting that many."""

    nodes: tuple[int, ...]
    verify: tuple[float, ...]
    draft: tuple[float, ...]

    def verify_seconds(self, nodes: int) -> float:
        """Interpolated linearly between the measured sizes."""
        at = bisect_left(self.nodes, nodes)
        if at == 0:
            return self.verify[0]
        if at == len(self.nodes):
            return self.verify[-1] * nodes / self.nodes[-1]
        low, high = self.nodes[at - 1], self.nodes[at]
        share = (nodes - low) / (high - low)
        return self.verify[at - 1] + share * (self.verify[at] - self.verify[at - 1])


class MeasuredPolicy:
    """Chooses the budget with the most expected tokens per second, and plain decoding where no draft pays.

    The gain of a budget is a running mean over about its last ``memory`` steps. A budget that is not chosen is tried
    again after ``probe_every`` steps, and after twice as many each time that it is clearly worse, so a hopeless drafter
    costs next to nothing; a probe that beats plain decoding brings the next ones soon, and probes forget fast, so a
    change in the text is noticed. Each tree is then cut by calibrated acceptance:
    of the nodes whose score fell in the same half octave, the share kept. Trees that probe are not cut, so that
    calibration sees all of them.
    """

    def __init__(self, costs: StepCosts, *, memory: int = 200, probe_every: int = 64) -> None:
        self.costs = costs
        self._decay = 1.0 - 1.0 / memory
        self._probe_every = probe_every
        arms = len(costs.nodes)
        self._arm = 0
        self._probing = False
        self._waited = [0] * arms
        self._interval = [probe_every] * arms
        # One hopeful step per budget: enough to be tried, outweighed as soon as there are real ones.
        self._tokens = [1.0 + 0.6 * math.log2(n) for n in costs.nodes]
        self._seconds = [verify + draft for verify, draft in zip(costs.verify, costs.draft, strict=True)]
        self._kept = [2.0 * 2.0 ** (-half_octave / 2) for half_octave in range(_HALF_OCTAVES)]
        self._scored = [2.0] * _HALF_OCTAVES
        self._reason = ""

    @property
    def reason(self) -> str:
        return self._reason

    def rate(self, arm: int) -> float:
        """Expected tokens per second of the ``arm``-th budget."""
        return self._tokens[arm] / self._seconds[arm]

    def budget(self, cached_tokens: int, room: int) -> int:
        if room <= 0:
            self._arm, self._probing, self._reason = 0, False, "no room to draft"
            return 1
        rates = [self.rate(arm) for arm in range(len(self.costs.nodes))]
        best = max(range(len(rates)), key=rates.__getitem__)
        due = self._due(best)
        self._probing = due is not None
        self._arm = best if due is None else due
        nodes = self.costs.nodes[self._arm]
        if due is None:
            self._reason = f"{nodes} nodes: {rates[best]:.0f} tokens/s expected, plain {rates[0]:.0f}"
        else:
            self._reason = f"probing {nodes} nodes"
        return nodes

    def _due(self, best: int) -> int | None:
        """The budget whose turn it is to be tried again, if any."""
        for arm in range(1, len(self.costs.nodes)):
            self._waited[arm] = 0 if arm == best else self._waited[arm] + 1
        for arm in range(1, len(self.costs.nodes)):
            if self._waited[arm] >= self._interval[arm]:
                self._waited[arm] = 0
                hopeless = self.rate(arm) < 0.8 * self.rate(best)
                self._interval[arm] = (
                    min(2 * self._interval[arm], _LONGEST_INTERVAL * self._probe_every)
                    if hopeless
                    else self._probe_every
                )
                return arm
        return None

    def prune(self, tree: DraftTree) -> DraftTree:
        n = len(tree)
        if n <= 2 or self._probing:
            return tree
        probability = [self._calibrated(score) for score in tree.score.tolist()[1:]]
        order = sorted(range(1, n), key=lambda node: -probability[node - 1])
        drafting = self.costs.draft[self._arm]
        gain, best_rate, keep = 1.0, 0.0, 1
        for count, node in enumerate(order, start=2):
            gain += probability[node - 1]
            rate = gain / (drafting + self.costs.verify_seconds(count))
            if rate > best_rate:
                best_rate, keep = rate, count
        return tree if keep == n else _subtree(tree, order[: keep - 1])

    def observe(self, tree: DraftTree, path: Sequence[int]) -> None:
        arm = self._arm
        spent = self.costs.draft[arm] + self.costs.verify_seconds(len(tree))
        decay = self._decay
        if self._probing:
            decay = _PROBE_DECAY
            if len(path) / spent > self.rate(0):
                self._interval[arm] = self._probe_every
        self._tokens[arm] = self._tokens[arm] * decay + len(path)
        self._seconds[arm] = self._seconds[arm] * decay + spent
        kept = set(path)
        for node, score in enumerate(tree.score.tolist()):
            if node:
                bin_ = half_octave(score)
                self._kept[bin_] = self._kept[bin_] * self._decay + (node in kept)
                self._scored[bin_] = self._scored[bin_] * self._decay + 1.0

    def _calibrated(self, score: float) -> float:
        bin_ = half_octave(score)
        return float(self._kept[bin_] / self._scored[bin_])


_HALF_OCTAVES = 24
_PROBE_DECAY = 1.0 - 1.0 / 16
_LONGEST_INTERVAL = 16


def half_octave(score: float, count: int = _HALF_OCTAVES) -> int:
    """Which of ``count`` bins a probability falls in: 0 from 1 down to the root of a half, and so on."""
    return min(count - 1, int(-2.0 * math.log2(max(score, 1e-9))))


def _subtree(tree: DraftTree, nodes: Sequence[int]) -> DraftTree:
    """The root and ``nodes``, with every ancestor they need (calibration need not be monotone along a path)."""
    parents = tree.parents.tolist()
    keep = {0}
    for node in nodes:
        while node not in keep:
            keep.add(node)
            node = parents[node]
    return tree.subtree(keep)
