"""The near end of an engine's connection speaks the framing of ``multiprocessing.connection.Connection``."""

from __future__ import annotations

import asyncio
import socket
import threading
from multiprocessing.connection import Connection

import pytest

from service.link import RecordLink


async def linked() -> tuple[RecordLink, Connection, asyncio.Queue[object], asyncio.Event]:
    near, far = socket.socketpair()
    received: asyncio.Queue[object] = asyncio.Queue()
    lost = asyncio.Event()
    loop = asyncio.get_running_loop()
    _, link = await loop.create_connection(lambda: RecordLink(received.put_nowait, lost.set), sock=near)
    return link, Connection(far.detach()), received, lost


@pytest.mark.parametrize("size", [0, 1, 16_383, 16_384, 3_000_000])
async def test_records_of_any_size_go_both_ways(size: int) -> None:
    link, far, received, _ = await linked()
    message = ("record", b"x" * size)
    link.send(message)
    assert await asyncio.to_thread(far.recv) == message
    sender = threading.Thread(target=far.send, args=(message,))
    sender.start()
    assert await received.get() == message
    sender.join()
    link.close()
    far.close()


async def test_many_records_in_one_read_come_in_order() -> None:
    link, far, received, _ = await linked()
    for number in range(100):
        far.send(number)
    assert [await received.get() for _ in range(100)] == list(range(100))
    link.close()
    far.close()


async def test_sending_does_not_block_while_the_peer_reads_nothing() -> None:
    link, far, _, _ = await linked()
    for _ in range(20):
        link.send(b"x" * 1_000_000)
    assert await asyncio.to_thread(lambda: [len(far.recv()) for _ in range(20)]) == [1_000_000] * 20
    link.close()
    far.close()


async def test_the_death_of_the_peer_is_told_once_and_sending_is_harmless_then() -> None:
    link, far, _, lost = await linked()
    far.close()
    await lost.wait()
    link.send("nobody reads this")
