"""Waits for what comes by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


async def until(condition: Callable[[], bool | Awaitable[bool]], timeout_s: float = 20.0) -> None:
    """Raises TimeoutError where it does not come to that."""
    async with asyncio.timeout(timeout_s):
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(0.005)


class Turns:
    """How much is done in one go, while others wait for the event loop."""

    def __init__(self) -> None:
        self.most = self._now = 0
        self._task = asyncio.create_task(self._others())

    def done(self, much: int) -> None:
        self._now += much
        self.most = max(self.most, self._now)

    def stop(self) -> None:
        self._task.cancel()

    async def _others(self) -> None:
        while True:
            await asyncio.sleep(0)
            self._now = 0
