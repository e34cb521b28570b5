"""The memory of a service whose calls come and go, many more of them open than its page pool holds."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.hibernation.conversing import AT_A_TIME, Callers, Talk, ask, environment
from bench.hibernation.processes import resident_mib, service_and_engine
from firstword import Call, Client
from firstword.serve import local_server

OPEN = 140
POOL_TOKENS = 1024
HOST_BYTES = 16 << 20
MAX_TOKENS = 2
SAMPLES = 100
WARM_UP = 0.1
"""Of all calls, the first ones of a process, in which it fills its pools and caches: they say nothing of a slope."""
FLAT = 0.02
"""Of what a process has in memory, what it may gain over all calls to be called flat, at the upper end."""
FEWEST = 8
"""Samples from which a slope is told."""


@dataclass(frozen=True)
class Sample:
    """process: which service it was, where a run that was cut off went on with another. closed, errors: so far, of its
    calls.
    """

    process: int
    closed: int
    service_mib: float
    engine_mib: float
    errors: int


async def measure(
    model: Path, calls: int, process: int, every: int, deadline: float, take: Callable[[Sample], None]
) -> None:
    """Open and close ``calls`` calls on a new service, or as many as there is time for. take: is told each sample."""
    talk, callers, rng, numbers = Talk(), Callers(), random.Random(process), itertools.count()
    waiting, gone = deque[tuple[int, Call]](), 0
    async with (
        local_server(print, environment(model, POOL_TOKENS, HOST_BYTES)) as server,
        Client(server.address) as client,
    ):
        service, engine = service_and_engine()

        def sample() -> None:
            take(Sample(process, gone, resident_mib(service), resident_mib(engine), talk.errors.total()))

        async def visit() -> None:
            """Calls come, another one that is open speaks, and the oldest goes."""
            nonlocal gone
            for number in numbers:
                if gone >= calls or time.monotonic() > deadline:
                    return
                call = client.call(system=callers.system(number), max_tokens=MAX_TOKENS, seed=number)
                await call.__aenter__()
                await ask(call, talk, number, 0, callers.line(number, 0), announced=False)
                if waiting:
                    at = rng.randrange(len(waiting))
                    older, spoken = waiting[at]
                    del waiting[at]  # nobody else asks it, or hangs up, meanwhile
                    await ask(spoken, talk, older, 1, callers.line(older, 1), announced=True)
                    waiting.insert(min(at, len(waiting)), (older, spoken))
                waiting.append((number, call))
                if len(waiting) > OPEN:
                    _, oldest = waiting.popleft()
                    await oldest.__aexit__(None, None, None)
                    gone += 1
                    if gone % every == 0:
                        sample()

        await asyncio.gather(*(visit() for _ in range(AT_A_TIME)))
        sample()
        for _, call in waiting:
            await call.__aexit__(None, None, None)


def closed(samples: Sequence[Sample]) -> int:
    """Calls, of all processes."""
    return sum(last.closed for last in lasts(samples))


def lasts(samples: Sequence[Sample]) -> list[Sample]:
    """The last sample of each process."""
    return list({sample.process: sample for sample in sorted(samples, key=lambda one: one.closed)}.values())


@dataclass(frozen=True)
class Slope:
    """MiB for a call, with the ends of its 95 % interval; mean: MiB that there are."""

    each: float
    low: float
    high: float
    mean: float

    def is_flat(self, calls: int) -> bool:
        return self.high * calls <= FLAT * self.mean


def fitted(samples: Sequence[Sample], of: Callable[[Sample], float], warm_up: int) -> Slope | None:
    """The least-squares line behind the warm-up, one slope for all processes, each with a height of its own; None for
    too few samples.
    """
    xs: list[float] = []
    ys: list[float] = []
    heights = 0
    for process in {sample.process for sample in samples}:
        own = [sample for sample in samples if sample.process == process and sample.closed > warm_up]
        if not own:
            continue
        heights += 1
        x_mean, y_mean = statistics.mean(s.closed for s in own), statistics.mean(of(s) for s in own)
        xs += [sample.closed - x_mean for sample in own]
        ys += [of(sample) - y_mean for sample in own]
    free = len(xs) - heights - 1
    if len(xs) < FEWEST or not (spread := sum(x * x for x in xs)):
        return None
    each = sum(x * y for x, y in zip(xs, ys, strict=True)) / spread
    rest = sum((y - each * x) ** 2 for x, y in zip(xs, ys, strict=True))
    error = 1.96 * math.sqrt(rest / free / spread)
    return Slope(each, each - error, each + error, statistics.mean(map(of, samples)))
