"""A call that is served by a target shared by two processes says what one process says, also when one of them dies."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

import pytest

from firstword import Client, EndReason, TextDelta
from tests.e2e.server import MODEL, ServiceProcess, children, example_calls

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="an engine's ranks are looked for in /proc")

SYSTEM, _, LINES = example_calls(1)[0]
SETTINGS = {"FIRSTWORD_ENGINE__DRAFTER": f"eagle3:{MODEL / 'eagle3'}", "FIRSTWORD_ENGINE__DTYPE": "float64"}


async def conversation(server: ServiceProcess, after_first_word: Callable[[], None] = lambda: None) -> list[str]:
    """A reply that is cut while it is being made, and two that are not; drafted, the last one sampled."""
    said = []
    async with Client(server.address) as client, client.call(system=SYSTEM, seed=3, temperature=0.0) as call:
        turn = await call.final(LINES[0])
        async for event in turn:
            if isinstance(event, TextDelta) and len(turn.text) >= 12:
                break
        said.append((await call.interrupt(heard_code_points=12)).text)
        turn = await call.final(LINES[1])
        async for event in turn:
            if isinstance(event, TextDelta) and event.text:
                break
        after_first_word()
        async for _event in turn:
            pass
        said.append(turn.text)
        assert turn.report is not None and turn.report.reason is EndReason.COMPLETED
    async with Client(server.address) as client, client.call(system=SYSTEM, seed=3, temperature=0.9) as call:
        said.append((await call.ask(LINES[0])).text)
    return said


async def test_a_call_hears_from_two_ranks_what_it_hears_from_one() -> None:
    with ServiceProcess(SETTINGS) as alone:
        assert children(alone.engine_pid) == []
        expected = await conversation(alone)
    with ServiceProcess({**SETTINGS, "FIRSTWORD_ENGINE__RANKS": "2"}) as shared:
        assert await conversation(shared) == expected
        (rank,) = children(shared.engine_pid)

        def kill() -> None:
            os.kill(rank, signal.SIGKILL)

        assert await conversation(shared, kill) == expected
        lost = shared.wait_for("engine lost, restarting")
        assert lost["cause"] == "the process ended: rank 1 of 2 has ended by signal 9"
        assert rank not in children(shared.engine_pid)
    assert all(expected)
