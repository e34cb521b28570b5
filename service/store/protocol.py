"""The seam to whatever keeps a call's token log when its process is gone. Never awaited before a first token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class LogEntry:
    """One change of a call's token log: it now is its first ``keep`` tokens followed by ``tokens``.

    seq: number of the server event that announced the change.
    """

    seq: int
    keep: int
    tokens: tuple[int, ...]


class SessionStore(Protocol):
    """Appends are queued and written behind the call's back; ``durable_seq`` says how far they have got."""

    def open(self, session: str) -> None:
        """Begin the log of a new call. Raises ValueError when it has one already."""
        ...

    def append(self, session: str, entry: LogEntry) -> None:
        """Add one change. Must not block; entries of one call are kept in order."""
        ...

    def durable_seq(self, session: str) -> int:
        """The last ``seq`` that survives the death of this process; 0 while nothing does."""
        ...

    def tokens(self, session: str) -> tuple[int, ...]:
        """The log as it stands. Raises KeyError for an unknown call."""
        ...

    def close(self, session: str) -> None:
        """The call is over for good: forget it. Idempotent."""
        ...
