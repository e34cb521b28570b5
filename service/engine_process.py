"""One engine process, from its start on a model to its death: what can be sent to it, and how its death is noticed.

Knows records only as what goes to and fro; what they mean is ``service.mirror``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import engine
from engine import records
from engine.config import EngineConfig
from service.link import RecordLink

FAREWELL_S = 1.0
"""How long a process may take to leave when it is asked to."""


class EngineStartError(Exception):
    """The engine process could not be started on its model; the message is the engine's own."""


class EngineProcess:
    """A process of its own for one model. All methods belong to the event loop and none of them blocks.

    on_record: takes each record that arrives, in order, once the process is ready. module: what it runs.
    """

    module = "engine.worker"

    def __init__(self, on_record: Callable[[object], None]) -> None:
        self._on_record = on_record
        self._process: asyncio.subprocess.Process | None = None
        self._link: RecordLink | None = None
        self._lost = asyncio.Event()
        self._ready: asyncio.Future[records.Ready] = asyncio.get_running_loop().create_future()
        self._heard_at = 0.0
        self._last_words = ""
        self._killed = False

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self, config: EngineConfig) -> records.Ready:
        """Start it and wait until its model is loaded. Raises EngineStartError; leaves no process behind then."""
        near, far = socket.socketpair()
        try:
            # A session of its own, so that Ctrl-C at a terminal reaches us alone and calls can be drained; the
            # process ends by itself when this end of the socket closes.
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self.module,
                str(far.fileno()),
                pass_fds=(far.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                cwd=Path(engine.__path__[0]).parent,
                start_new_session=True,
            )
        finally:
            far.close()
        loop = asyncio.get_running_loop()
        try:
            _, self._link = await loop.create_connection(lambda: RecordLink(self._received, self._ended), sock=near)
            self._link.send(config)
            return await self._ready
        except BaseException:
            await self.kill()
            raise

    def send(self, command: records.Command) -> None:
        """Queue a command. Dropped when the process is gone."""
        if self._link is not None:
            self._link.send(command)

    async def death(self, silence_s: float) -> str:
        """Wait until the process is gone, or is silent for so long although asked. Returns the cause in words."""
        interval = silence_s / 4
        while True:
            try:
                await asyncio.wait_for(self._lost.wait(), timeout=interval)
            except TimeoutError:
                if time.monotonic() - self._heard_at > silence_s:
                    # Perhaps it was this process that stood still: read what has come in meanwhile.
                    await asyncio.sleep(interval)
                silence = time.monotonic() - self._heard_at
                if silence > silence_s:
                    return f"no sign of life for {silence:.1f} s"
                self.send(records.Ping())
            else:
                return f"the process ended: {self._last_words}" if self._last_words else "the process ended"

    async def leave(self) -> None:
        """Ask it to end, and end it where it does not."""
        self.send(records.Shutdown())
        if self._process is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), timeout=FAREWELL_S)
        await self.kill()

    async def kill(self) -> None:
        """End it, whatever it is doing. Idempotent."""
        if self._process is not None:
            if not self._killed:
                # It leads a group of its own, with the other ranks where there are some: one that hangs may outlive
                # its leader, and keeps a GPU's memory. While it does, the group's number is nobody else's.
                self._killed = True
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
        if self._link is not None:
            self._link.close()

    def _received(self, record: object) -> None:
        self._heard_at = time.monotonic()
        if isinstance(record, records.Dying):
            self._last_words = record.cause
        elif self._ready.done():
            self._on_record(record)
        elif isinstance(record, records.Ready):
            self._ready.set_result(record)
        elif isinstance(record, records.Failed):
            self._ready.set_exception(EngineStartError(f"{record.reason}: {record.message}"))

    def _ended(self) -> None:
        self._lost.set()
        if not self._ready.done():
            cause = f": {self._last_words}" if self._last_words else ""
            self._ready.set_exception(EngineStartError(f"the engine process ended before its model was ready{cause}"))
