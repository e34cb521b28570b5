"""The servers that calls are held at: processes of their own, or, where that takes too long, in this one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol

from tests.e2e.lines import Lines
from tests.e2e.pods import Pod
from tests.service.pods import LocalPod

LEASE_S = 2.0
TRUST_AFTER_S = 3.0


class Server(Protocol):
    """lines: in front of it. ``start`` returns when it serves again."""

    lines: Lines

    async def kill(self) -> None: ...
    async def start(self) -> None: ...
    async def freeze(self) -> None: ...
    async def thaw(self) -> None: ...
    def holds(self, session: str) -> bool: ...


class ProcessServer:
    """``python -m service``, killed and frozen by signals."""

    def __init__(self, store_url: str, lines: Lines, lease_s: float) -> None:
        self.lines = lines
        settings = {
            "FIRSTWORD_STORE__URL": store_url,
            "FIRSTWORD_STORE__LEASE_S": str(lease_s),
            "FIRSTWORD_STORE__TRUST_AFTER_S": str(TRUST_AFTER_S),
            "FIRSTWORD_SERVER__STOP_GRACE_S": "1",
            "FIRSTWORD_ENGINE__POOL_TOKENS": "16384",
        }
        self._pod = Pod(settings, advertise=lines.address)
        lines.lead_to(self._pod.port)

    async def kill(self) -> None:
        await asyncio.to_thread(self._pod.kill)
        self._pod.start_again()  # at once: it takes its time

    async def start(self) -> None:
        await asyncio.to_thread(self._pod.wait_until_serving)

    async def freeze(self) -> None:
        self._pod.freeze()

    async def thaw(self) -> None:
        self._pod.thaw()

    def holds(self, session: str) -> bool:
        mine = [entry["event"] for entry in self._pod.process.entries if entry.get("session") == session]
        return bool(mine) and mine[-1] != "call ended"

    def end(self) -> None:
        self._pod.end()


class LocalServer:
    """One in this process. Frozen, it works no more, hears nothing and says nothing; its sockets stay open."""

    def __init__(self, store_url: str, lines: Lines, lease_s: float) -> None:
        self.lines = lines
        self._pod = LocalPod(store_url, lease_s=lease_s, trust_after_s=TRUST_AFTER_S, lines=lines)

    async def kill(self) -> None:
        await self._pod.kill()

    async def start(self) -> None:
        await self._pod.start()

    async def freeze(self) -> None:
        await self._pod.freeze()

    async def thaw(self) -> None:
        await self._pod.thaw()

    def holds(self, session: str) -> bool:
        return session in self._pod.sessions

    async def end(self) -> None:
        with contextlib.suppress(Exception):
            await self._pod.end()


@asynccontextmanager
async def servers(count: int, store_url: str, lease_s: float, *, local: bool) -> AsyncIterator[list[Server]]:
    """So many, serving."""
    async with AsyncExitStack() as stack:
        made: list[Server] = []
        for _ in range(count):
            lines = Lines()
            listening = await lines.listen()
            stack.callback(listening.close)
            if local:
                here = LocalServer(store_url, lines, lease_s)
                stack.push_async_callback(here.end)
                made.append(here)
            else:
                there = ProcessServer(store_url, lines, lease_s)
                stack.callback(there.end)
                made.append(there)
        for server in made:
            await server.start()
        yield made


def holder(made: Sequence[Server], session: str) -> Server | None:
    """A server that holds a call."""
    return next((server for server in made if server.holds(session)), None)
