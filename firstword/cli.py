"""The command line: ``firstword serve``, ``talk``, ``top`` and ``demo``."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc

from firstword.access import AccessError, access_of, add_options
from firstword.demo import demo
from firstword.errors import CallFailed, FirstwordError
from firstword.serve import NotInstalledError, ServerError, serve, settings
from firstword.talk.recorded import DemoError
from firstword.talk.script import Script, ScriptError, embedded_calls, read_call, read_tools, text_or_file

NO_TEXTUAL = "the terminal view is not installed: pip install 'firstword[talk]'"


def parser() -> argparse.ArgumentParser:
    """The options of all commands."""
    root = argparse.ArgumentParser(prog="firstword", description="The language side of a voice agent.")
    commands = root.add_subparsers(dest="command", required=True)

    about = "Start the server. What is not given here comes from FIRSTWORD_* in the environment and firstword.toml."
    server = commands.add_parser("serve", help="start the server", description=about)
    server.add_argument("--model", metavar="DIR", help="the model, as Hugging Face lays it out")
    server.add_argument(
        "--drafter", metavar="NAME[:DIR]", help="eagle3:DIR, suffix, ...; several with +; '' drafts with none"
    )
    server.add_argument("--host", help="address to listen on")
    server.add_argument("--port", type=int, help="port to listen on; 0: any that is free")
    server.add_argument("--config", metavar="FILE", help="TOML file to read instead of firstword.toml")

    about = "Talk to a running server, in the terminal."
    talk = commands.add_parser("talk", help="talk to a running server", description=about)
    talk.add_argument("address", nargs="?", default="localhost:50051", help="of the server (default: %(default)s)")
    talk.add_argument("--system", metavar="FILE|TEXT", help="the agent's instructions (default: the demo's)")
    talk.add_argument("--tools", metavar="FILE", type=Path, help="JSON list of its tools (default: the demo's)")
    talk.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default: %(default)s)")
    talk.add_argument("--seed", type=int, help="of the call (default: random)")
    add_options(talk)

    about = "Show what a running server does: latencies, drafting, capacity, from its Prometheus endpoint."
    top = commands.add_parser("top", help="show what a running server does", description=about)
    top.add_argument("address", nargs="?", default="localhost:9464", help="of its metrics (default: %(default)s)")
    top.add_argument(
        "--every", metavar="S", type=float, default=2.0, help="seconds between looks (default: %(default)s)"
    )
    top.add_argument("--once", action="store_true", help="print the figures since its start, and leave")
    add_options(top)

    about = "Start a server on the embedded model and talk to it; where there is no terminal, a recorded caller does."
    shown = commands.add_parser("demo", help="start a server and talk to it", description=about)
    shown.add_argument("--calls", metavar="FILE", type=Path, help="recorded calls, JSON lines (default: the model's)")
    shown.add_argument("--svg", metavar="FILE", type=Path, help="draw a short conversation into this file instead")
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0; 1 for what went wrong, 2 for what is missing, 130 for what was interrupted."""
    options = parser().parse_args(arguments)
    try:
        match options.command:
            case "serve":
                chosen = settings(options.model, options.drafter, options.host, options.port, options.config)
                return serve(chosen)
            case "talk":
                _talk(options)
            case "top":
                _top(options)
            case "demo":
                live = sys.stdin.isatty() and sys.stdout.isatty()
                if live or options.svg is not None:
                    _require_textual()
                asyncio.run(demo(options.calls, options.svg, live=live))
    except NotInstalledError as error:
        print(f"firstword: {error}", file=sys.stderr)
        return 2
    except (ServerError, ScriptError, DemoError, AccessError, FirstwordError) as error:
        print(f"firstword: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    return 0


def _talk(options: argparse.Namespace) -> None:
    _require_textual()
    from firstword.talk.app import talk

    recorded = embedded_calls() if options.system is None and options.tools is None else None
    script = Script() if recorded is None else read_call(recorded)
    if options.system is not None or options.tools is not None:
        script = Script(
            system=text_or_file(options.system or ""), tools=read_tools(options.tools) if options.tools else ()
        )
    access = access_of(options, os.environ)
    try:
        asyncio.run(talk(options.address, script, access, temperature=options.temperature, seed=options.seed))
    except CallFailed as error:
        if error.code is not grpc.StatusCode.UNAVAILABLE:
            raise
        raise ServerError(f"no server at {options.address}, or not any more: {error.message}") from None


def _top(options: argparse.Namespace) -> None:
    _require_textual()
    from firstword.top.app import once, top
    from firstword.top.scrape import ScrapeError

    access = access_of(options, os.environ)
    try:
        once(options.address, access) if options.once else top(options.address, options.every, access)
    except ScrapeError as error:
        raise ServerError(f"{error}. It is there where OTEL_METRICS_EXPORTER=prometheus") from None


def _require_textual() -> None:
    if importlib.util.find_spec("textual") is None:
        raise NotInstalledError(NO_TEXTUAL)


if __name__ == "__main__":
    sys.exit(main())
