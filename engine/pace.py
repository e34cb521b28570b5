"""How long the parts of a step take on this machine: measured at start, and corrected by every step since.

Knows sizes and seconds; no session, no queue and no deadline.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

_MEMORY = 0.8
"""Share of what was known that one more step leaves: machines change their pace within a few steps."""


@dataclass(frozen=True)
class StepCosts:
    """Measured seconds: ``verify[i]`` of a forward of ``nodes[i]`` nodes, ``draft[m][i]`` of drafting that many in the
    m-th way that there is. window: what one more window adds to a forward, beside its nodes.
    """

    nodes: tuple[int, ...]
    verify: tuple[float, ...]
    draft: tuple[tuple[float, ...], ...]
    window: float = 0.0

    def verify_seconds(self, nodes: int) -> float:
        """Of one window."""
        if nodes > self.nodes[-1]:
            return self.verify[-1] * nodes / self.nodes[-1]
        return _interpolated(self.nodes, self.verify, nodes)

    def draft_seconds(self, way: int, nodes: int) -> float:
        return _interpolated(self.nodes, self.draft[way], nodes)


class Pace:
    """costs: as measured before the first step; None: nothing is known until there was one."""

    def __init__(self, costs: StepCosts | None = None) -> None:
        self.costs = costs
        self._forward: dict[int, _Correction] = {}
        """By binary order of magnitude of a step's windows."""
        self._draft: dict[tuple[int, int], _Correction] = {}
        """By way of drafting, and binary order of magnitude of the sessions."""

    def observe(self, windows: int, nodes: int, seconds: float) -> None:
        """A step over so many windows, of so many nodes together, has taken so long, drafting apart."""
        correction = self._forward.setdefault(windows.bit_length(), _Correction())
        correction.learn(nodes, seconds / self._expected(windows, nodes))

    def observe_draft(self, way: int, nodes: int, sessions: int, seconds: float) -> None:
        """Drafting so many nodes for each of so many sessions has taken so long."""
        expected = sessions * self.costs.draft_seconds(way, nodes) if self.costs else 0.0
        if expected > 0.0:
            key = (way, sessions.bit_length())
            self._draft.setdefault(key, _Correction()).learn(nodes, seconds / expected)

    def forward(self, windows: int, nodes: int) -> float:
        """Seconds of a step over so many windows and nodes, drafting apart; 0 where nothing is known."""
        if not self._forward:
            return self._expected(windows, nodes) if self.costs else 0.0
        size = windows.bit_length()
        correction = self._forward.get(size)
        if correction is None:
            correction = self._forward[min(self._forward, key=lambda seen: abs(seen - size))]
        return correction.at(nodes) * self._expected(windows, nodes)

    def draft(self, way: int, nodes: int, sessions: int = 1) -> float:
        """Seconds of drafting so many nodes for each of so many sessions; 0 where nothing is known."""
        if self.costs is None or not sessions:
            return 0.0
        size = sessions.bit_length()
        correction = self._draft.get((way, size))
        if correction is None:
            seen = [known for drafted, known in self._draft if drafted == way]
            correction = self._draft[way, min(seen, key=lambda known: abs(known - size))] if seen else None
        return sessions * self.costs.draft_seconds(way, nodes) * (correction.at(nodes) if correction else 1.0)

    def prefill(self, tokens: int, chunk: int) -> float:
        """Seconds to prefill ``tokens`` of one session, at most ``chunk`` of them a step."""
        whole, rest = divmod(tokens, chunk)
        return whole * self.forward(1, chunk) + (self.forward(1, rest) if rest else 0.0)

    def _expected(self, windows: int, nodes: int) -> float:
        if self.costs is None:
            return float(nodes)
        return self.costs.verify_seconds(nodes) + self.costs.window * (windows - 1)


class _Correction:
    """Seconds that steps took over what was expected, by their size. Between sizes it goes over smoothly: whoever
    compares sizes must not find a step where there is none.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[float, float]] = {}
        """By binary order of magnitude: (nodes, ratio), running means."""
        self._sizes: tuple[float, ...] = ()
        self._ratios: tuple[float, ...] = ()

    def learn(self, nodes: int, ratio: float) -> None:
        known_nodes, known = self._seen.get(nodes.bit_length(), (float(nodes), ratio))
        mean = (_MEMORY * known_nodes + (1.0 - _MEMORY) * nodes, _MEMORY * known + (1.0 - _MEMORY) * ratio)
        self._seen[nodes.bit_length()] = mean
        self._sizes, self._ratios = zip(*sorted(self._seen.values()), strict=True)

    def at(self, nodes: int) -> float:
        return _interpolated(self._sizes, self._ratios, nodes)


def _interpolated(sizes: Sequence[float], values: Sequence[float], size: float) -> float:
    """Linearly between the measured sizes; the nearest one's outside of them."""
    at = bisect_left(sizes, size)
    if at == 0 or at == len(sizes):
        return values[min(at, len(sizes) - 1)]
    low, high = sizes[at - 1], sizes[at]
    return values[at - 1] + (size - low) / (high - low) * (values[at] - values[at - 1])
