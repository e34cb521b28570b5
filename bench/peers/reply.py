"""What every peer returns."""

from __future__ import annotations

from typing import NamedTuple


class Reply(NamedTuple):
    """One greedy reply: its ids, the seconds of its first step, the tokens of that step, the seconds from there on.

    The first step reads the whole prompt; peers keep nothing between replies.
    """

    tokens: list[int]
    first_seconds: float
    first_tokens: int
    seconds: float
