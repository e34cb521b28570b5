"""Several servers of one service, each on a port that it keeps: they can be killed, frozen, started again."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from firstword import Client
from tests.e2e.server import ROOT, ServiceProcess
from tests.service.store.valkey import free_port

SECRET = "what all servers of the tests sign with"


class Pod:
    """One server. ``process`` is its newest process. root: of the tree whose service it is."""

    def __init__(self, settings: Mapping[str, str] | None = None, advertise: str = "", root: Path = ROOT) -> None:
        self.port = free_port()
        self._settings = {
            "FIRSTWORD_SERVER__PORT": str(self.port),
            "FIRSTWORD_SERVER__ADVERTISE": advertise,
            "FIRSTWORD_RESUME__KEYS": SECRET,
            **(settings or {}),
        }
        self.process = ServiceProcess(self._settings, root)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def wait_until_serving(self) -> None:
        self.process.wait_for("serving")

    def kill(self) -> None:
        """As kill -9 does."""
        self.process.process.kill()
        self.process.process.wait()

    def freeze(self) -> None:
        self.process.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.process.send_signal(signal.SIGCONT)

    def terminate(self) -> None:
        """Ask it to leave in order, and do not wait."""
        self.process.process.send_signal(signal.SIGTERM)

    def start_again(self, root: Path = ROOT) -> None:
        self.process = ServiceProcess(self._settings, root)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Its log entries of that name."""
        return [entry for entry in self.process.entries if entry["event"] == name]

    def end(self) -> None:
        if self.process.process.poll() is None:
            self.thaw()
            self.process.stop()


@contextmanager
def pods(count: int, settings: Mapping[str, str] | None = None) -> Iterator[list[Pod]]:
    """So many of them, started beside each other."""
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            made.append(pod := Pod(settings))
            stack.callback(pod.end)
        for pod in made:
            pod.wait_until_serving()
        yield made


LOGGED_WITHIN_S = 10.0
KEEPALIVE_MS, PING_TIMEOUT_MS = 1000, 2000


def client_of(addresses: Sequence[str], pace: float = 1.0, **given: Any) -> Client:
    """A client of all of them, as behind one name, that soon knows that one is frozen, and shares no connection with
    another. pace: above 1 on a machine that is too busy for that.
    """
    options = (
        ("grpc.keepalive_time_ms", round(pace * KEEPALIVE_MS)),
        ("grpc.keepalive_timeout_ms", round(pace * KEEPALIVE_MS)),
        ("grpc.http2.ping_timeout_ms", round(pace * PING_TIMEOUT_MS)),
        ("grpc.use_local_subchannel_pool", 1),
    )
    return Client("ipv4:" + ",".join(addresses), options=options, **given)


def serving(made: Sequence[Pod], session: str) -> Pod:
    """The one that holds a call now. Waits for what the log says of it, which comes beside what the client hears."""
    until = time.monotonic() + LOGGED_WITHIN_S
    while (holders := _holders(made, session)) == []:
        assert time.monotonic() < until, f"nobody serves {session}"
        time.sleep(0.01)
    return max(holders, key=lambda holder: holder[0])[1]


def _holders(made: Sequence[Pod], session: str) -> list[tuple[str, Pod]]:
    """Who has begun to hold it, and when."""
    begun = ("call opened", "call taken over", "client back")
    return [
        (entry["time"], pod)
        for pod in made
        for entry in list(pod.process.entries)
        if entry.get("session") == session and entry["event"] in begun
    ]
