"""Every way in which a call can end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import pytest

from firstword import CLOSED, Call, CallError, CallFailed, Client, EndReason, Notice, ServiceBusy, Turn
from tests.e2e.server import ServiceProcess
from tests.firstword.receptionist import LINES, SYSTEM

PROMPTLY_S = 10.0
LONG: dict[str, Any] = {"system": SYSTEM, "max_tokens": 1000, "temperature": 1.5, "stop": ["\0"]}


async def test_where_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with asyncio.timeout(PROMPTLY_S), Client(f"127.0.0.1:{port}") as client:
        with pytest.raises(CallFailed) as raised:
            async with client.call():
                pass
    assert (raised.value.code, raised.value.reason) == (grpc.StatusCode.UNAVAILABLE, "")


async def _finals(call: Call) -> None:
    while True:
        await call.ask(LINES[0])


async def _interrupts(call: Call) -> None:
    while True:
        await call.interrupt()


async def _says(call: Call) -> None:
    while True:
        await call.say("One moment, please.")


async def _partials(call: Call) -> None:
    while True:
        await call.partial("could you")
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("busy", [_finals, _interrupts, _says, _partials])
async def test_closing_ends_whatever_another_task_does(
    service: ServiceProcess, busy: Callable[[Call], Coroutine[Any, Any, None]]
) -> None:
    async with asyncio.timeout(PROMPTLY_S), Client(service.address) as client:
        async with client.call(max_tokens=100) as call:
            await call.say("Hello.")
            task = asyncio.create_task(busy(call))
            await asyncio.sleep(0.05)
        with pytest.raises(CallFailed) as raised:
            await task
    assert raised.value.reason == CLOSED
    assert call.failure is not None
    with pytest.raises(CallFailed):
        await call.partial("could you")
    await call.close()


async def test_closing_in_the_middle_of_a_reply(service: ServiceProcess) -> None:
    async with asyncio.timeout(PROMPTLY_S), Client(service.address) as client:
        async with client.call(**LONG, session_id="mid reply") as call:
            turn = await call.final(LINES[0])
            await anext(turn)
            await call.close()
            with pytest.raises(CallFailed, match=CLOSED):
                await turn.run()
        assert call.failure is not None
        assert call.failure.code is grpc.StatusCode.OK
        async with client.call(session_id="mid reply"):
            pass


async def _name_is_free(client: Client, name: str) -> bool:
    """Whether the service lets go of a call in reasonable time."""
    until = time.monotonic() + PROMPTLY_S
    while time.monotonic() < until:
        try:
            async with client.call(session_id=name):
                return True
        except CallFailed as failure:
            assert failure.reason == "SESSION_EXISTS"
            await asyncio.sleep(0.05)
    return False


async def test_cancelling_the_task_that_holds_a_call(service: ServiceProcess) -> None:
    begun: asyncio.Queue[Turn] = asyncio.Queue()

    async def hold(client: Client) -> None:
        async with client.call(**LONG, session_id="cancelled") as call:
            turn = await call.final(LINES[0])
            await anext(turn)
            begun.put_nowait(turn)
            await asyncio.Event().wait()

    async with Client(service.address) as client:
        task = asyncio.create_task(hold(client))
        turn = await begun.get()
        task.cancel()
        async with asyncio.timeout(1):
            with pytest.raises(asyncio.CancelledError):
                await task
        with pytest.raises(CallFailed, match=CLOSED):
            await turn.run()
        assert await _name_is_free(client, "cancelled")


async def test_an_error_inside_drops_the_call(service: ServiceProcess) -> None:
    async with Client(service.address) as client:
        with pytest.raises(ZeroDivisionError):
            async with client.call(**LONG, session_id="dropped") as call:
                await call.final(LINES[0])
                raise ZeroDivisionError
        assert call.failure is not None
        assert await _name_is_free(client, "dropped")


async def test_a_cancelled_wait_breaks_nothing(service: ServiceProcess) -> None:
    """Neither a wait for the next event nor one for an answer takes anything from the call."""
    async with Client(service.address) as client, client.call(system=SYSTEM, temperature=0.0, max_tokens=40) as call:
        expected = (await call.ask(LINES[0])).text
        await call.interrupt(heard_code_points=0)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(call.interrupt(heard_code_points=0), 0)
        assert (await call.interrupt(heard_code_points=len(expected))).text == expected
    async with Client(service.address) as client, client.call(system=SYSTEM, temperature=0.0, max_tokens=40) as call:
        turn = await call.final(LINES[0])
        while not turn.over:
            try:
                async with asyncio.timeout(0.001):
                    await anext(turn)
            except (TimeoutError, StopAsyncIteration):
                pass
        assert turn.text == expected


async def test_closing_the_client_breaks_its_calls(service: ServiceProcess) -> None:
    async with asyncio.timeout(PROMPTLY_S), Client(service.address) as client, client.call(**LONG) as call:
        turn = await call.final(LINES[0])
        await anext(turn)
        await client.close()
        with pytest.raises(CallFailed):
            await turn.run()


async def test_a_service_that_is_full_then_drains_then_dies() -> None:
    """One process for three ends: no call more, a notice, and kill -9 in the middle of a turn. Silence is none."""
    told: list[Notice | CallError] = []
    environment = {
        "FIRSTWORD_ADMISSION__MAX_CALLS": "1",
        "FIRSTWORD_SERVER__STOP_GRACE_S": "60",
        "FIRSTWORD_SERVER__MIN_PING_INTERVAL_MS": "100",
    }
    often = [("grpc.keepalive_time_ms", 500)]
    with ServiceProcess(environment) as process:
        once = Client(process.address, options=often, resume_timeout_s=0.0)
        async with once as client, client.call(**LONG, on_notice=told.append) as call:
            await asyncio.sleep(4)
            assert call.failure is None
            with pytest.raises(ServiceBusy) as full:
                async with client.call():
                    pass
            assert (full.value.code, full.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
            assert full.value.retry_after_s is not None and full.value.retry_after_s > 0

            process.process.send_signal(signal.SIGTERM)
            turn = await call.final(LINES[0])
            async for event in turn:
                if isinstance(event, Notice):
                    break
            assert isinstance(event, Notice)
            assert (event.kind, event.details["grace_ms"]) == ("draining", 55_000)

            os.kill(process.process.pid, signal.SIGKILL)
            interrupting = asyncio.create_task(call.interrupt())
            async with asyncio.timeout(PROMPTLY_S):
                for waiting in (turn.run(), interrupting):
                    with pytest.raises(CallFailed) as died:
                        await waiting
                    assert died.value.code is grpc.StatusCode.UNAVAILABLE
            with pytest.raises(CallFailed):
                await call.final(LINES[1])
        assert turn.report is None
        assert told == [event]


async def test_the_end_of_a_turn_that_was_reached_stays(service: ServiceProcess) -> None:
    async with Client(service.address) as client:
        async with client.call(max_tokens=4) as call:
            turn = await call.ask("hello")
        assert turn.report is not None
        assert turn.report.reason in (EndReason.LENGTH, EndReason.COMPLETED)
        assert await turn.run() is turn
