"""One turn of the agent: what it has said, which tools it waits for, and how much of it was heard.

A reply is one segment per generation: text, then perhaps tool calls whose results the next segment answers. Knows
tokens and text; sends nothing.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from engine.text.codec import IncrementalDecoder
from service.events import Generation, Heard, WordTiming
from service.items import ToolCallItem, ToolResultItem
from service.problems import invalid
from service.telemetry import TurnRecord


class Phase(enum.Enum):
    """generating: the engine is at it. waiting: for tool results. over: nothing more will be said."""

    GENERATING = "generating"
    WAITING = "waiting"
    OVER = "over"


@dataclass(eq=False)
class Segment:
    """One generation.

    number: its name at the engine. start: where its own tokens begin in the log. item_id: of its message in the
    history. decoder: over all its tokens, to know which text the drafter had guessed.
    """

    number: int
    start: int
    item_id: str
    decoder: IncrementalDecoder | None = None
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    calls: list[ToolCallItem] = field(default_factory=list)
    results: dict[str, ToolResultItem] = field(default_factory=dict)
    wants_reply: bool = False
    _drafted: bytearray = field(default_factory=bytearray)
    """Per code point of the raw text: 1 where the drafter had guessed its token."""

    @property
    def outstanding(self) -> list[ToolCallItem]:
        return [call for call in self.calls if call.call_id not in self.results]

    def grow(self, tokens: Sequence[int], accepted: int, text: str) -> tuple[tuple[int, bool], ...]:
        """Take one step's tokens, the first ``accepted`` of which were guessed, and the text that became safe to emit.

        Returns that text in pieces, as (length, guessed).
        """
        self.tokens += tokens
        if self.decoder is not None:
            for index, token in enumerate(tokens):
                self._drafted += bytes([index < accepted]) * len(self.decoder.push(token))
        start = len(self.text)
        self.text += text
        flags = self._drafted[start : start + len(text)].ljust(len(text), b"\0")
        return tuple((len(list(run)), bool(drafted)) for drafted, run in groupby(flags))


@dataclass(eq=False)
class Reply:
    """turn_id: the client's name for it. begin: length of the log before the turn, the caller's message included;
    before: length before the prompt that asks for the reply.

    played: code points that playback progress has reported; None while it has not. cut: where the caller spoke over it,
    in code points, and kept: the text that the history holds since; None when it was not interrupted.
    """

    turn_id: int
    begin: int
    before: int
    generation: Generation
    record: TurnRecord
    deadline: float = 0.0
    generated: bool = True
    phase: Phase = Phase.GENERATING
    segments: list[Segment] = field(default_factory=list)
    played: int | None = None
    words: list[WordTiming] = field(default_factory=list)
    cut: int | None = None
    kept: str | None = None
    reported: bool = False

    @property
    def current(self) -> Segment:
        return self.segments[-1]

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)

    @property
    def output_tokens(self) -> int:
        return sum(len(segment.tokens) for segment in self.segments)

    def heard_chars(self, heard: Heard | None) -> int:
        """How many code points of the text that was emitted the caller has heard.

        Without ``heard`` as far as playback was reported, or all of it. Raises Problem for a text that is not how the
        turn begins, and for milliseconds without word timings.
        """
        text = self.text
        if heard is None:
            return len(text) if self.played is None else min(self.played, len(text))
        self._learn(heard.words)
        if heard.text is not None:
            return _prefix_chars(text, heard.text)
        if heard.chars is not None:
            return min(heard.chars, len(text))
        if not self.words:
            raise invalid("heard.played_ms", "needs word timings, and none of this turn are known")
        ends = _word_ends(text, self.words)
        spoken = [end for end, word in zip(ends, self.words, strict=True) if word.end_ms <= (heard.played_ms or 0)]
        return max(spoken, default=0)

    def _learn(self, words: Sequence[WordTiming]) -> None:
        """Timings that came later are added behind, or replace the ones from their first place on."""
        if words:
            self.words = [word for word in self.words if word.end_ms < words[0].end_ms] + list(words)


def _prefix_chars(text: str, spoken: str) -> int:
    """Length of the beginning of ``text`` that reads like ``spoken`` but for case, punctuation and spacing.

    Raises Problem where the two differ in a letter or a digit.
    """
    at = 0
    for char in filter(str.isalnum, spoken):
        while at < len(text) and not text[at].isalnum():
            at += 1
        if at == len(text):
            break
        if text[at].casefold() != char.casefold():
            raise invalid("heard.text", "is not how the turn's text begins")
        at += 1
    return at if any(map(str.isalnum, text[at:])) else len(text)


def _word_ends(text: str, words: Sequence[WordTiming]) -> list[int]:
    """Where each word ends in ``text``, in code points; a word that is not found ends where the one before it does."""
    ends: list[int] = []
    at = 0
    for word in words:
        if word.end_chars is not None:
            at = min(word.end_chars, len(text))
        elif (found := re.compile(re.escape(word.word), re.IGNORECASE).search(text, at)) is not None:
            at = found.end()
        ends.append(at)
    return ends
