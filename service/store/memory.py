"""The store of a single process: it keeps nothing, for what it kept would end with the process it belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat

from service.store.protocol import CallKey, CallLog, Elsewhere, Ownership, Superseded, Taken


class _NoLog:
    """``durable_seq`` stays 0, which tells clients to keep their records."""

    durable_seq = 0

    def append(self, seq: int, record: bytes) -> None:
        pass

    def close(self, *, forget: bool) -> None:
        pass

    def leave(self) -> None:
        pass


class MemoryStore:
    """Calls are resumed from what their clients hold."""

    keeps = False

    async def start(self) -> None:
        pass

    async def stop(self, timeout_s: float) -> None:
        pass

    async def drain(self) -> None:
        pass

    def begin(self, key: CallKey, ownership: Ownership) -> CallLog:
        return _NoLog()

    async def take(
        self, key: CallKey, generation: int, last_seq: int, *, insist: bool, opened_at: float = 0.0
    ) -> Taken | Elsewhere | Superseded | None:
        return Taken(generation, {})

    async def release(self, key: CallKey, generation: int) -> None:
        pass

    def calls_elsewhere(self, tenant: str) -> int:
        return 0

    def opened(self, tenant: str) -> None:
        pass

    def opens_elsewhere(self, tenant: str, since: float) -> Iterator[tuple[float, int]]:
        return iter(())

    async def successors(self) -> Iterator[str]:
        return repeat("")

    async def forget(self, tenant: str, caller: str) -> int:
        return 0
