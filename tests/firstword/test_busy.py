"""A service without room, over a real socket: what a client is told, and what it can do about it."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest

from firstword import CallFailed, Client, Message, ServiceBusy
from service.admission import LATEST_S, SOONEST_S
from tests.e2e.server import ServiceProcess, example_calls

SYSTEM, _, LINES = example_calls(1)[0]
LONG = [Message("user", "We would like to come on Tuesday, and on Wednesday as well. " * 20)]


async def is_refused(client: Client, reason: str) -> None:
    """A call does not begin, for this reason, and is told when to ask again."""
    with pytest.raises(ServiceBusy) as busy:
        async with client.call(system=SYSTEM):
            pass
    assert (busy.value.code, busy.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
    assert busy.value.retry_after_s is not None
    assert SOONEST_S <= busy.value.retry_after_s <= LATEST_S


async def test_a_call_that_there_is_no_room_for_is_told_when_to_ask_again_and_may_wait_for_it() -> None:
    """1,024 positions: one call, its reserve of 512 and little more. Then the one place that there is."""
    settings = {
        "FIRSTWORD_ENGINE__POOL_TOKENS": "1024",
        "FIRSTWORD_ENGINE__HOST_CACHE_BYTES": "0",
        "FIRSTWORD_ADMISSION__MAX_CALLS": "2",
    }
    with ServiceProcess(settings) as process:
        async with Client(process.address) as client:
            async with client.call(system=SYSTEM, items=LONG) as first:
                await is_refused(client, "PAGES_COMMITTED")
                started = time.monotonic()
                with pytest.raises(ServiceBusy):  # which would have to wait longer than it will
                    async with client.call(system=SYSTEM, patience_s=SOONEST_S / 2):
                        pass
                waiting = client.call(system=SYSTEM, patience_s=90)
                entering = asyncio.create_task(waiting.__aenter__())
                turn = await first.final(LINES[0])  # whoever waits takes nothing from those who are there
                assert (await turn.run()).text
                assert not entering.done()
            assert await entering is waiting
            assert time.monotonic() - started >= SOONEST_S
            assert await (await waiting.final(LINES[0])).run()
            await waiting.close()

            with pytest.raises(CallFailed) as never:
                async with client.call(system=SYSTEM, items=LONG * 2, patience_s=90):
                    pass
            assert not isinstance(never.value, ServiceBusy)  # more than there will ever be
            assert (never.value.reason, never.value.retry_after_s) == ("PAGES_COMMITTED", None)


async def test_a_call_more_than_the_engine_can_speak_to_is_refused_before_anybody_falls_silent() -> None:
    """Spoken so fast that two voices are more than the engine can go on with: the second call hears it at once, the
    first one is none the worse for it, and when it is over there is time for another.
    """
    settings = {"FIRSTWORD_ENGINE__SPEAKING_RATE": "2000", "FIRSTWORD_ADMISSION__MAX_SPEECH_LOAD": "0.03"}
    with ServiceProcess(settings) as process:
        async with Client(process.address) as client:
            async with client.call(system=SYSTEM) as first:
                for line in LINES[:4]:  # long enough for the engine to say so more than once
                    assert (await (await first.final(line)).run()).text
                await is_refused(client, "ENGINE_SATURATED")
                assert (await (await first.final(LINES[1])).run()).text
            async with client.call(system=SYSTEM, patience_s=90) as second:
                assert (await (await second.final(LINES[0])).run()).text
