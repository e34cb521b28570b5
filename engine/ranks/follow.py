"""Every other rank's side: ``python -m engine.ranks.follow FD RANK`` does what rank 0 tells it until that is gone.

The first message is a ``Start``; orders come behind it (``engine.ranks.orders``), each a pickle of our own parent's.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import traceback
from multiprocessing.connection import Connection

import torch
from torch import Tensor

from engine.graphs.target import GraphTarget
from engine.interfaces import Target
from engine.load import load_target_for
from engine.models.decoder import Decoder
from engine.parallel import device_of, join
from engine.ranks.orders import (
    CopyBack,
    CopyOut,
    CopyPages,
    CopySlots,
    Forget,
    Forward,
    Loaded,
    Order,
    Prepare,
    Start,
)


class Follower:
    """One rank's share of a target, and the copies that its pages have in host memory, by their numbers."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._target: Target = decoder
        self._copies: dict[int, Tensor] = {}

    def carry_out(self, order: Order) -> None:
        pool = self._decoder.pool
        match order:
            case Forward(windows, taps):
                pool.mover.wait()
                self._target.forward([share.window(pool.page_tokens) for share in windows], taps)
            case CopyPages(sources, targets):
                pool.mover.copy_pages(sources, targets)
            case CopySlots(sources, targets):
                pool.mover.copy_slots(torch.tensor(sources), torch.tensor(targets))
            case CopyOut(copy, pages):
                self._copies[copy] = pool.mover.copy_out(pages)
            case CopyBack(copy, pages):
                pool.mover.copy_back(self._copies[copy], pages)
            case Forget(copy):
                del self._copies[copy]
            case Prepare(taps, sink):
                self._prepare(GraphTarget(self._decoder, taps, sink=sink))

    def _prepare(self, target: GraphTarget) -> None:
        target.prepare()
        self._target = target


@torch.inference_mode()
def follow(follower: Follower, connection: Connection) -> None:
    """Carry out orders until rank 0 hangs up."""
    while True:
        try:
            order = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        follower.carry_out(order)


def end_with(connection: Connection, start: Start) -> None:
    """End this process when the other end of the connection is closed, whatever this one is doing: it may be waiting
    for rank 0 in a sum that will never come.
    """
    hang_up = select.poll()
    hang_up.register(connection.fileno(), 0)  # of a hang-up it tells unasked, and of nothing else

    def watch() -> None:
        hang_up.poll()
        start.tidy()
        os._exit(0)

    threading.Thread(target=watch, name="rank 0", daemon=True).start()


def main(argv: list[str]) -> None:
    connection, rank = Connection(int(argv[1])), int(argv[2])
    start = connection.recv()
    assert isinstance(start, Start)
    end_with(connection, start)
    config = start.config
    torch.set_num_threads(config.threads)
    device = device_of(config.device, rank)
    shard = join(rank, config.ranks, start.address, device)
    try:
        target = load_target_for(config, shard, device)
    except Exception as error:
        connection.send(Loaded(f"{type(error).__name__}: {error}"))
        connection.poll(None)  # rank 0 says it where it is heard, and hangs up
        return
    connection.send(Loaded())
    try:
        follow(Follower(target), connection)
    except Exception:
        # At once: what is under way between the ranks would be waited for at an ordinary end, and never comes.
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    main(sys.argv)
