"""Many calls over gRPC on a page pool that holds a few of them, each with a turn now and then; and each one alone."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from bench.hibernation.processes import counters, free_port
from evals.calls import read
from firstword import Call, CallError, CallFailed, Client
from firstword.events import EndReason
from firstword.serve import local_server, settings

TURNS = 3
AT_A_TIME = 4
"""Turns that are asked for at a time."""
MAX_TOKENS = 8
POOL_TOKENS = 1024
HOST_BYTES = 24 << 20
"""Of host memory: for about a third of the calls that do not fit the pool, so that the others go to their logs."""
PATIENCE_S = 60.0
FINE = (EndReason.COMPLETED, EndReason.LENGTH)
ANNOUNCED = 0.5
"""Of the turns, those that ``speech_started`` comes before."""


@dataclass
class Talk:
    """What became of calls. texts: by call and turn. errors: by what they were. tokens: of the context, by call, behind
    each of its turns. moved: how often calls went and came back, as the engine counts.
    """

    texts: dict[str, str] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    tokens: dict[int, list[int]] = field(default_factory=dict)
    moved: dict[str, int] = field(default_factory=dict)

    @staticmethod
    def of(kept: Mapping[str, Any]) -> Talk:
        """Of what JSON has made of one."""
        tokens = {int(number): used for number, used in kept["tokens"].items()}
        return Talk(kept["texts"], Counter(kept["errors"]), tokens, kept["moved"])

    @property
    def mean_tokens(self) -> float:
        """Of a call that has had its first turn, the least it ever has while all are open, in the mean."""
        return sum(used[0] for used in self.tokens.values()) / max(1, len(self.tokens))


class Callers:
    """The lines of recorded calls. No two calls begin alike: there is nothing that they could share in the pool."""

    def __init__(self) -> None:
        self._recorded = list(islice(read(), 40))

    def system(self, number: int) -> str:
        lines = self._recorded[number % len(self._recorded)].system.splitlines()
        return f"Call {number}. " + next(line for line in lines if line.startswith("Hours"))

    def line(self, number: int, turn: int) -> str:
        turns = self._recorded[(number + 7 * turn) % len(self._recorded)].turns
        return turns[turn % len(turns)].text


async def ask(call: Call, talk: Talk, number: int, turn: int, text: str, *, announced: bool) -> None:
    """One turn of a call, whose text and errors go to ``talk``."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            if announced:
                await call.speech_started()
                await asyncio.sleep(0.05)
            asked = await call.final(text)
            async for _ in asked:
                pass
    except (CallError, CallFailed, TimeoutError) as error:
        talk.errors[type(error).__name__] += 1
        return
    report = asked.report
    if report is None or report.reason not in FINE:
        talk.errors["no report" if report is None else report.reason.value] += 1
        return
    talk.texts[f"{number}, {turn}"] = asked.text
    talk.tokens.setdefault(number, []).append(report.used_tokens)


def environment(model: Path, pool_tokens: int, host_bytes: int) -> dict[str, str]:
    """Of a service that lets in whoever comes."""
    return settings(model=str(model)) | {
        "FIRSTWORD_ENGINE__POOL_TOKENS": str(pool_tokens),
        "FIRSTWORD_ENGINE__HOST_CACHE_BYTES": str(host_bytes),
        "FIRSTWORD_ADMISSION__RESERVE_TOKENS": "64",
        "FIRSTWORD_ADMISSION__OVERCOMMIT": "100",
        "FIRSTWORD_ADMISSION__MAX_CALLS": "100000",
        "FIRSTWORD_ADMISSION__MAX_SPEECH_LOAD": "1000",
    }


async def together(model: Path, calls: int, pool_tokens: int = POOL_TOKENS, host_bytes: int = HOST_BYTES) -> Talk:
    """All of them open, and each has a turn in each round, in an order drawn anew, ``AT_A_TIME`` at a time."""
    talk, callers, rng, port = Talk(), Callers(), random.Random(1), free_port()
    metrics = {"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": str(port)}
    async with (
        local_server(print, environment(model, pool_tokens, host_bytes) | metrics) as server,
        Client(server.address) as client,
        contextlib.AsyncExitStack() as stack,
    ):
        opened = []
        for number in range(calls):
            call = client.call(system=callers.system(number), max_tokens=MAX_TOKENS, seed=number)
            opened.append(await stack.enter_async_context(call))
        for turn in range(TURNS):
            order = iter(rng.sample(range(calls), calls))

            async def speak(order: Iterator[int] = order, turn: int = turn) -> None:
                for number in order:
                    announced = rng.random() < ANNOUNCED
                    await ask(opened[number], talk, number, turn, callers.line(number, turn), announced=announced)

            await asyncio.gather(*(speak() for _ in range(AT_A_TIME)))
            print(f"{calls} calls open: {turn + 1} of {TURNS} turns each", flush=True)
        talk.moved = await counters(port)
    return talk


async def alone(model: Path, calls: int) -> Talk:
    """The same turns of the same calls, one call after the other, where nobody has to move."""
    talk, callers = Talk(), Callers()
    async with local_server(print, settings(model=str(model))) as server, Client(server.address) as client:
        for number in range(calls):
            async with client.call(system=callers.system(number), max_tokens=MAX_TOKENS, seed=number) as call:
                for turn in range(TURNS):
                    await ask(call, talk, number, turn, callers.line(number, turn), announced=False)
    return talk


def differing(one: Talk, other: Talk) -> tuple[int, int]:
    """(turns that both had and that went otherwise, turns that both had)."""
    both = one.texts.keys() & other.texts.keys()
    return sum(one.texts[place] != other.texts[place] for place in both), len(both)
