"""``python -m tests.rolling.callers ADDRESS...``: holds calls, one line of JSON on stdout for each that is over.

A process of its own, so that it can import the client library of another revision. It goes on until its stdin closes;
calls that are open then are held to their end.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import sys
from collections.abc import Mapping
from typing import Any

from tests.e2e.pods import client_of
from tests.soak.caller import Caller, Heard


def as_json(heard: Heard) -> str:
    """One line."""
    records = {seq: base64.b64encode(record).decode() for seq, record in heard.records.items()}
    return json.dumps({**vars(heard), "records": records})


def of_json(told: Mapping[str, Any]) -> Heard:
    """What ``as_json`` wrote."""
    turns = [(text, tuple(calls), history, used) for text, calls, history, used in told["turns"]]
    records = {int(seq): base64.b64decode(record) for seq, record in told["records"].items()}
    texts = {int(turn): text for turn, text in told["texts"].items()}
    generations = {int(seq): generation for seq, generation in told["generations"].items()}
    return Heard(**{**told, "turns": turns, "records": records, "texts": texts, "generations": generations})


async def _hold(addresses: list[str], callers: int, scripts: int, once: bool, resume_timeout_s: float) -> None:
    over = asyncio.Event()

    async def until_stdin_closes() -> None:
        await asyncio.to_thread(sys.stdin.read)
        over.set()

    async def hold(number: int) -> None:
        while not over.is_set():
            async with client_of(addresses, resume_timeout_s=resume_timeout_s) as client:
                print(as_json(await Caller(client, number % scripts).run()), flush=True)
            number += callers
            if once and number >= scripts:
                return

    waiting = None if once else asyncio.create_task(until_stdin_closes())
    await asyncio.gather(*(hold(number) for number in range(min(callers, scripts) if once else callers)))
    if waiting is not None:
        await waiting


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.rolling.callers", description=__doc__)
    parser.add_argument("addresses", nargs="+")
    parser.add_argument("--callers", type=int, default=2, help="calls at a time")
    parser.add_argument("--scripts", type=int, default=4, help="different calls")
    parser.add_argument("--once", action="store_true", help="each script once, and then no more")
    parser.add_argument("--resume-timeout", type=float, default=300.0)
    given = parser.parse_args()
    asyncio.run(_hold(given.addresses, given.callers, given.scripts, given.once, given.resume_timeout))


if __name__ == "__main__":
    main()
