"""The store of a single process: keeps every live call's log, and nothing when the process ends."""

from __future__ import annotations

from service.store.protocol import LogEntry


class MemoryStore:
    """Token logs in a dict. ``durable_seq`` stays 0, which tells clients to keep their records."""

    def __init__(self) -> None:
        self._logs: dict[str, list[int]] = {}

    def open(self, session: str) -> None:
        if session in self._logs:
            raise ValueError(f"session {session} is open already")
        self._logs[session] = []

    def append(self, session: str, entry: LogEntry) -> None:
        self._logs[session][entry.keep :] = entry.tokens

    def durable_seq(self, session: str) -> int:
        return 0

    def tokens(self, session: str) -> tuple[int, ...]:
        return tuple(self._logs[session])

    def close(self, session: str) -> None:
        self._logs.pop(session, None)
