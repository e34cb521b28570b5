"""How much to draft: from costs measured at start and acceptance measured as it runs.

A policy changes only how fast a reply comes, never what it says. Knows costs and acceptance, no model and no text.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

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

    Gain per budget is a running mean of the tokens that steps of that budget emitted, remembered over about ``memory``
    steps. Budgets not tried lately are tried again every ``probe_every`` steps, so a change in the text is noticed.
    Each tree is then cut by calibrated acceptance: of the nodes whose score fell in the same octave, the share kept.
    """

    def __init__(self, costs: StepCosts, *, memory: int = 200, probe_every: int = 64) -> None:
        self.costs = costs
        self._decay = 1.0 - 1.0 / memory
        self._probe_every = probe_every
        self._steps_since_probe = 0
        self._probe_at = 0
        self._arm = 0
        # One warm-up observation per budget: enough to be tried, forgotten as soon as there are real ones.
        self._tokens = [1.0 + 0.6 * math.log2(n) for n in costs.nodes]
        self._seconds = [verify + draft for verify, draft in zip(costs.verify, costs.draft, strict=True)]
        self._kept = [2.0 * 2.0**-octave for octave in range(_OCTAVES)]
        self._scored = [2.0] * _OCTAVES
        self._reason = ""

    @property
    def reason(self) -> str:
        return self._reason

    def rate(self, arm: int) -> float:
        """Expected tokens per second of the ``arm``-th budget."""
        return self._tokens[arm] / self._seconds[arm]

    def budget(self, cached_tokens: int, room: int) -> int:
        if room <= 0:
            self._arm, self._reason = 0, "no room to draft"
            return 1
        rates = [self.rate(arm) for arm in range(len(self.costs.nodes))]
        best = max(range(len(rates)), key=rates.__getitem__)
        self._steps_since_probe += 1
        if self._steps_since_probe >= self._probe_every and len(rates) > 1:
            self._steps_since_probe = 0
            self._probe_at = self._probe_at % (len(rates) - 1) + 1
            best = self._probe_at
            self._reason = f"probing {self.costs.nodes[best]} nodes"
        else:
            self._reason = f"{self.costs.nodes[best]} nodes: {rates[best]:.0f} tokens/s expected, plain {rates[0]:.0f}"
        self._arm = best
        return self.costs.nodes[best]

    def prune(self, tree: DraftTree) -> DraftTree:
        n = len(tree)
        if n <= 2:
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
        self._tokens[arm] = self._tokens[arm] * self._decay + len(path)
        spent = self.costs.draft[arm] + self.costs.verify_seconds(len(tree))
        self._seconds[arm] = self._seconds[arm] * self._decay + spent
        kept = set(path)
        for node, score in enumerate(tree.score.tolist()):
            if node:
                octave = _octave(score)
                self._kept[octave] = self._kept[octave] * self._decay + (node in kept)
                self._scored[octave] = self._scored[octave] * self._decay + 1.0

    def _calibrated(self, score: float) -> float:
        octave = _octave(score)
        return self._kept[octave] / self._scored[octave]


_OCTAVES = 16


def _octave(score: float) -> int:
    return min(_OCTAVES - 1, int(-2.0 * math.log2(max(score, 1e-9))))


def _subtree(tree: DraftTree, nodes: Sequence[int]) -> DraftTree:
    """The root and ``nodes``, with every ancestor they need (calibration need not be monotone along a path)."""
    parents = tree.parents.tolist()
    keep = {0}
    for node in nodes:
        while node not in keep:
            keep.add(node)
            node = parents[node]
    index = sorted(keep)
    position = {node: i for i, node in enumerate(index)}
    rows = torch.tensor(index)
    return DraftTree(
        tokens=tree.tokens[rows],
        parents=torch.tensor([-1] + [position[parents[node]] for node in index[1:]]),
        score=tree.score[rows],
        source=tree.source[rows],
        causal=all(position[parents[node]] == i for i, node in enumerate(index[1:])),
    )
