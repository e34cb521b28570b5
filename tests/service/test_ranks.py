"""An engine of two ranks as the service sees it: whichever of them is lost or hangs, both are replaced."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.session import Finish
from service.config import EMBEDDED_MODEL, WatchdogConfig
from service.engine_client import EngineClient
from service.engine_process import EngineProcess, EngineStartError
from tests.e2e.server import children
from tests.service.test_engine_client import States, ask, opened, pid, whole
from tests.service.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="an engine's ranks are looked for in /proc")

CONFIG = EngineConfig(str(EMBEDDED_MODEL), f"eagle3:{EMBEDDED_MODEL / 'eagle3'}", ranks=2)
WATCHDOG = WatchdogConfig(silence_s=5.0, backoff_s=0.05, backoff_max_s=0.2)


def gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_a_lost_rank_costs_a_restart_and_no_word(blow: signal.Signals, caplog: pytest.LogCaptureFixture) -> None:
    engine = EngineClient(CONFIG, WATCHDOG, States())
    await engine.start()
    try:
        expected, leader = await whole(engine), pid(engine)
        (rank,) = children(leader)
        with opened(engine, "s"):
            reading = ask(engine, "s", 1, 0)
            await reading.begun()
            os.kill(rank, blow)
            assert (await reading.end()).finish == Finish.STOP_TOKEN.value
            assert reading.text == expected
        assert engine.restarts == 1 and pid(engine) != leader
        assert gone(leader)
        await until(lambda: gone(rank))
        cause = next(entry.cause for entry in caplog.records if entry.message.startswith("engine lost"))
        lost = "the process ended: rank 1 of 2 has ended by signal 9"
        assert cause == lost if blow is signal.SIGKILL else cause.startswith("no sign of life")
        (rank,) = children(pid(engine))
    finally:
        await engine.stop()
    await until(lambda: gone(rank))


async def test_what_a_leader_leaves_behind_is_ended_too(tmp_path: Path) -> None:
    """A rank that hangs sees nothing of its leader's end, and would keep its share of a GPU's memory. Here it is a
    process that ignores everything but the last signal: one that merely stands still is ended by Linux itself.
    """
    engine, noted = EngineProcess(lambda record: None), tmp_path / "pid"
    script = f"trap '' HUP TERM; sleep 600 & echo $! > {noted}"
    engine._process = await asyncio.create_subprocess_exec("sh", "-c", script, start_new_session=True)
    await engine._process.wait()
    left = int(noted.read_text())
    try:
        assert not gone(left)
        await engine.kill()
        await until(lambda: gone(left))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(left, signal.SIGKILL)


async def test_what_cannot_be_shared_is_said_by_name() -> None:
    engine = EngineClient(EngineConfig(str(EMBEDDED_MODEL), ranks=3), WATCHDOG)
    with pytest.raises(EngineStartError, match="ModelError: num_heads 4 cannot be shared among 3 ranks"):
        await engine.start()
    await engine.stop()
