"""What the store and telemetry add: that the figures are those of the turns, and that the controls find what they are
there for.
"""

import random
import re
from itertools import permutations

import pytest

from bench.overhead import BARE, FULL, OTHER, Round, left_over, page


def rounds(count, *, added=0.0, other=0.0, left=0.0):
    """Rounds of turns of 10 to 15 ms with a noise of 200 µs. added: by store and telemetry; other: at the second server
    with neither; left: of the server with everything, for whoever comes next.
    """
    rng, made = random.Random(0), []
    for _ in range(count):
        turn, order, us = rng.uniform(10_000, 15_000), rng.sample(range(3), 3), [0.0] * 3
        for before, at in zip([None, *order], order, strict=False):
            own = {FULL: added, BARE: 0.0, OTHER: other}[at]
            us[at] = turn + own + rng.gauss(0, 200) + (left if before == FULL else 0.0)
        made.append(Round(tuple(order), tuple(us)))
    return made


def intervals(made):
    """(median, low, high) of the difference, of the servers' control and of the one for what is left over."""
    found = re.findall(r"(-?\d+) \[(-?\d+), (-?\d+)\]", page(made))
    return [tuple(map(int, one)) for one in found]


def holds(interval, value):
    median, low, high = interval
    return low <= value <= high and low <= median <= high and high - low < 100


@pytest.mark.parametrize(
    ("added", "other", "left"), [(0.0, 0.0, 0.0), (300.0, 0.0, 0.0), (0.0, -250.0, 0.0), (0.0, 0.0, 400.0)]
)
def test_each_figure_finds_its_own(added, other, left):
    difference, servers, after = intervals(rounds(2000, added=added, other=other, left=left))
    assert holds(servers, -other)
    assert holds(after, left)
    if left:
        assert difference[2] < 0, "the server with everything looks faster for what it left to the others"
    else:
        assert holds(difference, added)


def test_the_turn_after_the_one_with_everything_is_compared_with_the_next():
    us = {FULL: 1.0, BARE: 20.0, OTHER: 300.0}
    made = [Round(order, tuple(us[at] for at in (FULL, BARE, OTHER))) for order in permutations((FULL, BARE, OTHER))]
    assert left_over(made) == [20.0 - 300.0, 300.0 - 20.0]
