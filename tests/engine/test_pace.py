"""How long prefill is expected to take: as measured at start, then as it was seen to."""

from __future__ import annotations

import pytest

from engine.pace import Pace
from engine.policy import StepCosts

COSTS = StepCosts((1, 10), (0.001, 0.004), (0.0, 0.0))


def test_before_the_first_step_it_is_what_was_measured() -> None:
    pace = Pace(COSTS)
    assert pace.seconds(10, chunk=64) == pytest.approx(0.004)
    assert pace.seconds(25, chunk=10) == pytest.approx(2 * 0.004 + COSTS.verify_seconds(5))
    assert Pace().seconds(10, chunk=64) == 0.0


def test_steps_correct_it_for_sizes_like_theirs() -> None:
    pace = Pace(COSTS)
    for _ in range(50):
        pace.observe(10, 0.012)
    assert pace.seconds(10, chunk=64) == pytest.approx(0.012)
    assert pace.seconds(9, chunk=64) == pytest.approx(3 * COSTS.verify_seconds(9))


def test_without_costs_it_is_learned() -> None:
    pace = Pace()
    pace.observe(64, 0.5)
    assert pace.seconds(128, chunk=64) == pytest.approx(1.0)
