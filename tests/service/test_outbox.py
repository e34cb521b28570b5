"""What a call has said and its client has not read: order, bounds, and who is told. On a real event loop."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from service.config import ServerConfig
from service.outbox import Outbox
from service.problems import Problem, Reason
from service.server_events import Draining, Envelope

CONFIG = ServerConfig(hold_at_events=8, max_queued_events=20)


def envelope(seq: int) -> Envelope:
    return Envelope(1, seq, 0, 0, Draining(seq))


async def until_quiet() -> None:
    """Let every task do what it can."""
    for _ in range(100):
        await asyncio.sleep(0)


class Stream:
    """A stream that takes so many events as it is told to."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self._room = asyncio.Semaphore(0)

    async def write(self, envelope: Envelope) -> None:
        await self._room.acquire()
        self.taken.append(envelope.seq)

    async def take(self, events: int) -> None:
        for _ in range(events):
            self._room.release()
        await until_quiet()


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 6)), max_size=40))
def test_events_keep_their_order_and_the_call_is_told_of_each_crossing_once(moves: list[tuple[bool, int]]) -> None:
    """Against a model that only counts. A client that never falls out of bounds loses nothing."""

    async def play() -> None:
        told: list[bool] = []
        outbox, stream = Outbox(CONFIG, told.append), Stream()
        writing = asyncio.create_task(outbox.drain(stream.write))
        await until_quiet()
        put = 0
        for puts, count in moves:
            if puts and put + count - len(stream.taken) <= 20:
                for _ in range(count):
                    put += 1
                    outbox.put(envelope(put))
            elif not puts:
                await stream.take(min(count, put - len(stream.taken)))
            await until_quiet()
            behind = put - len(stream.taken)
            assert told == [index % 2 == 0 for index in range(len(told))]  # True, False, True, ...
            held = bool(told) and told[-1]
            assert held or behind <= 8 + 1  # one more is with the stream already
            assert not held or behind > 2
        outbox.end(None)
        await stream.take(put)
        await writing
        assert stream.taken == list(range(1, put + 1))
        assert not outbox.given_up.is_set() and (not told or not told[-1])

    asyncio.run(play())


async def test_a_client_too_far_behind_is_given_up() -> None:
    outbox = Outbox(CONFIG, lambda slow: None)
    for seq in range(CONFIG.max_queued_events):
        outbox.put(envelope(seq))
    assert not outbox.given_up.is_set()
    outbox.put(envelope(99))
    assert outbox.given_up.is_set()


async def test_a_client_that_takes_nothing_for_too_long_is_given_up_and_one_that_is_told_nothing_is_not() -> None:
    config = ServerConfig(unread_s=0.05)
    stuck, quiet, stream = Outbox(config, lambda slow: None), Outbox(config, lambda slow: None), Stream()
    stuck.put(envelope(1))
    silent = asyncio.create_task(quiet.drain(stream.write))
    await stuck.drain(stream.write)
    assert stuck.given_up.is_set() and stream.taken == []
    await asyncio.sleep(0.1)
    assert not quiet.given_up.is_set() and not silent.done()
    problem = Problem(Reason.DRAINING, "over")
    quiet.end(problem)
    await silent
    assert quiet.problem is problem
