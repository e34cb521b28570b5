"""The callers of a run: a fixed number of them, or arrivals at random, in a window of time that is measured."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from bench.load import scripts
from bench.load.accounts import Spoken
from bench.load.caller import Caller, Manner, until_moment
from bench.load.cpu import Meter, Shares
from bench.load.lines import Driver, Refused
from bench.load.scripts import Script
from evals.calls import RecordedCall
from firstword.errors import FirstwordError

CYCLE_S = 16.0
"""About what a turn takes: the caller speaks for six seconds and listens for the rest. Callers begin spread over it."""
RETRY_S = 5.0
"""After which a caller who was not let in tries again, where the service does not say."""
REDIAL_S = 1.0
"""From the end of a call to the next one of the same slot."""
POLL_S = 0.05
DRAIN_S = 4.0
"""Time that turns of the window have to be answered in behind its end, while the load goes on."""


NOT_OPEN = "not open when its first final was due"
"""An error of a call."""
REPLY_TOKENS = 25
"""About what a reply has, for the estimate of how long a call is."""


def mean_call_s(calls: Sequence[RecordedCall], manner: Manner) -> float:
    """About how long a call takes."""
    pause = sum(scripts.PAUSE_S) / 2
    spoken = [
        sum(turn.events[-1].at_ms / 1000 + REPLY_TOKENS / manner.rate + pause for turn in call.turns) for call in calls
    ]
    return sum(spoken) / len(spoken) / manner.speed


@dataclass(frozen=True)
class Window:
    """began, ended: ``time.perf_counter()``. cpu: meanwhile."""

    began: float
    ended: float
    cpu: Shares


class Population:
    """Whoever calls one driver, made in a running event loop. Everything drawn comes from ``seed``.

    turns: of all callers, as their finals fell due. refused: moments at which a call was not let in.
    """

    def __init__(self, driver: Driver, calls: list[RecordedCall], manner: Manner, seed: int = 0) -> None:
        self.manner = manner
        self.turns: list[Spoken] = []
        self.refused: list[float] = []
        self.errors: list[str] = []
        self._driver = driver
        self._calls = calls
        self._seed = seed
        self._changes: list[tuple[float, int]] = []
        self._opening: list[float] = []
        """When the first finals of the calls fall due that are not open yet."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fixed(self, number: int, began: float, warm_up_s: float) -> None:
        """So many callers at a time: where one hangs up the next one calls. They open their calls in the first half of
        the warm-up, most of them in the middle of a conversation, and first speak spread over a cycle behind it.
        """
        rng = random.Random(f"slots {self._seed}")
        for slot in range(number):
            opens = began + warm_up_s / 2 * slot / number
            speaks = began + warm_up_s / 2 + rng.uniform(0, CYCLE_S / self.manner.speed)
            self._start(self._slot(slot, opens, speaks))

    def poisson(self, rate: float, began: float, warm_up_s: float) -> None:
        """Calls arrive at ``rate`` a second, whatever becomes of them; one that is not let in is lost. As many as there
        are in the long run by Little's law are in progress when it begins.
        """
        rng = random.Random(f"in progress {self._seed}")
        for number in range(round(rate * mean_call_s(self._calls, self.manner))):
            script = scripts.script(self._calls, self._number(number, 1), midway=True)
            self._start(self._arrive(script, began + warm_up_s / 2 + rng.uniform(0, CYCLE_S / self.manner.speed)))
        self._start(self._arrivals(rate, began))

    async def measure(self, began: float, seconds: float) -> Window:
        """The window of so many seconds from ``began`` on. Ends every call. Raises what went wrong in a caller."""
        await self._until(began)
        meter = Meter()
        await self._until(began + seconds)
        ended, cpu = time.perf_counter(), meter.shares()
        for _ in range(round(DRAIN_S / POLL_S)):
            if self._answered(began, ended):
                break
            await asyncio.sleep(POLL_S)
        self.errors += [NOT_OPEN for due in self._opening if due < ended]
        gave_up = time.perf_counter()
        await self.hang_up()
        for turn in self.turns:
            turn.close(ended, gave_up)
        return Window(began, ended, cpu)

    def _answered(self, began: float, ended: float) -> bool:
        return all(turn.answered or turn.error for turn in self.within(began, ended))

    def within(self, began: float, ended: float) -> list[Spoken]:
        """The turns whose final was due in that time."""
        return [turn for turn in self.turns if began <= turn.due < ended]

    def mean_calls(self, began: float, ended: float) -> float:
        """Calls in progress, on average over that time."""
        total, now, at = 0.0, 0, began
        for moment, change in sorted(self._changes):
            moment = min(max(moment, began), ended)
            total += now * (moment - at)
            now, at = now + change, moment
        return (total + now * (ended - at)) / (ended - began)

    def calls_over_time(self, began: float) -> list[tuple[float, int]]:
        """(seconds since ``began``, calls in progress from then on)."""
        changes = sorted(self._changes)
        counts = itertools.accumulate(change for _, change in changes)
        return [(moment - began, count) for (moment, _), count in zip(changes, counts, strict=True)]

    async def hang_up(self) -> None:
        """End every call. Raises what went wrong in a caller."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._broken.done():
            self._broken.result()

    async def call(self, script: Script, speaks_at: float, until: float = float("inf")) -> float:
        """One call, from its opening to its end. The caller speaks when they do, whether or not the call is open by
        then. Returns when it was over by the caller's clock, however long it took to close it. Raises Refused.
        """
        due = speaks_at + script.turns[script.first_turn].events[-1].at_ms / 1000 / self.manner.speed
        async with AsyncExitStack() as stack:
            self._opening.append(due)
            try:
                line = await stack.enter_async_context(self._driver.line(script))
            finally:
                self._opening.remove(due)
            self._changes.append((time.perf_counter(), 1))
            caller = Caller(line, script, self.manner, self.turns.append)
            try:
                return await caller.converse(speaks_at, until)
            finally:
                caller.hang_up()
                self._changes.append((time.perf_counter(), -1))
                self.errors += line.errors

    async def _slot(self, slot: int, opens_at: float, speaks_at: float) -> None:
        await until_moment(opens_at)
        for ordinal in itertools.count():
            script = scripts.script(self._calls, self._number(slot, ordinal), midway=ordinal == 0)
            speaks_at = await self._insist(script, speaks_at) + REDIAL_S
            await until_moment(speaks_at)

    async def _insist(self, script: Script, speaks_at: float) -> float:
        """Call until it is taken. Returns when the call was over."""
        while True:
            try:
                return await self._one(script, speaks_at)
            except Refused as refused:
                again = self.refused[-1] + (RETRY_S if refused.retry_s is None else refused.retry_s)
            await until_moment(again)
            speaks_at = max(speaks_at, again)

    async def _one(self, script: Script, speaks_at: float) -> float:
        """One call; what ends it is counted. Returns when it was over. Raises Refused."""
        try:
            return await self.call(script, speaks_at)
        except Refused:
            self.refused.append(time.perf_counter())
            raise
        except FirstwordError as error:
            self.errors.append(str(error))
            return time.perf_counter()

    async def _arrivals(self, rate: float, began: float) -> None:
        rng = random.Random(f"arrivals {self._seed}")
        at = began
        for number in itertools.count():
            at += rng.expovariate(rate)
            await until_moment(at)
            self._start(self._arrive(scripts.script(self._calls, self._number(number, 0)), at))

    async def _arrive(self, script: Script, at: float) -> None:
        with contextlib.suppress(Refused):  # counted
            await self._one(script, at)

    def _number(self, slot: int, ordinal: int) -> int:
        return (self._seed * 10_000 + slot) * 1_000 + ordinal

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self._broken.done():
            self._broken.set_exception(error)

    async def _until(self, moment: float) -> None:
        """Wait, unless a caller breaks."""
        await asyncio.wait({self._broken}, timeout=max(0.0, moment - time.perf_counter()))
        if self._broken.done():
            await self.hang_up()
