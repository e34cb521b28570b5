"""An engine process: ``python -m engine.worker FD`` serves one model over an inherited socket until it closes.

A process of its own means that a hung or crashed step costs a restart and a re-prefill, never a stream, and that the
interpreter lock never stands between a token and its socket. The first message is the ``EngineConfig``; then commands
come in and events go out (``engine.records``), each a pickle. The peer is our own parent process, never a network.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
import traceback
from multiprocessing.connection import Connection

from engine import records
from engine.config import EngineConfig
from engine.errors import EngineError
from engine.host import EngineHost
from engine.load import load_host
from engine.ranks.launch import other_ranks

BEAT_EVERY_S = 0.1
"""How old the figures in a ``Beat`` may get while there is work: new calls are admitted by them."""


def serve(host: EngineHost, connection: Connection) -> None:
    """Carry out commands as they come and step while there is work. Returns at ``Shutdown``."""
    connection.send(host.beat())
    next_beat = time.monotonic() + BEAT_EVERY_S
    while True:
        while connection.poll(_patience(host)):
            command = connection.recv()
            if isinstance(command, records.Shutdown):
                return
            for event in host.handle(command):
                connection.send(event)
        if time.monotonic() >= next_beat and host.busy:
            connection.send(host.beat())
            next_beat = time.monotonic() + BEAT_EVERY_S
        for event in host.advance():
            connection.send(event)
        if not host.busy:
            connection.send(host.beat())


def _patience(host: EngineHost) -> float | None:
    """Seconds to wait for a command; None: for as long as it takes."""
    if host.busy:
        return 0.0
    # Calls that fell quiet are to move now, and not while the next caller waits for their pages.
    seconds = None if host.hibernation is None else host.hibernation.due_in
    return None if seconds is None else max(0.0, seconds)


def main(argv: list[str]) -> int:
    connection = Connection(int(argv[1]))
    try:
        config = connection.recv()
        assert isinstance(config, EngineConfig)
        with contextlib.ExitStack() as stack:
            try:
                ranks = stack.enter_context(other_ranks(config, lambda cause: give_up(connection, cause)))
                host, ready = load_host(config, ranks)
            except Exception as error:  # whatever it was, the parent hears it by name
                if not isinstance(error, EngineError):
                    traceback.print_exc()
                connection.send(records.Failed("", None, type(error).__name__, str(error)))
                return 1
            # What the model brought stays for good: collections during a call need not look at it again.
            gc.collect()
            gc.freeze()
            connection.send(ready)
            serve(host, connection)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return 0  # the parent is gone, and with it everyone this process served
    return 0


def give_up(connection: Connection, cause: str) -> None:
    """End this process at once and say why, from whatever thread: the loop may be waiting for what never comes. Should
    it be sending just now, the parent cannot read the rest, and learns no more than that we are gone.
    """
    print(f"engine process {os.getpid()} ends: {cause}", file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):
        connection.send(records.Dying(cause))
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
