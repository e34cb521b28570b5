"""A simulated caller: says what the script holds when it is due, and listens to what is spoken."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from bench.load.accounts import Spoken
from bench.load.lines import Asked, Line, Over, Reply, Text
from bench.load.playback import RATE, Playback, Said
from bench.load.scripts import Script
from bench.turns.replay import ROOM, Results
from evals.calls import Kind, SpokenTurn


@dataclass(frozen=True)
class Manner:
    """How callers behave. speed: how many times as fast as people they speak, listen and fetch what tools give. rate:
    tokens spoken in a second, at speed 1. sends: what a backend passes on of a turn, its final apart. lets_finish: a
    caller speaks over no reply before it is made, so that what is said depends on no timing. give_up_s: silence after
    which they hang up.
    """

    speed: float = 1.0
    rate: float = RATE
    sends: frozenset[Kind] = frozenset({Kind.PARTIAL, Kind.EAGER, Kind.RESUMED})
    lets_finish: bool = False
    give_up_s: float = 20.0


ALONE = Manner(speed=1000.0, sends=frozenset(), lets_finish=True)
"""One turn right behind the other, each told at its final."""


class Caller:
    """One call from the caller's side. tell: takes each turn as its final falls due."""

    def __init__(self, line: Line, script: Script, manner: Manner, tell: Callable[[Spoken], None]) -> None:
        self.line = line
        self.script = script
        self.manner = manner
        self.results = Results(script.recorded)
        self._tell = tell
        self._comparable = True
        self._tasks: set[asyncio.Task[None]] = set()

    def beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something while the call goes on."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def hang_up(self) -> None:
        """Whatever is still done beside the call is not wanted any more."""
        for task in self._tasks:
            task.cancel()

    async def converse(self, speaks_at: float, until: float = math.inf) -> float:
        """The call, until the last of it was heard, or to the end of the turn in which ``until`` falls. speaks_at: when
        the caller first makes a sound. Returns when it was over, by the clock of what was said.
        """
        over = speaks_at
        for number in range(self.script.first_turn, len(self.script.turns)):
            if speaks_at >= until:
                break
            ended = await self._turn(number, speaks_at)
            if ended is None:
                return time.perf_counter()
            over, speaks_at = ended, ended + self.script.pause_s(number) / self.manner.speed
        await until_moment(over)
        return over

    async def _turn(self, number: int, speaks_at: float) -> float | None:
        """Returns when the last of what the agent said was heard; None where the caller hangs up."""
        turn = self.script.turns[number]
        due = speaks_at + turn.events[-1].at_ms / 1000 / self.manner.speed
        await self._speak(turn, speaks_at)
        await until_moment(due)
        playback = Playback(self.manner.rate * self.manner.speed)
        spoken = Spoken(self.script.recorded.name, self.script.seed, number, due, playback)
        spoken.comparable = self._comparable
        self._tell(spoken)
        events = await self.line.final(turn.text)
        spoken.sent_at = time.perf_counter()
        ended = await _Listening(self, spoken, events).listen()
        self._comparable = spoken.comparable
        return ended

    async def _speak(self, turn: SpokenTurn, speaks_at: float) -> None:
        """What the recogniser makes of it, each event when it is due."""
        await until_moment(speaks_at)
        await self.line.speech_started()
        for heard in turn.events[:-1]:
            if heard.kind in self.manner.sends:
                await until_moment(speaks_at + heard.at_ms / 1000 / self.manner.speed)
                await self.line.hear(heard)


class _Listening:
    """One reply, from its final to where the caller speaks again."""

    def __init__(self, caller: Caller, spoken: Spoken, events: Reply) -> None:
        self._caller = caller
        self._line = caller.line
        self._spoken = spoken
        self._events = events
        self._said = Said()
        self._text = ""
        self._cut = caller.script.cut(spoken.number)
        self._patient_until = spoken.due + caller.manner.give_up_s
        self._over_at = spoken.due
        self._result_due: float | None = None
        self._tools = 0

    async def listen(self) -> float | None:
        """Returns when the last of it was heard; None where the caller hangs up."""
        spoken = self._spoken
        try:
            while not spoken.over:
                cut_at = self._cut_at()
                patient = self._patient_until if cut_at is None else min(cut_at, self._patient_until)
                try:
                    async with asyncio.timeout(max(0.0, patient - time.perf_counter())):
                        event = await self._events.get()
                except TimeoutError:
                    if cut_at is not None:
                        return await self._interrupt(cut_at)
                    spoken.error, spoken.gave_up = "gave up", time.perf_counter()
                    spoken.playback.broke_off(spoken.gave_up)
                    return None
                self._take(event)
            if spoken.error or spoken.account.used_tokens > ROOM:
                return None
            if (cut_at := self._cut_at()) is not None:
                return await self._interrupt(cut_at)
            return max(self._over_at, spoken.playback.ends_at or 0.0)
        finally:
            spoken.said.append(self._text)

    def _cut_at(self) -> float | None:
        """When the caller speaks over what is there by now, if they do: not where a tool has been called."""
        wants = self._cut is not None and not self._tools and self._said.length > self._cut
        if not wants or (self._caller.manner.lets_finish and not self._spoken.over):
            return None
        assert self._cut is not None
        return self._spoken.playback.when(self._said.tokens_at(self._cut))

    async def _interrupt(self, at: float) -> float:
        assert self._cut is not None
        await until_moment(at)
        spoken = self._spoken
        spoken.interrupted = True
        spoken.playback.cut(at)
        await self._line.interrupt(self._cut)
        if not spoken.over:
            spoken.comparable, spoken.over = False, True
            self._caller.beside(self._account())
        return at

    async def _account(self) -> None:
        """Wait for the account of a reply that was cut while it was made."""
        while not isinstance(event := await self._events.get(), Over):
            pass
        self._spoken.account = event.account

    def _take(self, event: Text | Asked | Over) -> None:
        spoken = self._spoken
        self._patient_until = event.at + self._caller.manner.give_up_s
        match event:
            case Text():
                self._said.grow(len(event.text), event.tokens)
                self._text += event.text
                if event.text and spoken.first_text is None:
                    spoken.first_text = event.at
                for end in event.clause_ends:
                    self._clause(event.at, self._said.tokens_at(end))
            case Asked():
                spoken.first_tool = spoken.first_tool or event.at
                spoken.said.append(f"{event.name} {event.arguments}")
                spoken.playback.asked_tool(event.at)
                self._fetch(event)
            case Over():
                spoken.over, spoken.account, spoken.error = True, event.account, event.error
                self._over_at = event.at
                if not event.error:
                    self._clause(event.at, self._said.tokens)

    def _clause(self, at: float, tokens: float) -> None:
        """So many tokens are there as whole clauses."""
        if tokens <= 0:
            return
        spoken = self._spoken
        if spoken.first_clause is None:
            spoken.first_clause = at
        if self._result_due is not None:
            spoken.after_tools.append(at - self._result_due)
            self._result_due = None
        spoken.playback.clause(at, tokens)

    def _fetch(self, asked: Asked) -> None:
        """The tool takes its time; its result is sent when it is due."""
        script, speed = self._caller.script, self._caller.manner.speed
        due = asked.at + script.tool_s(self._spoken.number, self._tools) / speed
        self._tools += 1
        self._result_due = max(due, self._result_due or due)
        self._patient_until = self._result_due + self._caller.manner.give_up_s
        output = self._caller.results.of(asked.name)
        self._caller.beside(self._answer(asked, due, output))

    async def _answer(self, asked: Asked, due: float, output: str) -> None:
        await until_moment(due)
        await self._line.tool_result(asked, output)


async def until_moment(moment: float) -> None:
    """Not before so much on ``time.perf_counter()``."""
    if (seconds := moment - time.perf_counter()) > 0:
        await asyncio.sleep(seconds)
