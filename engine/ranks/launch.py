"""Starts the other ranks beside an engine process, and notices when one of them is gone.

A rank that is lost leaves the others in a sum that never ends, so nothing can be saved: the engine process says which
and ends, and is replaced like any other that died. Whichever way it ends, the other ranks end with it.
"""

from __future__ import annotations

import contextlib
import pickle
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import torch.distributed as dist

import engine
from engine.config import EngineConfig
from engine.errors import ModelError
from engine.models.config import read_config
from engine.parallel import Shard, device_of, join
from engine.ranks.orders import Loaded, Order, Start

FAREWELL_S, NOTICED_S = 2.0, 0.5
"""How long a rank may take to leave, and how long its death may take to be noticed."""


class RankLost(RuntimeError):
    """A rank is gone; whoever watches it will say why."""


class Ranks:
    """The ranks from 1 on, as rank 0 sees them. shard: rank 0's own share."""

    def __init__(self, shard: Shard, connections: list[Connection]) -> None:
        self.shard = shard
        self._connections = connections

    def tell(self, order: Order) -> None:
        """Have every other rank carry out an order; it is not waited for."""
        message = pickle.dumps(order, protocol=pickle.HIGHEST_PROTOCOL)
        for rank, connection in enumerate(self._connections, 1):
            try:
                connection.send_bytes(message)
            except OSError as error:
                raise RankLost(f"rank {rank} takes no orders") from error

    def wait_until_loaded(self) -> None:
        """Every rank has its share. Raises ModelError where one could not have it."""
        for rank, connection in enumerate(self._connections, 1):
            try:
                answer = connection.recv()
            except (EOFError, OSError) as error:
                raise RankLost(f"rank {rank} did not load") from error
            assert isinstance(answer, Loaded)
            if answer.error:
                raise ModelError(f"rank {rank}: {answer.error}")


@contextlib.contextmanager
def other_ranks(config: EngineConfig, on_lost: Callable[[str], None]) -> Iterator[Ranks | None]:
    """The other ranks of this engine process, started and met; None where there is one rank.

    on_lost: told in a thread of its own when one of them has ended, and why; should end this process.
    Raises ModelError where the model or the machine is not for so many.
    """
    if config.ranks == 1:
        yield None
        return
    _check(config)
    with (
        tempfile.TemporaryDirectory(prefix="engine-ranks-", ignore_cleanup_errors=True) as meeting,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(_part)  # the last of all: the others are gone by then
        start = Start(config, f"file://{meeting}/store")
        connections = [stack.enter_context(_started(rank, start, on_lost)) for rank in range(1, config.ranks)]
        shard = join(0, config.ranks, start.address, device_of(config.device, 0))
        yield Ranks(shard, connections)


def _part() -> None:
    """Dissolve the group, of which nobody else is left. Over NCCL all ranks would have to, together: there it ends with
    this process.
    """
    if dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()


def _check(config: EngineConfig) -> None:
    if config.ranks < 1:
        raise ModelError(f"ranks is {config.ranks}; 1 or more were expected")
    device_of(config.device, config.ranks - 1)
    Shard(0, config.ranks).config(read_config(Path(config.model)))


@contextlib.contextmanager
def _started(rank: int, start: Start, on_lost: Callable[[str], None]) -> Iterator[Connection]:
    """One rank's process, until this is left."""
    near, far = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-m", "engine.ranks.follow", str(far.fileno()), str(rank)],
        pass_fds=(far.fileno(),),
        stdin=subprocess.DEVNULL,
        cwd=Path(engine.__path__[0]).parent,
    )
    far.close()
    leaving = threading.Event()

    def watch() -> None:
        status = process.wait()
        if not leaving.is_set():
            start.tidy()
            on_lost(f"rank {rank} of {start.config.ranks} has ended {_described(status)}")

    watcher = threading.Thread(target=watch, name=f"rank {rank}", daemon=True)
    watcher.start()
    connection = Connection(near.detach())
    try:
        connection.send(start)
        yield connection
    except RuntimeError:  # of ours, or what a sum raises
        watcher.join(NOTICED_S)  # what went wrong here is that a rank is gone: the watcher says which
        raise
    finally:
        leaving.set()
        connection.close()
        watcher.join(FAREWELL_S)
        process.kill()  # does nothing where it has left


def _described(status: int) -> str:
    return f"by signal {-status}" if status < 0 else f"with status {status}"
