"""One turn of the agent: what it has said, which tools it waits for, and how much of it was heard.

A reply is one segment per generation: text, then perhaps tool calls whose results the next segment answers. Knows
tokens and text; sends nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING

from engine.records import Progress
from engine.text.codec import IncrementalDecoder
from service.client_events import Heard
from service.heard import Hearing
from service.items import ToolCallItem, ToolResultItem
from service.options import Generation
from service.server_events import AnswerSource, TurnEnd
from service.telemetry import TurnRecord

if TYPE_CHECKING:
    from service.call_services import Record
    from service.shadow import Shadow


class Phase(enum.Enum):
    """generating: the engine is at it. waiting: for tool results. over: nothing more will be said."""

    GENERATING = "generating"
    WAITING = "waiting"
    OVER = "over"


@dataclass(frozen=True)
class Steps:
    """Steps of a generation that are told as one. Only the last may have tool calls."""

    progress: tuple[Progress, ...]


RecordSink = Callable[["Segment", "Record | Steps"], None]
"""Takes what an engine says of a generation."""


@dataclass(frozen=True)
class Gain:
    """Tokens of a reply, and how many of them the drafter had guessed."""

    tokens: int
    accepted: int


@dataclass(eq=False)
class Segment:
    """One generation.

    number: its name at the engine. start: where its own tokens begin in the log. item_id: of its message in the
    history. foreign: its tokens are another model's ids. may_call: whether it may call tools. clause_ends: that were
    told. decoder: over all its tokens, to know which text the drafter had guessed. unsent: tokens behind text that was
    not emitted yet. standing_in: calls that are waited for, in whose place something else is among the results.
    """

    number: int
    start: int
    item_id: str
    decoder: IncrementalDecoder | None = None
    foreign: bool = False
    may_call: bool = True
    clause_ends: int = 0
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    calls: list[ToolCallItem] = field(default_factory=list)
    malformed_calls: int = 0
    results: dict[str, ToolResultItem] = field(default_factory=dict)
    standing_in: set[str] = field(default_factory=set)
    wants_reply: bool = False
    unsent: Gain = Gain(0, 0)
    _drafted: bytearray = field(default_factory=bytearray)
    """Per code point of the raw text: 1 where the drafter had guessed its token."""

    @property
    def outstanding(self) -> list[ToolCallItem]:
        return [call for call in self.calls if call.call_id not in self.results or call.call_id in self.standing_in]

    @property
    def answered(self) -> bool:
        """Whether any of its calls has a result."""
        return len(self.results) > len(self.standing_in)

    def stands_in_for(self, call_id: str) -> bool:
        """Whether something is there instead of the result of a call."""
        return call_id in self.results and self.results[call_id].stands_in

    def answer(self, result: ToolResultItem, *, outstanding: bool = False) -> None:
        """A result is there, which takes over the id of what stood in for it where it has none, or what stands in for
        it. outstanding: the call is still waited for.
        """
        standing = self.results.get(result.call_id)
        self.results[result.call_id] = result if result.id or standing is None else replace(result, id=standing.id)
        (self.standing_in.add if outstanding else self.standing_in.discard)(result.call_id)

    def grow(self, tokens: Sequence[int], accepted: int, text: str) -> tuple[tuple[int, bool], ...]:
        """Take one step's tokens, the first ``accepted`` of which were guessed, and the text that became safe to emit.

        Returns that text in pieces, as (length, guessed).
        """
        self.tokens += tokens
        self.unsent = Gain(self.unsent.tokens + len(tokens), self.unsent.accepted + accepted)
        if self.decoder is not None:
            for index, token in enumerate(tokens):
                self._drafted += bytes([index < accepted]) * len(self.decoder.push(token))
        start = len(self.text)
        self.text += text
        flags = self._drafted[start : start + len(text)].ljust(len(text), b"\0")
        return tuple((len(list(run)), bool(drafted)) for drafted, run in groupby(flags))

    def read_again(self, decoder: IncrementalDecoder) -> None:
        """Bring a decoder to where its tokens end. Which of them were guessed is not known any more."""
        self.decoder = decoder
        self._drafted = bytearray(sum(len(decoder.push(token)) for token in self.tokens))

    def take_unsent(self) -> Gain:
        """The tokens behind the text that is emitted now."""
        unsent, self.unsent = self.unsent, Gain(0, 0)
        return unsent


@dataclass(eq=False)
class Reply:
    """turn_id: the client's name for it. begin: length of the log before the turn, the caller's message included;
    before: length before the prompt that asks for the reply.

    speaking_rate: as in ``records.Submit``. played: code points that playback progress has reported; None while it
    has not. hearing: the word timings. cut: where the caller spoke over it, in code points, and kept: the text that
    the history holds since; None when it was not interrupted. cut_by: why it was cut; ending: why it ends otherwise.
    source: who answers. answerer: the other model that does, if one does. mode: how it was drafted last, empty while
    it was not. item_ids: what the turn has left in the history, once a newer one has begun. settled: the history has
    been edited since, and what it holds of the turn is not touched any more.
    """

    turn_id: int
    begin: int
    before: int
    generation: Generation
    record: TurnRecord
    deadline: float = 0.0
    speaking_rate: float = 0.0
    source: AnswerSource = AnswerSource.MODEL
    answerer: Shadow | None = None
    phase: Phase = Phase.GENERATING
    mode: str = ""
    segments: list[Segment] = field(default_factory=list)
    played: int | None = None
    hearing: Hearing = field(default_factory=Hearing)
    cut: int | None = None
    kept: str | None = None
    cut_by: TurnEnd = TurnEnd.INTERRUPTED
    ending: TurnEnd | None = None
    item_ids: tuple[str, ...] | None = None
    settled: bool = False

    def settle(self, item_ids: tuple[str, ...], kept: str) -> None:
        """The client has edited the history from here on, or goes on behind it. kept: what that holds of the text."""
        self.settled, self.kept = True, kept
        self.item_ids = item_ids if self.item_ids is None else self.item_ids

    def rename(self, ids: Mapping[str, str]) -> None:
        """What the turn has put into the history has other names now."""

        def named(item_id: str) -> str:
            return ids.get(item_id, item_id)

        for segment in self.segments:
            segment.item_id = named(segment.item_id)
            segment.calls = [replace(call, id=named(call.id)) for call in segment.calls]
            segment.results = {key: replace(result, id=named(result.id)) for key, result in segment.results.items()}

    @property
    def generated(self) -> bool:
        """Whether a model makes it."""
        return self.source in (AnswerSource.MODEL, AnswerSource.FALLBACK_MODEL)

    @property
    def current(self) -> Segment:
        return self.segments[-1]

    @property
    def outstanding(self) -> list[ToolCallItem]:
        """Tool calls whose results are still to come. Only the newest generation has any."""
        return self.current.outstanding if self.segments else []

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)

    @property
    def is_open(self) -> bool:
        """Whether a new turn would cut it: there is more to come, or playback was reported and not to the end."""
        if self.settled:
            return False
        unheard = self.played is not None and self.played < len(self.text)
        spoken_over = self.cut is not None and (self.cut_by is TurnEnd.INTERRUPTED or self.cut < len(self.text))
        return self.phase is not Phase.OVER or (unheard and not spoken_over)

    @property
    def output_tokens(self) -> int:
        return sum(len(segment.tokens) for segment in self.segments)

    def heard_chars(self, heard: Heard | None, path: str = "") -> int:
        """How many code points of the text that was emitted the caller has heard.

        Without ``heard`` as far as playback was reported, or all of it; and at least as far as was reported where not
        all of ``heard`` is found in the text. Raises Problem, which names the field under ``path``, for milliseconds
        without word timings.
        """
        text = self.text
        if heard is None:
            return len(text) if self.played is None else min(self.played, len(text))
        found = self.hearing.extent(text, heard, path)
        return found.chars if found.certain else max(found.chars, self.played or 0)
