"""Starts the service, which is no part of this wheel, as ``python -m service`` in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, MappingProxyType

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 40.0
LOG_LINES_KEPT = 20
ENGINE = "FIRSTWORD_ENGINE__"
LONGEST_LOG_LINE = 1024 * 1024

NOT_HERE = """\
The server is not here. It ships with the repository, not in this wheel, and
pip install 'firstword[server]' alone, which only brings what it runs on, is not enough. Either

    git clone the Firstword repository, and in it: make setup, then make serve
    or give the address of one that runs elsewhere to: firstword talk ADDRESS
"""
NO_TORCH = """\
The server is here, but torch, which it runs on, is not. In the repository: make setup
(or: pip install -e '.[server]')
"""


class NotInstalledError(Exception):
    """A part of Firstword that was asked for is not here. The message says how to get it."""


class ServerError(Exception):
    """The server did not start, or did not end in order. The message says why."""


def service_root() -> Path | None:
    """The directory that holds the packages ``service`` and ``engine``, or None where they are not installed.

    A checkout is used without having been installed: the console script of an editable install only knows firstword.
    """
    found = importlib.util.find_spec("service")
    places = [Path(__file__).resolve().parent.parent]
    if found is not None and found.origin:
        places.append(Path(found.origin).parent.parent)
    # "service" is a common name: ours can be run, and has an engine beside it.
    marks = (Path("service", "__main__.py"), Path("engine", "__init__.py"))
    return next((place for place in places if all((place / mark).is_file() for mark in marks)), None)


def command() -> tuple[list[str], dict[str, str]]:
    """(command line, environment) of the service. Raises NotInstalledError where it, or what it needs, is not here."""
    root = service_root()
    if root is None:
        raise NotInstalledError(NOT_HERE)
    if importlib.util.find_spec("torch") is None:
        raise NotInstalledError(NO_TORCH)
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH", ""))))
    # -P: what lies in the working directory must not stand in for the service.
    return [sys.executable, "-P", "-m", "service"], {"PYTHONPATH": path}


def settings(
    model: str | None = None,
    drafter: str | None = None,
    host: str | None = None,
    port: int | None = None,
    config: str | None = None,
) -> dict[str, str]:
    """The service's environment variables for what was asked for. drafter: as in ``engine.drafter``; empty for none."""
    asked = {
        "FIRSTWORD_ENGINE__MODEL": model,
        "FIRSTWORD_ENGINE__DRAFTER": drafter,
        "FIRSTWORD_SERVER__HOST": host,
        "FIRSTWORD_SERVER__PORT": None if port is None else str(port),
        "FIRSTWORD_CONFIG": config,
    }
    return {name: value for name, value in asked.items() if value is not None}


def serve(environment: Mapping[str, str]) -> int:
    """Run the service in the foreground until it ends, and pass SIGTERM and SIGINT on to it. Its exit status."""
    arguments, needed = command()
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        if process is None:
            early.append(number)
        else:
            process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        process = subprocess.Popen(arguments, env={**os.environ, **needed, **environment})
        for number in early:
            process.send_signal(number)
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status


@dataclass(frozen=True)
class LocalServer:
    """A server on this machine that takes calls. costs: what it measured of itself, in words for people."""

    address: str
    model: str
    costs: str


@asynccontextmanager
async def local_server(
    say: Callable[[str], None], environment: Mapping[str, str] = MappingProxyType({}), *, configured: bool = True
) -> AsyncIterator[LocalServer]:
    """The service on a free port of this machine while the block runs; ``say`` gets a line for each stage of its start.

    environment: added to this process's own; see ``settings``. configured: whether a firstword.toml that is here, and
    what this process's environment says of other things than the engine, have a say in it.

    Raises NotInstalledError when it is not here, ServerError when it does not start or, after the block, end in order.
    """
    arguments, needed = command()
    fixed = settings(host="127.0.0.1", port=0) | {"FIRSTWORD_LOG__FORMAT": "json", "FIRSTWORD_LOG__LEVEL": "info"}
    own = dict(os.environ)
    if not configured:
        own = {
            name: value for name, value in own.items() if not name.startswith("FIRSTWORD_") or name.startswith(ENGINE)
        }
        environment = settings(config=os.devnull) | dict(environment)
    process = await asyncio.create_subprocess_exec(
        *arguments,
        env={**own, **needed, **environment, **fixed},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        limit=LONGEST_LOG_LINE,
        start_new_session=True,  # Ctrl+C in the terminal ends the conversation first, and the server after it
    )
    log = _Log(process, say)
    reading = asyncio.create_task(log.read())
    try:
        yield await log.serving()
    except BaseException:
        await _stop(process)
        raise
    else:
        status = await _stop(process)
        if status != 0:
            raise ServerError(f"the server ended with status {status}:\n{log.tail()}")
    finally:
        await reading


async def _stop(process: asyncio.subprocess.Process) -> int:
    """Ask it to leave, insist after a while. Its exit status."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        return await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        return await process.wait()


class _Log:
    """Reads a starting service's log: one JSON object a line, and whatever else a broken start prints."""

    def __init__(self, process: asyncio.subprocess.Process, say: Callable[[str], None]) -> None:
        self._process = process
        self._say = say
        self._lines: deque[str] = deque(maxlen=LOG_LINES_KEPT)
        self._costs = ""
        self._serving: asyncio.Future[LocalServer] = asyncio.get_running_loop().create_future()

    async def serving(self) -> LocalServer:
        """When calls are taken. Raises ServerError when it came to an end before that, or takes too long."""
        try:
            return await asyncio.wait_for(self._serving, START_TIMEOUT_S)
        except TimeoutError:
            raise ServerError(f"the server is not ready after {START_TIMEOUT_S:.0f} s:\n{self.tail()}") from None

    def tail(self) -> str:
        """The last lines that it printed."""
        return "\n".join(self._lines)

    async def read(self) -> None:
        """Until the service closes its log: it must not be held up by a full pipe."""
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            text = line.decode(errors="replace").rstrip()
            self._lines.append(text)
            if not self._serving.done():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    self._take(json.loads(text))
        if not self._serving.done():
            self._serving.set_exception(ServerError(f"the server did not start:\n{self.tail()}"))

    def _take(self, entry: dict[str, str]) -> None:
        match entry["event"]:
            case "listening":
                self._say("loading the model and measuring what a step costs ...")
            case "engine ready":
                self._costs = entry["costs"]
            case "could not start":
                self._serving.set_exception(ServerError(f"the server could not start: {entry['cause']}"))
            case "serving":
                address = f"{entry['host']}:{entry['port']}"
                self._serving.set_result(LocalServer(address, entry["model"], self._costs))
