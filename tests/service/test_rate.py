"""How often something may happen: against a bucket that is counted by hand, in exact numbers."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from service.rate import TokenBucket


class Counted:
    """The textbook's: so many tokens, of which each second brings some, and never more than the burst."""

    def __init__(self, rate: int, burst: int) -> None:
        self.rate, self.burst = Fraction(rate), Fraction(burst)
        self.tokens, self.at = self.burst, Fraction(0)

    def take(self, now: Fraction) -> Fraction:
        self.tokens, self.at = min(self.burst, self.tokens + (now - self.at) * self.rate), now
        if self.tokens >= 1:
            self.tokens -= 1
            return Fraction(0)
        return (1 - self.tokens) / self.rate


STEPS = st.lists(st.integers(0, 64), max_size=200)
"""Sixteenths of a second between one and the next: numbers that floats hold exactly."""


@given(STEPS, st.sampled_from([1, 2, 4, 8, 16]), st.integers(1, 6))
def test_it_says_what_the_textbooks_says(steps: list[int], rate: int, burst: int) -> None:
    bucket, counted, now = TokenBucket(rate, burst), Counted(rate, burst), Fraction(0)
    for step in steps:
        now += Fraction(step, 16)
        full = counted.tokens + (now - counted.at) * counted.rate >= counted.burst
        assert bucket.full(float(now)) == full
        assert bucket.take(float(now)) == float(counted.take(now))


@given(st.floats(0.1, 1000), st.integers(1, 50), st.floats(0, 1e6))
def test_after_the_wait_that_it_tells_it_may_happen(rate: float, burst: int, now: float) -> None:
    bucket = TokenBucket(rate, burst)
    assert [bucket.take(now) for _ in range(burst)] == [0.0] * burst
    wait = bucket.take(now)
    assert 0 < wait <= 1 / rate * 1.001
    assert bucket.take(now + wait * 1.001 + 1e-6) == 0.0
