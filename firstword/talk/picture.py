"""Draws a live conversation: the real view, without a terminal, on a real server, with a recorded caller."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from textual.containers import VerticalScroll
from textual.pilot import Pilot
from textual.widgets import Input

from firstword import Client
from firstword.talk.app import EAGER_AFTER_S, FRAMES_A_SECOND, TalkApp, call_of
from firstword.talk.hearing import Hearing
from firstword.talk.recorded import SHORTEST_INTERRUPTED, WORD_S, DemoError
from firstword.talk.script import Script
from firstword.talk.view import TurnRow

WIDTH, HEIGHT = 124, 60
TURNS = 5
"""Of the recorded call: what fits on one picture."""

RATE = 30.0
"""Characters spoken a second: twice what people hear, as nobody listens."""

OVERHEARD = 0.45
"""Share of a reply that has been spoken when the caller speaks over it, and of the last one when it is drawn."""

WAIT_S = 30.0


async def draw(address: str, script: Script, svg: Path) -> None:
    """Hold the first turns of a recorded call at ``address`` and write the picture of it.

    The caller speaks over one of the replies, and the last one is still being spoken. Raises DemoError and what the
    client raises.
    """
    hearing = Hearing()
    async with (
        Client(address) as client,
        call_of(client, script, hearing, temperature=0.0, seed=1) as call,
    ):
        app = TalkApp(call, script, RATE, hearing)
        async with app.run_test(size=(WIDTH, HEIGHT)) as pilot:
            await _Sitter(app, pilot).sit(script.lines[:TURNS])
            drawn = app.svg()
    await asyncio.to_thread(svg.parent.mkdir, parents=True, exist_ok=True)
    await asyncio.to_thread(svg.write_text, drawn, encoding="utf-8")


class _Sitter:
    """Types what the recorded caller says, and waits for what comes of it."""

    def __init__(self, app: TalkApp, pilot: Pilot[None]) -> None:
        self._app = app
        self._pilot = pilot

    async def sit(self, lines: Sequence[str]) -> None:
        """Hold the turns, speaking over one reply, and stop while the last one is being spoken."""
        interrupted = speak_over = False
        for number, line in enumerate(lines, 1):
            row = await self.say(line, at_once=speak_over)
            length = len(row.exchange.text)
            speak_over = not interrupted and number > 1 and length >= SHORTEST_INTERRUPTED
            interrupted |= speak_over
            await self.listen(row, OVERHEARD if speak_over or number == len(lines) else 1.0)
        await self.fit()

    async def listen(self, row: TurnRow, share: float) -> None:
        """Until that share of the reply has been spoken."""
        wanted = share * len(row.exchange.text)
        await self.wait(lambda: row.heard >= wanted, f"the reply to {row.exchange.line!r} is not spoken")

    async def say(self, line: str, *, at_once: bool) -> TurnRow:
        """Type a line word by word, end the turn, at once or after a pause, and wait until the reply is made."""
        before, field, words = self._app.row, self._app.query_one(Input), line.split()
        for count in range(1, len(words) + 1):
            field.value = " ".join(words[:count])
            await self._pilot.pause(WORD_S)
        if not at_once:
            await self._pilot.pause(2 * EAGER_AFTER_S)
        await self._pilot.press("enter")
        await self.wait(lambda: self._app.row is not before and _made(self._app.row), f"no reply to {line!r}")
        row = self._app.row
        assert row is not None
        if row.exchange.problem:
            raise DemoError(f"{line!r}: {row.exchange.problem}")
        return row

    async def wait(self, done: Callable[[], bool], failure: str) -> None:
        """Until it is so. Raises DemoError, with ``failure``, when it takes too long."""
        end = time.monotonic() + WAIT_S
        while not done():
            if time.monotonic() > end:
                raise DemoError(failure)
            await self._pilot.pause(1 / FRAMES_A_SECOND)

    async def fit(self) -> None:
        """Make the screen as high as the conversation."""
        log = self._app.query_one("#log", VerticalScroll)
        content = max(child.virtual_region_with_margin.bottom for child in log.children)
        await self._pilot.resize_terminal(WIDTH, HEIGHT - log.size.height + content)
        await self._pilot.pause()


def _made(row: TurnRow | None) -> bool:
    """The reply has arrived whole, or failed."""
    if row is None:
        return False
    return bool(row.exchange.problem) or (row.exchange.turn is not None and row.exchange.turn.over)
