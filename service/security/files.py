"""Files that are read again when they change: certificates, keys and key sets are replaced while calls are up.

They are looked at every few seconds and compared by what is in them. Events of the file system would come sooner, but
not on every mount that Kubernetes makes, and a certificate is replaced days before it must be.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")
Contents = tuple[bytes, ...]


class SecurityError(Exception):
    """Something that the service must have to be safe cannot be used. The message says what and why, and no secret."""


class Reloads(Protocol):
    """Counts what became of files that have changed. watching: from now on it may happen."""

    def watching(self, what: str) -> None: ...
    def reloaded(self, what: str) -> None: ...
    def not_reloaded(self, what: str) -> None: ...


class Watched(Generic[T]):
    """What some files hold together. ``value`` is what they held when they could be used last.

    what: their name in logs and metrics. read: makes the value; raises SecurityError or ValueError.
    """

    def __init__(self, what: str, paths: Sequence[Path], read: Callable[[Contents], T], told: Reloads) -> None:
        """Raises SecurityError where they cannot be used now."""
        self._what = what
        self._paths = tuple(paths)
        self._read = read
        self._told = told
        self._seen: Contents | str = ()
        try:
            self._seen = contents = self._contents()
            self.value = read(contents)
        except (OSError, ValueError, SecurityError) as error:
            raise SecurityError(f"{what} ({self._names}): {error}") from None
        told.watching(what)

    def look(self) -> None:
        """Read them again if they have changed. What cannot be used is told once, and changes nothing. Blocks."""
        try:
            contents: Contents | str = self._contents()
        except OSError as error:
            contents = str(error)
        if contents == self._seen:
            return
        self._seen = contents
        extra = {"what": self._what, "files": self._names}
        try:
            if isinstance(contents, str):
                raise SecurityError(contents)
            self.value = self._read(contents)
        except (ValueError, SecurityError) as error:
            self._told.not_reloaded(self._what)
            log.error("not reloaded, the old one stays", extra={**extra, "cause": str(error)})
        else:
            self._told.reloaded(self._what)
            log.info("reloaded", extra=extra)

    @property
    def _names(self) -> str:
        return ", ".join(map(str, self._paths))

    def _contents(self) -> Contents:
        return tuple(path.read_bytes() for path in self._paths)


async def watch(files: Sequence[Watched[object]], every_s: float) -> None:
    """Look at all of them again and again, outside of the event loop."""
    while True:
        await asyncio.sleep(every_s)
        for watched in files:
            try:
                await asyncio.to_thread(watched.look)
            except Exception:  # whatever is wrong with one of them, the others are looked at
                log.exception("a file cannot be looked at")
