"""Plays a recorded call to a server: the caller's lines come from the record, the replies are made now."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable

from firstword import Call, Client
from firstword.talk.exchange import Exchange, Piece, ToolUse, facts
from firstword.talk.front_desk import FrontDesk
from firstword.talk.playback import Playback
from firstword.talk.script import Script

WORD_S = 0.05
"""From one hypothesis of the recorded caller to the next: eight times as fast as people speak, as nobody listens."""

PAUSE_S = 0.05
"""From when the caller has probably finished to when it is certain: 400 ms, as fast as the words."""

INTERRUPTED_AFTER_S = 1.5
"""How long a reply has been spoken when the caller speaks over it."""

SHORTEST_INTERRUPTED = 30
"""Code points that a reply needs to be worth speaking over."""

INDENT = " " * 12


class DemoError(Exception):
    """The recorded call could not be held to its end."""


class RecordedCall:
    """Holds one call of a script, once. say: gets the transcript, line by line."""

    def __init__(self, script: Script, say: Callable[[str], None]) -> None:
        self._script = script
        self._say = say
        self._desk = FrontDesk(script.results)
        self._interrupted = False

    async def play(self, address: str) -> list[Exchange]:
        """All of the caller's lines, one turn after another. Raises DemoError and what the client raises."""
        held: list[Exchange] = []
        async with (
            Client(address) as client,
            client.call(system=self._script.system, tools=self._script.tools, temperature=0.0, seed=1) as call,
        ):
            self._say(f"{len(self._script.lines)} lines of a recorded caller; {call.opened.model} answers them now.")
            self._say("The caller speaks eight times as fast as people do, and over one of the replies.")
            for number, line in enumerate(self._script.lines, 1):
                last = number == len(self._script.lines)
                exchange = await self._turn(call, line, interruptible=not last and number > 1)
                held.append(exchange)
                for text in transcript(exchange, number):
                    self._say(text)
        return held

    async def _turn(self, call: Call, line: str, *, interruptible: bool) -> Exchange:
        """The caller says a line, word by word, and hears the reply, or the beginning of it."""
        words = line.split()
        for count in range(1, len(words) + 1):
            await call.partial(" ".join(words[:count]))
            await asyncio.sleep(WORD_S)
        await call.eager_end_of_turn(line)
        await asyncio.sleep(PAUSE_S)
        exchange = Exchange(line)

        async def answer(use: ToolUse) -> None:
            use.output = self._desk.answer(use.call.name) or '{"ok": true}'
            await call.tool_result(use.call, use.output)

        await exchange.follow(await call.final(line), answer)
        if exchange.turn is None or exchange.turn.report is None or not (exchange.text or exchange.tools):
            raise DemoError(f"nothing came of {line!r}")
        if interruptible and not self._interrupted and len(exchange.text) >= SHORTEST_INTERRUPTED:
            self._interrupted = True
            playback = Playback()
            playback.arrived(time.perf_counter(), len(exchange.text))
            await asyncio.sleep(INTERRUPTED_AFTER_S)
            heard = playback.heard(time.perf_counter())
            exchange.held = (await call.interrupt(heard_code_points=heard)).text
        return exchange


def transcript(exchange: Exchange, number: int) -> list[str]:
    """A turn in lines of text: what was said, what the tools were asked, and the turn's numbers."""
    lines = [f"\n{number:2}  caller  {exchange.line}"]
    spoken = ""
    for part in exchange.parts:
        if isinstance(part, Piece):
            spoken += part.text
            continue
        if spoken.strip():
            lines.append(f"    agent   {spoken.strip()}")
        lines.append(f"    tool    {part} -> {part.output or 'no answer'}")
        spoken = ""
    if spoken.strip():
        lines.append(f"    agent   {spoken.strip()}")
    if exchange.held is not None:
        lines.append(f"    caller  speaks over it: the history holds {exchange.held.strip()!r}")
    lines += [f"{INDENT}({notice})" for notice in exchange.notices]
    lines.append(INDENT + " | ".join(f"{what} {value}" for what, value in facts(exchange)))
    return lines


def summary(held: list[Exchange]) -> str:
    """All turns in one line: median time to first text, tokens a second while generating, share drafted."""
    reports = [
        exchange.turn.report for exchange in held if exchange.turn is not None and exchange.turn.report is not None
    ]
    first_ms = [exchange.first_text_ms for exchange in held if exchange.first_text_ms is not None]
    tokens = sum(report.usage.completion_tokens for report in reports)
    drafted = sum(report.drafting.accepted_tokens for report in reports if report.drafting is not None)
    # Decoding is timed from the first token of a turn, so that one is not counted.
    rated = [(report.usage.completion_tokens - 1, report.timings.decode_ms or 0.0) for report in reports]
    seconds = sum(ms for _, ms in rated) / 1000
    parts = [f"{len(held)} turns"]
    if first_ms:
        parts.append(f"first text after {statistics.median(first_ms):.1f} ms (median)")
    if seconds:
        parts.append(f"{sum(count for count, ms in rated if ms) / seconds:.0f} tokens/s")
    return " | ".join((*parts, f"{drafted / max(1, tokens):.0%} of {tokens} tokens drafted"))
