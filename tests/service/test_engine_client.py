"""A real engine process on the embedded model: killed, hung and never started, and who notices."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from engine import records
from engine.config import EngineConfig
from engine.sampling import Sampling
from engine.session import Finish
from service.config import EMBEDDED_MODEL, WatchdogConfig
from service.engine_client import EngineClient, EngineState
from service.engine_process import EngineStartError
from tests.service.calls import LINES, SYSTEM, chat

pytestmark = pytest.mark.asyncio(loop_scope="module")

WATCHDOG = WatchdogConfig(silence_s=2.0, backoff_s=0.05, backoff_max_s=0.2)
SAMPLING = Sampling(temperature=1.0, seed=11)


class Reading:
    """What comes of one reply."""

    def __init__(self) -> None:
        self.text = ""
        self.ended: asyncio.Future[records.Ended | records.Failed] = asyncio.get_running_loop().create_future()
        self._grown = asyncio.Event()

    def __call__(self, record: records.Progress | records.Ended | records.Failed) -> None:
        assert not self.ended.done()
        if isinstance(record, records.Progress):
            self.text += record.text
            self._grown.set()
        else:
            self.ended.set_result(record)

    async def begun(self) -> None:
        await self._grown.wait()

    async def end(self) -> records.Ended:
        ended = await self.ended
        assert isinstance(ended, records.Ended), ended
        return ended


class States:
    """The states that a client went through, each of which can be waited for."""

    def __init__(self) -> None:
        self.seen: list[EngineState] = []
        self._news = asyncio.Event()

    def __call__(self, state: EngineState) -> None:
        self.seen.append(state)
        self._news.set()

    async def reach(self, *states: EngineState) -> None:
        """Wait for the states, in this order, from now on."""
        start = len(self.seen)
        for state in states:
            while state not in self.seen[start:]:
                self._news.clear()
                await self._news.wait()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def states() -> States:
    return States()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def engine(states: States) -> AsyncIterator[EngineClient]:
    client = EngineClient(EngineConfig(str(EMBEDDED_MODEL)), WATCHDOG, states)
    ready = await client.start()
    assert (ready.model, client.state) == ("receptionist", EngineState.SERVING)
    with pytest.raises(RuntimeError):
        await client.start()
    yield client
    await client.stop()
    await client.stop()
    assert states.seen[-1] is EngineState.STOPPED


def pid(engine: EngineClient) -> int:
    assert engine._process is not None
    return engine._process.pid


def no_failure(record: records.Failed) -> None:
    raise AssertionError(record)


def prompt(line: str) -> tuple[int, ...]:
    head = chat().begin([{"role": "system", "content": SYSTEM}])
    return (*head.ids, *chat().user(line, first=head.first_user), *chat().prompt)


def ask(engine: EngineClient, session: str, turn: int, keep: int, line: str = LINES[0]) -> Reading:
    reading = Reading()
    stop = chat().codec.stop_tokens
    command = records.Submit(session, turn, keep, prompt(line)[keep:], SAMPLING, 60, stop_tokens=stop)
    engine.submit(command, reading)
    return reading


@contextlib.contextmanager
def opened(engine: EngineClient, session: str) -> Iterator[None]:
    engine.open(session, (), 1, no_failure)
    with pytest.raises(ValueError, match="open already"):
        engine.open(session, (), 1, no_failure)
    yield
    engine.close(session)
    engine.close(session)


async def whole(engine: EngineClient) -> str:
    """The reply as it is when nothing goes wrong."""
    with opened(engine, "undisturbed"):
        reading = ask(engine, "undisturbed", 1, 0)
        assert (await reading.end()).finish == Finish.STOP_TOKEN.value
    assert len(reading.text) > 20
    return reading.text


async def test_a_killed_engine_is_replaced_and_nobody_who_reads_a_reply_notices(
    engine: EngineClient, states: States
) -> None:
    """One reply is resumed; one is overtaken while nobody is there to hear it; one has nobody who wants it any more."""
    expected, restarts, dead = await whole(engine), engine.restarts, pid(engine)
    with opened(engine, "resumed"), opened(engine, "overtaken"), opened(engine, "gone"):
        resumed = ask(engine, "resumed", 1, 0)
        first = ask(engine, "overtaken", 1, 0, LINES[1])
        gone = ask(engine, "gone", 1, 0)
        await asyncio.gather(resumed.begun(), first.begun())
        os.kill(dead, signal.SIGKILL)
        await states.reach(EngineState.RESTARTING)
        second = ask(engine, "overtaken", 2, 0)
        engine.sync("overtaken", len(prompt(LINES[0])), ())
        third = ask(engine, "overtaken", 3, 0)
        engine.close("gone")
        assert [(await reading.end()).finish for reading in (first, second)] == [Finish.CANCELLED.value] * 2
        for reading in (resumed, third):
            ended = await reading.end()
            assert ended.finish == Finish.STOP_TOKEN.value
            assert ended.log_tokens == len(prompt(LINES[0])) + ended.reply_tokens
            assert reading.text == expected
        assert second.text == ""
        assert not gone.ended.done()
    assert (engine.state, engine.restarts) == (EngineState.SERVING, restarts + 1)
    assert pid(engine) != dead


async def test_a_hung_engine_is_killed_and_its_reply_goes_on(engine: EngineClient) -> None:
    expected, restarts, hung = await whole(engine), engine.restarts, pid(engine)
    with opened(engine, "s"):
        reading = ask(engine, "s", 1, 0)
        await reading.begun()
        os.kill(hung, signal.SIGSTOP)
        assert (await reading.end()).finish == Finish.STOP_TOKEN.value
        assert reading.text == expected
    assert engine.restarts == restarts + 1
    with pytest.raises(ProcessLookupError):
        os.kill(hung, 0)


async def test_a_session_hears_nothing_of_one_that_had_its_name(engine: EngineClient) -> None:
    """As where a call is taken over by the server that still holds it: the same reply goes on under the same number."""
    expected = await whole(engine)
    with opened(engine, "s"):
        first = ask(engine, "s", 1, 0)
        await first.begun()
        time.sleep(0.3)  # noqa: ASYNC251 - what the engine says meanwhile is unread when the name is another's
    with opened(engine, "s"):
        again = ask(engine, "s", 1, 0)
        assert (await again.end()).finish == Finish.STOP_TOKEN.value
        assert again.text == expected
        assert not first.ended.done()


async def test_keeping_more_than_there_is_is_refused_at_once(engine: EngineClient) -> None:
    with opened(engine, "s"), pytest.raises(ValueError, match="not the 5 to keep"):
        engine.sync("s", 5, ())


async def test_an_engine_that_cannot_start_says_why_in_its_own_words(tmp_path: Path) -> None:
    engine = EngineClient(EngineConfig(str(tmp_path / "nothing-here")), WATCHDOG)
    with pytest.raises(EngineStartError, match=r"ModelError: .*nothing-here"):
        await engine.start()
    assert engine.state is EngineState.STARTING
    await engine.stop()
