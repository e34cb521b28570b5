"""What it costs to have gone cold, and what calls leave behind.

    python -m bench.hibernation [--rounds N] [--calls N]

First tokens of calls that were moved out of the page pool, each beside one of a call that was not: the same prompt, in
the same round, in an order that alternates. Announced: ``Wake`` came while the caller began to speak, and what it asks
for was done before the turn was committed. Then calls over gRPC, one after the other with some always open on a pool
that does not hold them, and the memory of the service's processes on the way.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import time
from collections import defaultdict, deque
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from bench import harness
from engine import records
from engine.config import EngineConfig
from engine.engine import Engine
from engine.grammar.library import GrammarLibrary
from engine.hibernation import Hibernation
from engine.host import EngineHost
from engine.load import load_proposer, load_target_for, reader_of
from engine.models.decoder import Decoder
from engine.policy import FixedPolicy
from engine.sampling import Sampling
from engine.schedule import DeadlineScheduler
from engine.text.codec import Codec
from evals.calls import read
from firstword import Client
from firstword.serve import local_server, settings

CONTEXTS = (200, 800)
LINE_TOKENS = 16
REPLY_TOKENS = 12
NODES = 8
OPEN = 24
"""Calls that are open at once while memory is watched: three times what the pool holds, and twice what host memory
holds besides."""
POOL_TOKENS = 512
SHORT_POOL = {
    "FIRSTWORD_ENGINE__POOL_TOKENS": str(POOL_TOKENS),
    "FIRSTWORD_ENGINE__HOST_CACHE_BYTES": str(4 << 20),
    "FIRSTWORD_ADMISSION__RESERVE_TOKENS": "64",
    "FIRSTWORD_ADMISSION__OVERCOMMIT": "100",
}


@dataclass(frozen=True)
class Way:
    """How a call went cold, and whether it was told that it would be wanted."""

    name: str
    host_bytes: int
    announced: bool


WAYS = (
    Way("host memory, announced", 1 << 30, announced=True),
    Way("host memory, not announced", 1 << 30, announced=False),
    Way("token log, announced", 0, announced=True),
    Way("token log, not announced", 0, announced=False),
)


def host_for(model: Path, context: int, host_bytes: int) -> EngineHost:
    """One whose pool holds two calls of ``context`` tokens and half of a third."""
    pool_tokens = 5 * (context + LINE_TOKENS + REPLY_TOKENS + 2 * NODES) // 2
    config = EngineConfig(str(model), f"suffix+eagle3:{model / 'eagle3'}", pool_tokens=pool_tokens)
    target = load_target_for(config)
    engine = Engine(target, load_proposer(config, target), FixedPolicy(NODES), coupled=config.couples)
    return host_of(model, engine, target, Hibernation(engine, host_bytes))


def host_of(model: Path, engine: Engine, target: Decoder, hibernation: Hibernation | None, **more: Any) -> EngineHost:
    codec = Codec.load(model, target.vocab_size)
    grammars = GrammarLibrary(codec, target.vocab_size, target.device)
    return EngineHost(
        engine, DeadlineScheduler(256), partial(reader_of, codec), grammars, hibernation=hibernation, **more
    )


def run(host: EngineHost) -> list[records.Event]:
    """All that the host says until it has nothing to do."""
    events: list[records.Event] = []
    while host.busy:
        events += host.advance()
    return events


def timed_reply(host: EngineHost, name: str, log: int, line: tuple[int, ...]) -> tuple[float, float]:
    """Seconds to the first token of a turn, and to the last of ``REPLY_TOKENS``. Of this thread, which does all the
    work: others have the machine as well.
    """
    started, first = time.thread_time(), 0.0
    host.handle(records.Submit(name, 1, log, line, Sampling(), REPLY_TOKENS))
    while (turn := host.engine.session(name).turn) is not None:
        host.advance()
        if not first and turn.num_tokens:
            first = time.thread_time() - started
    return first, time.thread_time() - started


@dataclass
class Pair:
    """A cold call's seconds and a warm one's: to the first token, to the last; and those that the wake took before."""

    cold: tuple[float, float]
    warm: tuple[float, float]
    waking: float


def one_round(host: EngineHost, way: Way, prompt: tuple[int, ...], line: tuple[int, ...], *, cold_first: bool) -> Pair:
    for name in ("cold", "warm", "other"):  # the third has no room until the first, asked for longest ago, has moved
        host.handle(records.Open(name, prompt))
        run(host)
    session, moved = host.engine.session("cold"), len(prompt) - 1
    assert (session.cache.length == 0) if way.host_bytes == 0 else not session.resident
    assert host.engine.session("warm").resident and host.engine.session("warm").cache.length == moved
    host.handle(records.Close("other"))
    started = time.thread_time()
    if way.announced:
        host.handle(records.Wake("cold"))
        run(host)
    waking, seconds = time.thread_time() - started, {}
    for name in ("cold", "warm") if cold_first else ("warm", "cold"):
        seconds[name] = timed_reply(host, name, len(prompt), line)
        run(host)
    for name in ("cold", "warm"):
        host.handle(records.Close(name))
    run(host)
    return Pair(seconds["cold"], seconds["warm"], waking)


def measure_wakes(model: Path, rounds: int) -> dict[tuple[int, str], list[Pair]]:
    """By context and way."""
    found: dict[tuple[int, str], list[Pair]] = defaultdict(list)
    gold = harness.prompts(harness.load_tokenizer(model), harness.HELD_OUT, 40)
    tokens = [token for prompt in gold for token in prompt.ids]
    for context in CONTEXTS:
        hosts = {size: host_for(model, context, size) for size in {way.host_bytes for way in WAYS}}
        for number in range(rounds + 1):
            at = 37 * number
            prompt, line = tuple(tokens[at : at + context]), tuple(tokens[at + context : at + context + LINE_TOKENS])
            for way in WAYS:
                pair = one_round(hosts[way.host_bytes], way, prompt, line, cold_first=number % 2 == 0)
                if number:  # the first warms up
                    found[context, way.name].append(pair)
        print(f"context {context} done", flush=True)
    return found


def wake_rows(found: dict[tuple[int, str], list[Pair]]) -> list[list[object]]:
    rows: list[list[object]] = []
    for (context, way), pairs in found.items():
        ratio = harness.interval([pair.cold[0] / pair.warm[0] for pair in pairs])
        last = harness.interval([pair.cold[1] / pair.warm[1] for pair in pairs])
        cold, warm, waking = (
            1e3 * statistics.median(figure)
            for figure in zip(*((pair.cold[0], pair.warm[0], pair.waking) for pair in pairs), strict=True)
        )
        rows.append([context, way, waking, cold, warm, _ratio(ratio), _ratio(last)])
    return rows


def _ratio(found: tuple[float, float, float]) -> str:
    return f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"


def resident_mib(pid: int) -> float:
    """What a process has in memory (proportional set size)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1024


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def measure_memory(model: Path, calls: int) -> list[tuple[int, float, float]]:
    """(calls opened and closed, MiB of the service, MiB of its engine), at ten places on the way."""
    recorded, found = list(islice(read(), 40)), []
    hours = [next(line for line in call.system.splitlines() if line.startswith("Hours")) for call in recorded]
    environment = settings(model=str(model)) | SHORT_POOL
    async with local_server(print, environment) as server, Client(server.address) as client:
        (service,) = children(os.getpid())
        (engine,) = children(service)
        waiting, rng = deque[Any](), random.Random(1)
        for number in range(1, calls + OPEN + 1):
            at = number % len(recorded)
            call = client.call(system=hours[at], max_tokens=2, seed=number)
            waiting.append(call)
            await call.__aenter__()
            turn = await rng.choice(waiting).final(recorded[at].turns[0].text)
            async for _ in turn:
                pass
            if len(waiting) > OPEN:
                await waiting.popleft().__aexit__(None, None, None)
            closed = number - OPEN
            if closed >= 0 and closed % max(1, calls // 10) == 0:
                found.append((closed, resident_mib(service), resident_mib(engine)))
                print(f"{closed} calls closed: {found[-1][1]:.0f} and {found[-1][2]:.0f} MiB", flush=True)
        for call in waiting:
            await call.__aexit__(None, None, None)
    return found


WAKE_HEADER = [
    "tokens of the call",
    "was in",
    "wake ms",
    "first token ms",
    "warm, ms",
    "cold / warm",
    f"same, {REPLY_TOKENS} tokens",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("models/receptionist"))
    parser.add_argument("--rounds", type=int, default=12, help="0: leave first tokens out")
    parser.add_argument("--calls", type=int, default=5000, help="0: leave memory out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.rounds:
        wakes = wake_rows(measure_wakes(arguments.model, arguments.rounds))
        text = (
            f"{harness.table(WAKE_HEADER, wakes)}\n\nMedians of {arguments.rounds} rounds, CPU time of the engine's "
            "thread; ratios are paired, with their 95 % interval. What the wake took is done while the caller speaks; "
            "not announced, it is part of the first token."
        )
        harness.save("hibernation", "First tokens of calls that were quiet", text, {"wakes": wakes})
    if arguments.calls:
        memory = asyncio.run(measure_memory(arguments.model.resolve(), arguments.calls))
        table = harness.table(["calls opened and closed", "service MiB", "engine MiB"], memory)
        text = (
            f"{table}\n\n{OPEN} calls were open at any time, on a pool of {POOL_TOKENS} tokens, one of them replying "
            "at a time; proportional set size."
        )
        harness.save("hibernation_memory", "Memory over calls opened and closed", text, {"memory": memory})


if __name__ == "__main__":
    main()
