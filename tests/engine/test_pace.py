"""How long steps are expected to take: as measured at start, then as they were seen to."""

from __future__ import annotations

import pytest

from engine.pace import Pace, StepCosts

COSTS = StepCosts((1, 10), (0.001, 0.004), ((0.0, 0.002), (0.0, 0.0005)), window=0.0002)


def test_before_the_first_step_it_is_what_was_measured() -> None:
    pace = Pace(COSTS)
    assert pace.prefill(10, chunk=64) == pytest.approx(0.004)
    assert pace.prefill(25, chunk=10) == pytest.approx(2 * 0.004 + COSTS.verify_seconds(5))
    assert pace.forward(3, 10) == pytest.approx(0.004 + 2 * 0.0002)
    assert [pace.draft(way, 10) for way in (0, 1)] == [0.002, 0.0005]
    assert Pace().prefill(10, chunk=64) == Pace().forward(2, 8) == Pace().draft(0, 4) == 0.0


def test_costs_between_measured_sizes_are_interpolated() -> None:
    measured = StepCosts((1, 4, 8), (1.0, 2.0, 4.0), ((0.0, 1.0, 3.0),))
    assert [measured.verify_seconds(n) for n in (1, 4, 6, 8, 16)] == [1.0, 2.0, 3.0, 4.0, 8.0]
    assert [measured.draft_seconds(0, n) for n in (1, 4, 6, 16)] == [0.0, 1.0, 2.0, 3.0]


def test_steps_correct_it_for_sizes_like_theirs() -> None:
    pace = Pace(COSTS)
    for _ in range(50):
        pace.observe(1, 10, 0.012)
        pace.observe(1, 100, COSTS.verify_seconds(100))
    assert pace.forward(1, 10) == pytest.approx(0.012, rel=1e-3)
    assert pace.forward(1, 100) == pytest.approx(COSTS.verify_seconds(100))
    ratios = [pace.forward(1, n) / COSTS.verify_seconds(n) for n in (9, 10, 40, 70, 100, 300)]
    assert ratios == sorted(ratios, reverse=True)
    assert (ratios[0], ratios[-1]) == (pytest.approx(3.0, rel=1e-3), pytest.approx(1.0))
    assert pace.forward(4, 10) == pytest.approx(3 * (0.004 + 3 * 0.0002), rel=1e-3), "until steps of four are seen"


def test_ways_of_drafting_are_corrected_apart() -> None:
    pace = Pace(COSTS)
    for _ in range(50):
        pace.observe_draft(0, 10, 1, 0.004)
        pace.observe_draft(0, 10, 5, 0.008)
    assert (pace.draft(0, 10), pace.draft(1, 10)) == (pytest.approx(0.004, rel=1e-3), 0.0005)
    assert (pace.draft(0, 10, 5), pace.draft(1, 10, 5)) == (pytest.approx(0.008, rel=1e-3), 0.0025)
    assert pace.draft(0, 10, 3) == pytest.approx(12 * 0.001, rel=1e-3), "as of the nearest number of sessions"


def test_without_costs_it_is_learned() -> None:
    pace = Pace()
    pace.observe(1, 64, 0.5)
    assert pace.prefill(128, chunk=64) == pytest.approx(1.0)


def seen(pace: Pace, size: int, steps: int) -> None:
    """Steps of nine windows and so many nodes that take what was measured, with some drafting of four nodes in each."""
    for _ in range(steps):
        pace.observe(9, size, COSTS.verify_seconds(size) + 8 * COSTS.window)
        pace.observe_draft(0, 4, 9, COSTS.draft_seconds(0, 4, 9))


def test_what_was_slow_once_is_tried_again_though_other_sizes_are_seen_in_every_step() -> None:
    pace = Pace(COSTS)
    seen(pace, 9, 1)
    seen(pace, 264, 1)
    as_measured = pace.forward(9, 264), pace.draft(0, 40, 9)
    for _ in range(5):
        pace.observe(9, 264, 10 * as_measured[0])
        pace.observe_draft(0, 40, 9, 10 * as_measured[1])
    assert pace.forward(9, 264) > 5 * as_measured[0] and pace.draft(0, 40, 9) > 5 * as_measured[1]
    seen(pace, 9, 600)
    assert (aged := pace.forward(9, 264)) < 5 * as_measured[0] and pace.draft(0, 40, 9) < 5 * as_measured[1]
    seen(pace, 264, 1)
    assert pace.forward(9, 264) < aged, "and a step that is fast says so at once"
    seen(pace, 9, 5000)
    assert pace.forward(9, 264) == pytest.approx(as_measured[0], rel=0.01)
    assert pace.draft(0, 40, 9) == pytest.approx(as_measured[1], rel=0.01)


def test_what_is_seen_now_and_then_is_known_as_what_is_seen_always() -> None:
    pace = Pace(COSTS)
    for _ in range(30):
        seen(pace, 9, 60)
        pace.observe(9, 264, 2 * (COSTS.verify_seconds(264) + 8 * COSTS.window))
    assert pace.forward(9, 264) == pytest.approx(2 * (COSTS.verify_seconds(264) + 8 * COSTS.window), rel=0.01)


def test_a_size_not_seen_for_long_is_taken_for_as_slow_as_the_others_have_become() -> None:
    pace = Pace(COSTS)
    seen(pace, 264, 1)
    for _ in range(5000):
        pace.observe(9, 9, 3 * (COSTS.verify_seconds(9) + 8 * COSTS.window))
    assert pace.forward(9, 264) == pytest.approx(3 * (COSTS.verify_seconds(264) + 8 * COSTS.window), rel=0.01)
