"""Records over a socket pair, on the event loop: the near end of an engine process's ``Connection``.

The far end is ``multiprocessing.connection.Connection``, whose framing this speaks: a signed big-endian 32-bit length
before each pickle, or -1 and an unsigned 64-bit length from 2 GiB on. Reading on the loop itself saves the thread hop
of a reader thread, and a transport's writes never block, whatever the engine is doing.
"""

from __future__ import annotations

import asyncio
import pickle
import struct
from collections.abc import Callable

_SHORT = struct.Struct("!i")
_LONG = struct.Struct("!Q")
_SHORT_MAX = 0x7FFFFFFF


def frame(message: object) -> bytes:
    """The bytes that ``Connection.recv`` turns back into ``message``."""
    payload = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    if len(payload) > _SHORT_MAX:
        return _SHORT.pack(-1) + _LONG.pack(len(payload)) + payload
    return _SHORT.pack(len(payload)) + payload


class RecordLink(asyncio.Protocol):
    """Sends records and hands each one that arrives to ``on_record``; ``on_lost`` is called once when the peer is gone.

    The peer is a process that we started from our own code, which is what makes unpickling safe.
    """

    def __init__(self, on_record: Callable[[object], None], on_lost: Callable[[], None]) -> None:
        self._on_record = on_record
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        start = 0
        while (end := self._record_end(start)) is not None:
            begin, stop = end
            with memoryview(buffer) as view:
                record = pickle.loads(view[begin:stop])
            start = stop
            self._on_record(record)
        del buffer[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._on_lost()

    def send(self, message: object) -> None:
        """Queue one record. Dropped when the peer is gone: whoever sends learns that from ``on_lost``."""
        if self._transport is not None:
            self._transport.write(frame(message))

    def close(self) -> None:
        """Drop the connection at once, unsent records included."""
        if self._transport is not None:
            self._transport.abort()

    def _record_end(self, start: int) -> tuple[int, int] | None:
        """Where the payload of the record that begins at ``start`` lies, or None while it is incomplete."""
        have = len(self._buffer)
        if have - start < _SHORT.size:
            return None
        (length,) = _SHORT.unpack_from(self._buffer, start)
        begin = start + _SHORT.size
        if length < 0:
            if have - begin < _LONG.size:
                return None
            (length,) = _LONG.unpack_from(self._buffer, begin)
            begin += _LONG.size
        return (begin, begin + length) if have - begin >= length else None
