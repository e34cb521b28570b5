"""How long the parts of a step take on this machine: measured at start, and corrected by every step since.

Knows sizes and seconds; no session, no queue and no deadline.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

_MEMORY = 0.8
"""Share of what was known that one more step leaves: machines change their pace within a few steps."""
_MOST = 4.0
"""Times what is known, or its part, that one step may be: what took longer stood still for another reason."""
_HALF_LIFE = 500
"""Steps after which a correction that nothing renewed counts half, against what is known of other sizes, and all of
them against what was measured at start: what is left undone because it seems dear would never be seen to have become
cheap.
"""
_FRESH = _HALF_LIFE // 8
"""Steps for which a figure is as good as new, and what was worked out from all of them is not worked out again."""


@dataclass(frozen=True)
class StepCosts:
    """Measured seconds: ``verify[i]`` of a forward of ``nodes[i]`` nodes, ``draft[w][i]`` of drafting that many in the
    w-th way that there is.

    window: what one more window adds to a forward, beside its nodes. together: by way, what one more session adds to
    drafting, as a part of what the first costs. chunks: (nodes, seconds) of forwards of prefill, larger than all trees.
    """

    nodes: tuple[int, ...]
    verify: tuple[float, ...]
    draft: tuple[tuple[float, ...], ...]
    window: float = 0.0
    together: tuple[float, ...] = ()
    chunks: tuple[tuple[int, float], ...] = ()

    def verify_seconds(self, nodes: int) -> float:
        """Of one window."""
        sizes, seconds = self.nodes, self.verify
        if self.chunks and nodes > sizes[-1]:
            sizes = (sizes[-1], *(size for size, _ in self.chunks))
            seconds = (seconds[-1], *(chunk for _, chunk in self.chunks))
        if nodes > sizes[-1]:
            return seconds[-1] * nodes / sizes[-1]
        return _interpolated(sizes, seconds, nodes)

    def draft_seconds(self, way: int, nodes: int, sessions: int = 1) -> float:
        """Of so many sessions together."""
        more = self.together[way] if self.together else 1.0
        return _interpolated(self.nodes, self.draft[way], nodes) * (1.0 + more * (sessions - 1))


class Pace:
    """costs: as measured before the first step; None: nothing is known until there was one."""

    def __init__(self, costs: StepCosts | None = None) -> None:
        self.costs = costs
        self._steps = 0
        self._forward: dict[int, _Correction] = {}
        """By binary order of magnitude of a step's windows."""
        self._draft: dict[tuple[int, int], _Correction] = {}
        """By way of drafting, and binary order of magnitude of the sessions."""

    def observe(self, windows: int, nodes: int, seconds: float) -> None:
        """A step over so many windows, of so many nodes together, has taken so long, drafting apart."""
        self._steps += 1
        size = windows.bit_length()
        if size not in self._forward:
            self._forward[size] = _Correction(trusting=self.costs is not None)
        self._forward[size].learn(nodes, seconds / self._expected(windows, nodes), self._steps)

    def observe_draft(self, way: int, nodes: int, sessions: int, seconds: float) -> None:
        """Drafting so many nodes for each of so many sessions has taken so long."""
        expected = self.costs.draft_seconds(way, nodes, sessions) if self.costs else 0.0
        if expected > 0.0:
            correction = self._draft.setdefault((way, sessions.bit_length()), _Correction())
            correction.learn(nodes, seconds / expected, self._steps)

    def forward(self, windows: int, nodes: int) -> float:
        """Seconds of a step over so many windows and nodes, drafting apart; 0 where nothing is known."""
        if not self._forward:
            return self._expected(windows, nodes) if self.costs else 0.0
        size = windows.bit_length()
        correction = self._forward.get(size)
        if correction is None:
            correction = self._forward[min(self._forward, key=lambda seen: abs(seen - size))]
        return correction.at(nodes, self._steps) * self._expected(windows, nodes)

    def draft(self, way: int, nodes: int, sessions: int = 1) -> float:
        """Seconds of drafting so many nodes for each of so many sessions; 0 where nothing is known."""
        if self.costs is None or not sessions:
            return 0.0
        size = sessions.bit_length()
        correction = self._draft.get((way, size))
        if correction is None:
            seen = [known for drafted, known in self._draft if drafted == way]
            correction = self._draft[way, min(seen, key=lambda known: abs(known - size))] if seen else None
        ratio = correction.at(nodes, self._steps) if correction else 1.0
        return self.costs.draft_seconds(way, nodes, sessions) * ratio

    def prefill(self, tokens: int, chunk: int) -> float:
        """Seconds to prefill ``tokens`` of one session, at most ``chunk`` of them a step."""
        whole, rest = divmod(tokens, chunk)
        return whole * self.forward(1, chunk) + (self.forward(1, rest) if rest else 0.0)

    def _expected(self, windows: int, nodes: int) -> float:
        if self.costs is None:
            return float(nodes)
        return self.costs.verify_seconds(nodes) + self.costs.window * (windows - 1)


class _Seen(NamedTuple):
    """What steps of about a size took over what was expected: running means, and the last step that they are of."""

    nodes: float
    ratio: float
    step: int


class _Correction:
    """Seconds that steps took over what was expected, by their size. Between sizes it goes over smoothly: whoever
    compares sizes must not find a step where there is none.

    trusting: what was expected was measured; else the first step that is seen says all, and it does not age.
    """

    def __init__(self, *, trusting: bool = True) -> None:
        self._trusting = trusting
        self._seen: dict[int, _Seen] = {}
        """By binary order of magnitude."""
        self._counts: dict[int, tuple[float, float]] = {}
        """Likewise: (nodes, ratio), as it counts by now."""
        self._sizes: tuple[float, ...] = ()
        self._ratios: tuple[float, ...] = ()
        self._aged = 0

    def learn(self, nodes: int, ratio: float, step: int) -> None:
        if step - self._aged >= _FRESH:
            self._age(step)
        size = nodes.bit_length()
        known_nodes, known = self._counts.get(size, (float(nodes), 1.0 if self._trusting else ratio))
        ratio = min(max(ratio, known / _MOST), known * _MOST)
        mean = (_MEMORY * known_nodes + (1.0 - _MEMORY) * nodes, _MEMORY * known + (1.0 - _MEMORY) * ratio)
        self._seen[size] = _Seen(*mean, step)
        self._counts[size] = mean
        self._sizes, self._ratios = zip(*sorted(self._counts.values()), strict=True)

    def at(self, nodes: int, step: int) -> float:
        if step - self._aged >= _FRESH:
            self._age(step)
        return _interpolated(self._sizes, self._ratios, nodes)

    def _age(self, step: int) -> None:
        """A size that is not seen any more comes to be taken for like the others; all of them, for as expected."""
        self._aged = step
        if not self._trusting or not self._seen:
            return
        newest = max(seen.step for seen in self._seen.values())
        weights = {size: _left(newest - seen.step) for size, seen in self._seen.items()}
        mean = sum(weight * self._seen[size].ratio for size, weight in weights.items()) / sum(weights.values())
        left = _left(step - newest)
        for size, weight in weights.items():
            seen = self._seen[size]
            self._counts[size] = (seen.nodes, 1.0 + left * (mean - 1.0 + weight * (seen.ratio - mean)))
        self._sizes, self._ratios = zip(*sorted(self._counts.values()), strict=True)


def _left(steps: int) -> float:
    """What a figure still counts, so many steps after it was seen last."""
    return float(0.5 ** (max(0, steps - _FRESH) / _HALF_LIFE))


def _interpolated(sizes: Sequence[float], values: Sequence[float], size: float) -> float:
    """Linearly between the measured sizes; the nearest one's outside of them."""
    at = bisect_left(sizes, size)
    if at == 0 or at == len(sizes):
        return values[min(at, len(sizes) - 1)]
    low, high = sizes[at - 1], sizes[at]
    return values[at - 1] + (size - low) / (high - low) * (values[at] - values[at - 1])
