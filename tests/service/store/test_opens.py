"""Calls counted by several pods, against a real server: over minutes, and with clocks that are set."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import redis.asyncio

from service.store.opens import PERIOD_S, SharedOpens
from tests.service.store.valkey import Valkey, valkey

TENANT = "t"
START = 1000 * PERIOD_S
"""A minute begins."""


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    with valkey() as running:
        yield running


@pytest.fixture
async def client(server: Valkey) -> AsyncIterator[redis.asyncio.Redis]:
    async with redis.asyncio.Redis.from_url(server.url) as asking:
        await asking.flushall()
        yield asking


class Time:
    """Of all pods: how long they run, and what the clock on the wall says."""

    def __init__(self) -> None:
        self.runs = 0.0
        self.wall = START

    def passes(self, seconds: float) -> None:
        self.runs += seconds
        self.wall += seconds


class Counting:
    """The counters of one pod."""

    def __init__(self, client: redis.asyncio.Redis, time: Time) -> None:
        self._client = client
        self.opens = SharedOpens(lambda tenant: [tenant], lambda: time.runs, lambda: time.wall)

    async def beats(self, opened: int = 0) -> int:
        """So many calls are opened, and the pod beats. Returns how many it has heard of that count still."""
        for _ in range(opened):
            self.opens.opened(TENANT)
        pipeline = self._client.pipeline(transaction=False)
        self.opens.ask(pipeline)
        *_, before, now = await pipeline.execute()
        self.opens.answered((before, now))
        return self.heard

    def beat_fails(self) -> None:
        self.opens.ask(self._client.pipeline(transaction=False))

    @property
    def heard(self) -> int:
        return sum(number for _, number in self.opens.elsewhere(TENANT, float("-inf")))


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
async def two(client: redis.asyncio.Redis, time: Time) -> tuple[Counting, Counting]:
    """That know of each other what there is."""
    one, other = Counting(client, time), Counting(client, time)
    for pod in (one, other, one):
        assert await pod.beats() == 0
    return one, other


async def test_a_call_is_heard_of_once_though_its_minute_ends(time: Time, two: tuple[Counting, Counting]) -> None:
    one, other = two
    time.passes(PERIOD_S - 2.0)
    assert await other.beats() == await one.beats(5) == 0
    for heard in (5, 5, 5):  # in this minute, and in the next
        assert await other.beats() == heard
        time.passes(1.0)
    assert await one.beats(3) == 0
    assert await other.beats() == 8


async def test_what_is_opened_while_the_minute_ends_is_heard_of(time: Time, two: tuple[Counting, Counting]) -> None:
    """Some of it after this pod has read the counter for the last time in its minute, some in the next one."""
    one, other = two
    time.passes(PERIOD_S - 1.0)
    assert await other.beats() == await one.beats(4) == 0
    time.passes(2.0)
    assert await one.beats(3) == 0
    assert await other.beats(7) == 7
    assert await one.beats() == 7


async def test_what_was_opened_counts_for_a_period(time: Time, two: tuple[Counting, Counting]) -> None:
    one, other = two
    await one.beats(5)
    assert await other.beats() == 5
    time.passes(PERIOD_S / 2)
    await one.beats(2)
    assert await other.beats() == 7
    time.passes(PERIOD_S / 2 + 1.0)
    assert other.heard == await other.beats() == 2
    time.passes(PERIOD_S)
    assert other.heard == 0


async def test_the_counters_of_a_minute_go(
    time: Time, two: tuple[Counting, Counting], client: redis.asyncio.Redis
) -> None:
    for _ in range(3):
        await two[0].beats(1)
        time.passes(PERIOD_S)
    (*_, last) = keys = await client.keys("firstword:opens:*")
    assert len(keys) == 3 and 0 < await client.pttl(last) <= 3 * PERIOD_S * 1000


@pytest.mark.parametrize("back_s", [1.0, PERIOD_S, 2.5 * PERIOD_S, 10 * PERIOD_S])
async def test_a_clock_that_is_set_back_counts_nothing_twice(
    time: Time, two: tuple[Counting, Counting], client: redis.asyncio.Redis, back_s: float
) -> None:
    """Neither what this pod has opened itself, nor what it has heard of: by pods that were there, and by a new one."""
    one, other = two
    for _ in range(4):
        await one.beats(10)
        assert await other.beats(20) == 10
        assert await one.beats() == 20
        time.passes(PERIOD_S)
    pods = one, other, Counting(client, time)
    assert [await pod.beats() for pod in pods] == [0, 0, 0]
    time.wall -= back_s
    assert [await pod.beats() for pod in pods] == [0, 0, 0]
    await one.beats(1)
    assert [await pod.beats() for pod in pods] == [0, 1, 1]
    for _ in range(round(back_s // PERIOD_S) + 2):  # into the minutes that it has had before, and those behind them
        time.passes(PERIOD_S)
        assert [await pod.beats() for pod in pods] == [0, 0, 0]
    await one.beats(2)
    assert [await pod.beats() for pod in pods] == [0, 2, 2]


async def test_what_others_open_is_heard_of_while_a_clock_is_behind(time: Time, two: tuple[Counting, Counting]) -> None:
    """It reads the counters again that it had, and finds in them what is new."""
    one, other = two
    time.passes(PERIOD_S)
    await one.beats(1)
    assert await other.beats() == 1
    time.wall -= PERIOD_S
    assert await other.beats() == 1
    time.wall += PERIOD_S
    await one.beats(3)
    time.wall -= PERIOD_S
    assert await other.beats() == 1
    time.wall += PERIOD_S
    assert await other.beats() == 4


async def test_what_was_opened_while_a_pod_stood_still_for_long_is_not_heard_of(
    time: Time, two: tuple[Counting, Counting]
) -> None:
    """Most of it is older than what still counts, and nobody could tell how much."""
    one, other = two
    for _ in range(3):
        time.passes(PERIOD_S / 2 + 1.0)
        await one.beats(10)
    assert await other.beats() == 0
    await one.beats(1)
    assert await other.beats() == 1
    time.passes(PERIOD_S - 1.0)
    await one.beats(4)
    assert await other.beats() == 5


async def test_after_a_beat_that_failed_nothing_is_taken_for_new(time: Time, two: tuple[Counting, Counting]) -> None:
    one, other = two
    await one.beats(5)
    other.beat_fails()
    time.passes(PERIOD_S)
    assert await other.beats() == 0
    await one.beats(3)
    assert await other.beats() == 3
