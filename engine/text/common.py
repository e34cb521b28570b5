"""What two texts or token logs have in common. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Sequence


def common_length(one: Sequence[object], other: Sequence[object]) -> int:
    """How many elements both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def common_prefix(one: str, other: str) -> str:
    """What both begin with."""
    return one[: common_length(one, other)]
