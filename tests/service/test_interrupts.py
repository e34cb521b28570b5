"""A slice of what ``python -m tests.equality --only interrupts`` does with every token of many replies."""

from __future__ import annotations

import pytest

from tests.service.interrupts import interrupted_at, measures, openings


@pytest.mark.parametrize("measure", list(measures("", 0)))
def test_whatever_is_heard_of_a_reply_the_call_goes_on_from_there(measure: str) -> None:
    opening, line = next(openings(1))
    for tokens in (1, 2, 3, 6, 7, 11):
        assert interrupted_at(opening, line, tokens, measure)
