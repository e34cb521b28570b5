"""The seam to whatever outlives a pod: the records of each call, and which pod serves it. Never awaited for a turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol


class StoreUnavailable(Exception):
    """The store did not answer in time. What was asked may or may not have been done."""


@dataclass(frozen=True)
class CallKey:
    """What a call is known by. tenant: "" where there are none."""

    tenant: str
    session: str

    @property
    def engine_name(self) -> str:
        """Of its session in the engine, which knows no tenants: two of them may name calls alike. Neither name holds a
        tab.
        """
        return f"{self.tenant}\t{self.session}" if self.tenant else self.session


@dataclass(frozen=True)
class Ownership:
    """That this pod serves a call.

    generation: of the lease. base: the last event of the generations before it that counts; what they wrote behind it
    is void. stored: the last event whose record the store has. caller: opaque key of the caller, by which the call can
    be forgotten. checkpoint: gives the whole call as it is now, as (seq, record), for a store that has lost what it
    had. on_lost: called once when another pod has the call; its argument says whether that one is a takeover, and not
    another call of the same name. on_durable: told when the store falls behind or has caught up. opened_at: when it
    was opened, seconds since 1970, by which calls of one name are told apart; 0 where that is not known.
    """

    generation: int
    base: int
    stored: int
    caller: str
    checkpoint: Callable[[], tuple[int, bytes]]
    on_lost: Callable[[bool], None]
    on_durable: Callable[[bool], None]
    opened_at: float = 0.0


@dataclass(frozen=True)
class Taken:
    """A call that this pod took over. records: what the store has, by ``seq``; empty where it knows nothing."""

    generation: int
    records: Mapping[int, bytes]


@dataclass(frozen=True)
class Elsewhere:
    """Another pod is warm for the call."""

    address: str


@dataclass(frozen=True)
class Superseded:
    """A newer request has taken the call over, and it has this generation: the one that was made now came late."""

    generation: int


class CallLog(Protocol):
    """What one pod writes of one call. Nothing here waits for anything."""

    @property
    def durable_seq(self) -> int:
        """Every record up to this ``seq`` survives the death of this process, and of the store's own newest replica.

        0 while nothing does.
        """
        ...

    def append(self, seq: int, record: bytes) -> None:
        """Add the record of event ``seq``; growing."""
        ...

    def close(self, *, forget: bool) -> None:
        """The call is over for good. forget: delete it now. Idempotent."""
        ...

    def leave(self) -> None:
        """This pod is done with the call, which may go on elsewhere. Idempotent."""
        ...


class Store(Protocol):
    """What all pods of a service share. keeps: whether it holds anything of calls."""

    @property
    def keeps(self) -> bool: ...

    async def start(self) -> None:
        """Begin to write, and to say that this pod is there. Returns at once, whether the store answers or not."""
        ...

    async def stop(self, timeout_s: float) -> None:
        """Write what is left, for so long at most, and end."""
        ...

    async def drain(self) -> None:
        """This pod will go: from now on another may take its calls over."""
        ...

    def begin(self, key: CallKey, ownership: Ownership) -> CallLog:
        """This pod serves a call from now on. A new one has generation 1, and nothing before."""
        ...

    async def take(
        self, key: CallKey, generation: int, last_seq: int, *, insist: bool, opened_at: float = 0.0
    ) -> Taken | Elsewhere | Superseded | None:
        """Take a call over; it will have this generation, which must be above the one that it has. None: it is over,
        was deleted, or another one has its name.

        last_seq: the last event that its client has; what was written behind it is void. insist: also from a pod that
        is warm for it. opened_at: as in ``Ownership``. Raises StoreUnavailable.
        """
        ...

    async def release(self, key: CallKey, generation: int) -> None:
        """This pod took a call over and cannot go on with it: nobody is told any more that it is warm for it. Raises
        StoreUnavailable.
        """
        ...

    def calls_elsewhere(self, tenant: str) -> int:
        """How many calls of a tenant other pods hold, as far as is known: a moment ago, and 0 while nothing is."""
        ...

    def opened(self, tenant: str) -> None:
        """A tenant has opened a call here: the others hear of it."""
        ...

    def opens_elsewhere(self, tenant: str, since: float) -> Iterator[tuple[float, int]]:
        """(when, how many) calls of a tenant were heard to be opened at other pods after ``since`` and in the last
        minute, oldest first. Times are monotonic seconds.
        """
        ...

    async def successors(self) -> Iterator[str]:
        """Addresses of other pods for this one's calls, without an end, more of those with more room; empty ones where
        none is known. Raises StoreUnavailable.
        """
        ...

    async def forget(self, tenant: str, caller: str) -> int:
        """Delete what is stored of a caller; returns how many calls. One in progress goes on, unstored.

        Raises StoreUnavailable.
        """
        ...
