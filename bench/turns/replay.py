"""Plays recorded calls to a server, as a backend passes on what its recogniser says, and notes when answers came."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

from bench.turns.modes import Mode
from evals.calls import Heard, Kind, RecordedCall, SpokenTurn
from firstword import Call, CallError, Client, Notice, TextDelta, Tool, ToolCall, TurnReport

LISTENS_S = 0.05
"""Silence before the caller speaks again, not scaled: shorter than anybody's, so nothing is gained by waiting."""
READY_TOKENS = 2
"""Held when the final came: the first may be half a character, or open a tool call, which is sent when it is whole."""
ROOM = 1500
"""Tokens of a call behind which it ends: what comes next must fit."""


@dataclass
class Answer:
    """What came of one turn, milliseconds from the final on the client's clock: first_ms until there was text or a
    whole tool call, clause_ms until a clause was. said: text and tool calls, in order. speaks: whether it begins with
    text. held_tokens: of a reply made ahead when it was released. reported: the service's account.
    """

    turn: SpokenTurn
    first_ms: float
    clause_ms: float
    said: tuple[str, ...]
    speaks: bool
    held_tokens: int
    reported: TurnReport

    @property
    def token_ms(self) -> float:
        """Until the first token was there, on the service's clock: a tool call is sent when it is whole, so that the
        client cannot see its first token.
        """
        told = self.reported.timings.first_token_ms
        return self.first_ms if told is None else told

    @property
    def was_ready(self) -> bool:
        """Whether there was text when the final came, by what the reply held then, however long it took to be sent: a
        reply made ahead may be at its beginning, or hold part of a tool call.
        """
        return self.reported.answered_ahead and self.speaks and self.held_tokens >= READY_TOKENS


@dataclass
class Replay:
    """All answers in one mode, by (call, number of the turn). states: what became of the replies made ahead.
    held_tokens: of the one that was released last.
    """

    answers: dict[tuple[str, int], Answer] = field(default_factory=dict)
    states: Counter[str] = field(default_factory=Counter)
    held_tokens: int = 0

    def notice(self, notice: Notice | CallError) -> None:
        if isinstance(notice, CallError):
            raise notice
        if notice.kind == "answer_ahead":
            self.states[notice.details["state"]] += 1
            if notice.details["state"] == "released":
                self.held_tokens = notice.details["held_tokens"]


class Results:
    """The recorded results of a call's tools, for whatever calls the model makes: by tool, in turn."""

    def __init__(self, call: RecordedCall) -> None:
        self._outputs: dict[str, list[str]] = {}
        for tool, output in call.results:
            self._outputs.setdefault(tool, []).append(output)
        self._asked: Counter[str] = Counter()

    def of(self, tool: str) -> str:
        outputs = self._outputs.get(tool, ['{"ok": true}'])
        self._asked[tool] += 1
        return outputs[(self._asked[tool] - 1) % len(outputs)]


async def play(client: Client, recorded: RecordedCall, mode: Mode, speed: float, into: Replay) -> None:
    """One call. speed: how many times as fast as it was spoken; answers and pauses are not faster."""
    tools = [Tool(tool["name"], tool["description"], tool["parameters"]) for tool in recorded.tools]
    results = Results(recorded)
    opening = client.call(system=recorded.system, tools=tools, seed=0, progress_notices=True, on_notice=into.notice)
    async with opening as call:
        for number, turn in enumerate(recorded.turns):
            await asyncio.sleep(LISTENS_S)
            into.answers[recorded.name, number] = answer = await _one_turn(call, turn, mode, speed, results, into)
            if answer.reported.used_tokens > ROOM:
                break


async def _one_turn(call: Call, turn: SpokenTurn, mode: Mode, speed: float, results: Results, into: Replay) -> Answer:
    began = time.perf_counter()
    for heard in turn.events[:-1]:
        await _until(began + heard.at_ms / 1000 / speed)
        if heard.kind in mode.sends:
            await _pass_on(call, heard)
    await _until(began + turn.events[-1].at_ms / 1000 / speed)
    asked = await call.final(turn.text)
    first = clause = None
    said: list[str] = []
    speaks = False
    async for event in asked:
        now = time.perf_counter()
        match event:
            case TextDelta() if event.text or event.clause_ends:
                speaks = speaks or first is None
                first = first or (now if event.text else None)
                clause = clause or (now if event.clause_ends else None)
            case ToolCall():
                first, clause = first or now, clause or now
                said.append(f"{event.name} {event.arguments}")
                await call.tool_result(event, results.of(event.name))
    now = time.perf_counter()
    report = asked.report
    assert report is not None, asked.error
    first, clause = first or now, clause or now  # a reply without text; one clause that ends with the reply
    first_ms, clause_ms = 1e3 * (first - asked.sent_at), 1e3 * (clause - asked.sent_at)
    held = into.held_tokens if report.answered_ahead else 0
    return Answer(turn, first_ms, clause_ms, (*said, asked.text), speaks, held, report)


async def _pass_on(call: Call, heard: Heard) -> None:
    match heard.kind:
        case Kind.PARTIAL:
            await call.partial(heard.text, stable_code_points=heard.stable)
        case Kind.EAGER:
            await call.eager_end_of_turn(heard.text)
        case Kind.RESUMED:
            await call.turn_resumed()


async def _until(moment: float) -> None:
    """Not before so much on ``time.perf_counter()``."""
    await asyncio.sleep(max(0.0, moment - time.perf_counter()))


async def socket_ms(address: str, count: int = 200) -> list[float]:
    """Milliseconds from an event of a call to its answer, where nothing is asked of an engine: an interruption of what
    was heard to its end.
    """
    found = []
    async with Client(address) as client, client.call(system="You are polite.") as call:
        await call.say("One moment, please.")
        for _ in range(count):
            began = time.perf_counter()
            await call.interrupt(heard_text="One moment, please.")
            found.append(1e3 * (time.perf_counter() - began))
    return found
