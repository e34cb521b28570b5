"""One turn of a conversation as the client saw it: what was said, by whose guess, and how long it took."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from firstword import Interrupted, Notice, TextDelta, ToolCall, Turn, TurnEvent, Waiting

PROGRESS = ("prefilled_ahead", "answer_ahead")
"""Kinds of notices that are shown elsewhere, while they are news."""


@dataclass(frozen=True)
class Piece:
    """Text of a reply. drafted: a drafter had guessed its tokens, and the target chose the same."""

    text: str
    drafted: bool


@dataclass
class ToolUse:
    """A tool call and its output; None while it is waited for."""

    call: ToolCall
    output: str | None = None

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={json.dumps(value)}" for name, value in self.call.arguments.items())
        return f"{self.call.name}({arguments})"


@dataclass
class Exchange:
    """The caller's line and what came of it. Times are milliseconds from the final event, on the client's clock.

    held: what the history holds of the reply, once it was cut; None: it was not. problem: why it failed; empty: it did
    not. changed: called after each event.
    """

    line: str
    parts: list[Piece | ToolUse] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    turn: Turn | None = None
    first_text_ms: float | None = None
    first_clause_ms: float | None = None
    held: str | None = None
    problem: str = ""
    changed: Callable[[], None] = lambda: None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, Piece))

    @property
    def tools(self) -> list[ToolUse]:
        return [part for part in self.parts if isinstance(part, ToolUse)]

    async def follow(self, turn: Turn, answer: Callable[[ToolUse], Awaitable[None]]) -> None:
        """Take the turn's events to its end. answer: sends the output of a tool call; may take its time.

        Raises what the iteration of a turn raises.
        """
        self.turn = turn
        answers = []
        try:
            async for event in turn:
                self.take(event, turn.sent_at)
                if isinstance(event, ToolCall):
                    answers.append(asyncio.ensure_future(answer(self.tools[-1])))
                self.changed()
            if self.first_clause_ms is None and self.first_text_ms is not None:
                self.first_clause_ms = (time.perf_counter() - turn.sent_at) * 1000  # the whole reply is one clause
        finally:
            for waiting in answers:
                waiting.cancel()  # a turn that is over waits for no result
            await asyncio.gather(*answers, return_exceptions=True)
            self.changed()

    def take(self, event: TurnEvent, sent_at: float) -> None:
        """Take one event of the turn, which was asked for at ``sent_at`` (``time.perf_counter()``)."""
        match event:
            case TextDelta():
                passed_ms = (event.received_at - sent_at) * 1000
                if event.text and self.first_text_ms is None:
                    self.first_text_ms = passed_ms
                if event.clause_ends and self.first_clause_ms is None:
                    self.first_clause_ms = passed_ms
                self._grow(event)
            case ToolCall():
                self.parts.append(ToolUse(event))
            case Interrupted():
                self.held = event.text
            case Notice():
                if event.kind not in PROGRESS:
                    self.notices.append(event.message)
            case Waiting():
                pass

    def _grow(self, delta: TextDelta) -> None:
        """Add a delta's text by who found it; what the same one found is one piece."""
        begin = 0
        for length, drafted in delta.spans:
            text = delta.text[begin : begin + length]
            begin += length
            last = self.parts[-1] if self.parts else None
            if isinstance(last, Piece) and last.drafted == drafted:
                self.parts[-1] = Piece(last.text + text, drafted)
            else:
                self.parts.append(Piece(text, drafted))


def facts(exchange: Exchange) -> list[tuple[str, str]]:
    """(what, how much) of the turn's numbers as far as they are known, for people. A step is one forward pass."""
    shown = [("first", f"text {_ms(exchange.first_text_ms)}, clause {_ms(exchange.first_clause_ms)}")]
    report = exchange.turn.report if exchange.turn is not None else None
    if report is None:
        return shown
    usage, drafting = report.usage, report.drafting
    if drafting is not None and drafting.steps:
        tokens = usage.completion_tokens
        shown.append(("reply", f"{tokens} tokens in {drafting.steps} steps, {tokens / drafting.steps:.1f} each"))
        guesses = (
            f", {drafting.accepted_tokens} of {drafting.drafted_tokens} guesses" if drafting.drafted_tokens else ""
        )
        shown.append(("drafted", f"{drafting.accepted_tokens / max(1, tokens):.0%}{guesses}"))
    shown.append(("prompt", f"{usage.prompt_tokens} tokens, {usage.cached_tokens} cached"))
    if usage.prefilled_ahead_tokens or usage.wasted_ahead_tokens:
        made = ", reply made" if report.answered_ahead else ""
        dropped = f", {usage.wasted_ahead_tokens} dropped" if usage.wasted_ahead_tokens else ""
        shown.append(("ahead", f"{usage.prefilled_ahead_tokens} tokens heard{made}{dropped}"))
    if exchange.tools:
        shown.append(("tools", f"{len(exchange.tools)} called"))
    return shown


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"
