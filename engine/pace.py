"""How long prefill takes on this machine: measured at start, and corrected by every step since.

Knows sizes and seconds; no session, no queue and no deadline.
"""

from __future__ import annotations

from engine.policy import StepCosts

_MEMORY = 0.8
"""Share of what was known that one more step leaves: machines change their pace within a few steps."""


class Pace:
    """costs: as measured before the first step; None: nothing is known until there was one."""

    def __init__(self, costs: StepCosts | None = None) -> None:
        self._costs = costs
        self._scale: dict[int, float] = {}
        """By binary order of magnitude of a step's tokens: seconds that one took, over what was expected."""

    def observe(self, tokens: int, seconds: float) -> None:
        """A step that prefilled so many tokens has taken so long."""
        size = tokens.bit_length()
        measured = seconds / self._expected(tokens)
        self._scale[size] = _MEMORY * self._scale.get(size, measured) + (1.0 - _MEMORY) * measured

    def seconds(self, tokens: int, chunk: int) -> float:
        """Time to prefill ``tokens``, at most ``chunk`` of them a step."""
        whole, rest = divmod(tokens, chunk)
        return whole * self._step(chunk) + (self._step(rest) if rest else 0.0)

    def _step(self, tokens: int) -> float:
        if not self._scale:
            return self._expected(tokens) if self._costs else 0.0
        size = tokens.bit_length()
        nearest = min(self._scale, key=lambda seen: abs(seen - size))
        return self._scale[nearest] * self._expected(tokens)

    def _expected(self, tokens: int) -> float:
        return self._costs.verify_seconds(tokens) if self._costs else float(tokens)
