"""What is measured of the store behind the calls: read when metrics are collected, but for the time of a write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from service.telemetry import names
from service.telemetry.metrics import Telemetry


class Watched(Protocol):
    """What a store keeps of its own figures. memory: (bytes in use, bytes that there may be; 0: no limit), of the
    store's server; nothing where it does not say. Times are in seconds.
    """

    on_written: Callable[[float], None]
    behind: bool
    failures: int
    reconnects: int
    fenced: int
    leases_lost: int
    memory: tuple[int, int]

    @property
    def pending(self) -> int: ...

    @property
    def parked(self) -> int: ...

    @property
    def unwritten(self) -> int: ...

    @property
    def kept(self) -> int: ...

    @property
    def lag_s(self) -> float: ...


def watch(telemetry: Telemetry, store: Watched) -> None:
    """Observe the store from now on."""
    store.on_written = telemetry.append_time()
    see = telemetry.watch
    see(names.STORE_PENDING, "{call}", "Calls with records to be written", lambda: store.pending)
    see(names.STORE_PARKED, "{call}", "Calls that alone cannot be written", lambda: store.parked)
    see(names.STORE_UNWRITTEN, "{record}", "Records that are to be written", lambda: store.unwritten)
    see(names.STORE_KEPT, "{record}", "Records that may still be lost, and are kept here", lambda: store.kept)
    see(names.STORE_LAG, "s", "How long the oldest record has waited to be written", lambda: store.lag_s)
    see(names.STORE_BEHIND, "1", "1 while the store does not keep up", lambda: float(store.behind))
    see(names.STORE_MEMORY, "By", "Memory that the store uses", lambda: store.memory[0])
    see(names.STORE_MEMORY_LIMIT, "By", "Memory that the store may use; 0: no limit", lambda: store.memory[1])
    see(names.STORE_FAILURES, "{failure}", "Writes that failed", lambda: store.failures, grows=True)
    see(names.STORE_RECONNECTS, "{time}", "Times that it answered again", lambda: store.reconnects, grows=True)
    see(names.STORE_FENCED, "{write}", "Writes refused to an old generation", lambda: store.fenced, grows=True)
    see(names.STORE_LEASES_LOST, "{call}", "Calls that another server has taken", lambda: store.leases_lost, grows=True)
