"""``firstword demo``: a server of its own on the embedded model, and a conversation with it. Nothing is to be set up,
and what is set up here for a service, its certificates and tenants, is not asked of the demo.
"""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

from firstword.serve import LocalServer, NotInstalledError, command, local_server
from firstword.talk.recorded import RecordedCall, summary
from firstword.talk.script import Script, embedded_calls, read_call

NO_MODEL = "the embedded model is not there: in the repository, `make model` makes it (about two hours)"


def say(line: str) -> None:
    """To standard output at once, also where that is a file."""
    print(line, flush=True)


async def demo(calls: Path | None, svg: Path | None, *, live: bool) -> None:
    """Start the server and hold a conversation: drawn into ``svg``, ``live`` in the terminal, or recorded.

    calls: recorded calls to take the first one from; None: the embedded model's. Raises NotInstalledError,
    ServerError, ScriptError, DemoError, and what the client raises.
    """
    script = _script(calls)
    end_on_signals()
    say("Starting the server on a free port ...")
    began = time.perf_counter()
    async with local_server(lambda line: say(f"  {line}"), configured=False) as server:
        say(f"  ready after {time.perf_counter() - began:.1f} s: {server.model} at {server.address}")
        say(f"  {server.costs}")
        if svg is not None:
            await _draw(server, script, svg)
        elif live:
            await _talk(server, script)
        else:
            held = await RecordedCall(script, say).play(server.address)
            say("\n" + summary(held))
    say("The server has ended.")


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP end the program as Ctrl+C does, so that the server is not left behind."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)


def _script(calls: Path | None) -> Script:
    command()  # where there is no server, that is what to say first
    path = calls or embedded_calls()
    if path is None:
        raise NotInstalledError(NO_MODEL)
    return read_call(path)


async def _talk(server: LocalServer, script: Script) -> None:
    from firstword.talk.app import talk

    await talk(server.address, script, temperature=0.0, seed=None)


async def _draw(server: LocalServer, script: Script, svg: Path) -> None:
    from firstword.talk.picture import draw

    await draw(server.address, script, svg)
    say(f"Drew {svg}")
