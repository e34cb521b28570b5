"""Recorded calls played over gRPC: how soon the agent answers, by how much the service was told before the final.

    python -m bench.turns [--calls FILE] [--limit N] [--speed X] [--debounce MS ...] [--name NAME]

Every call of the file is played in every mode, the modes of one call one after the other. Speech is played ``speed``
times as fast as it was spoken; that leaves less time to work ahead than a caller does, for what is of use and for what
is dropped: tokens made in vain are those of callers only with ``--speed 1``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
from dataclasses import asdict
from pathlib import Path

import torch

from bench import harness
from bench.turns import page
from bench.turns.modes import ANSWER, Mode, modes
from bench.turns.replay import Replay, play, socket_ms
from evals.calls import FILE, RecordedCall, read
from firstword import Client
from firstword.serve import local_server, settings


async def measure(
    model: Path, calls: list[RecordedCall], chosen: list[Mode], speed: float
) -> tuple[dict[Mode, Replay], list[float]]:
    """(what came of the calls in each mode, milliseconds of the socket)"""
    replays = {mode: Replay() for mode in chosen}
    rng = random.Random(0)
    async with contextlib.AsyncExitStack() as stack:
        servers: dict[str, Client] = {}
        address = ""
        for mode in chosen:
            key = str(mode.environment(speed))
            if key not in servers:
                environment = settings(model=str(model)) | mode.environment(speed)
                server = await stack.enter_async_context(local_server(print, environment))
                servers[key] = await stack.enter_async_context(Client(server.address))
                address = server.address
                await play(servers[key], calls[0], ANSWER, speed, Replay())  # to warm up
        for done, call in enumerate(calls, 1):
            for mode in rng.sample(chosen, len(chosen)):
                await play(servers[str(mode.environment(speed))], call, mode, speed, replays[mode])
            if done % 10 == 0 or done == len(calls):
                print(f"{done} of {len(calls)} calls", flush=True)
        return replays, await socket_ms(address)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/receptionist"))
    parser.add_argument("--calls", type=Path, default=FILE)
    parser.add_argument("--limit", type=int, help="calls, spread over the file; all by default")
    parser.add_argument("--speed", type=float, default=4.0)
    parser.add_argument("--debounce", type=int, nargs="*", default=[], help="other values, measured beside the default")
    parser.add_argument("--name", default="turns", help="of the page in bench/results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    calls = list(read(given.calls))
    calls = calls[:: max(1, len(calls) // given.limit)][: given.limit] if given.limit else calls
    replays, socket = asyncio.run(measure(given.model, calls, modes(given.debounce), given.speed))
    report(given.name, given.model, replays, socket, len(calls), given.speed)


def report(name: str, model: Path, replays: dict[Mode, Replay], socket: list[float], calls: int, speed: float) -> None:
    tokenizer = harness.load_tokenizer(model)
    first = next(iter(replays.values()))
    lengths = page.by_length(
        first, replays.values(), lambda text: len(tokenizer.encode(text, add_special_tokens=False))
    )
    harness.RESULTS.mkdir(exist_ok=True)
    page.plot(replays, lengths, harness.RESULTS / f"{name}.svg")
    body = "\n\n".join(
        [
            f"{calls} recorded calls, {len(first.answers)} turns, speech {speed:g} times as fast. First token: on "
            "the service's clock, from the final's arrival. Text or tool call: the first that the client has, from "
            "when it sent the final; a tool call is sent when it is whole, and is a first clause where it comes first.",
            page.main_table(replays, lengths),
            f"![]({name}.svg)",
            page.ahead_table(replays[ANSWER], socket),
            page.partials_table(replays),
        ]
    )
    data = {
        mode.name: [
            [
                *key,
                answer.token_ms,
                answer.first_ms,
                answer.clause_ms,
                answer.reported.answered_ahead,
                answer.speaks,
                answer.held_tokens,
                asdict(answer.reported.usage),
            ]
            for key, answer in replay.answers.items()
        ]
        for mode, replay in replays.items()
    }
    harness.save(name, "From the final to the first word", body, {"speed": speed, "socket_ms": socket, **data})


if __name__ == "__main__":
    main()
