"""A call as it can be written down and made again: what its records hold, and how they add up.

A record's deltas say what has changed. Each of their parts stands for itself: it replaces what was there from a given
place on, so that a delta which is applied a second time changes nothing. Knows no signature and no store.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from service.client_events import Generate, Open, Update, WordTiming
from service.conversation import Span
from service.items import Item, ToolCallItem, ToolDefinition, ToolResultItem
from service.options import Generation
from service.reply import Phase
from service.server_events import AnswerSource, TurnEnd


@dataclass(frozen=True)
class Written:
    """What stands before the history, as ``service.instructions.Instructions`` has it."""

    system: str
    tools: tuple[ToolDefinition, ...]
    items: tuple[Item, ...]
    summary: str


@dataclass(frozen=True)
class SegmentState:
    """A ``service.reply.Segment``. results: in the order in which they came. standing_in: ids of calls."""

    number: int
    start: int
    item_id: str
    foreign: bool
    may_call: bool
    tokens: tuple[int, ...]
    text: str
    clause_ends: int
    calls: tuple[ToolCallItem, ...]
    malformed_calls: int
    results: tuple[ToolResultItem, ...]
    wants_reply: bool
    standing_in: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReplyState:
    """A ``service.reply.Reply``. model: that answers in the call's own one's place; empty: none. told: the client knows
    that it is over.
    """

    turn_id: int
    begin: int
    before: int
    generation: Generation
    source: AnswerSource
    model: str
    phase: Phase
    segments: tuple[SegmentState, ...]
    played: int | None
    words: tuple[WordTiming, ...]
    cut: int | None
    kept: str | None
    cut_by: TurnEnd
    item_ids: tuple[str, ...] | None
    settled: bool
    ending: TurnEnd | None
    told: bool


@dataclass(frozen=True)
class Status:
    """The small things. generation, tools: of the terms in force. waiting: updates that are not yet. questions: that
    have no answer yet. late: results of tools that wait for the end of a turn.
    """

    version: int
    submissions: int
    made_ids: int
    may_call: bool
    announced: bool
    tool_calls: int
    last_turn: int
    replies: int
    generation: Generation
    tools: dict[str, int | None]
    waiting: tuple[Update, ...]
    questions: tuple[Generate, ...]
    late: tuple[ToolResultItem, ...] = ()


@dataclass(frozen=True)
class Opening:
    """event: with its seed and its name, but for what was said in it. opened_at: seconds since 1970. traceparent: of
    the call's span at the server that wrote this; empty where it had none.
    """

    event: Open
    model: str
    opened_at: float
    traceparent: str = ""


@dataclass(frozen=True)
class LogChange:
    """The log is its first ``keep`` tokens and ``tokens``, in its first ``keep_spans`` spans and ``spans``."""

    keep: int
    tokens: tuple[int, ...]
    keep_spans: int
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Growth:
    """The generation that is being made has these tokens behind its first ``keep``, and this text behind its first
    ``keep_text`` code points.
    """

    keep: int
    tokens: tuple[int, ...]
    keep_text: int
    text: str
    clause_ends: int


@dataclass(frozen=True)
class Delta:
    """What has changed of a call; None and empty: nothing. client_seq: the last client event that is wholly in it.

    replies: those that the client does not know to be over, and the newest, first. taken, answered, asked: added.
    """

    client_seq: int
    opening: Opening | None = None
    written: Written | None = None
    log: LogChange | None = None
    status: Status | None = None
    replies: tuple[ReplyState, ...] | None = None
    growth: Growth | None = None
    taken: dict[int, str] = field(default_factory=dict)
    answered: tuple[str, ...] = ()
    asked: tuple[int, ...] = ()


@dataclass
class CallState:
    """A whole call, as the deltas up to some place add up to it."""

    opening: Opening
    written: Written
    status: Status
    client_seq: int
    tokens: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    replies: list[ReplyState] = field(default_factory=list)
    taken: dict[int, str] = field(default_factory=dict)
    answered: dict[str, None] = field(default_factory=dict)
    asked: dict[int, None] = field(default_factory=dict)

    @staticmethod
    def begun(delta: Delta) -> CallState:
        """The state that a whole call's delta makes. Raises ValueError for another."""
        if delta.opening is None or delta.written is None or delta.status is None:
            raise ValueError("no call begins so")
        state = CallState(delta.opening, delta.written, delta.status, delta.client_seq)
        state.apply(delta)
        return state

    def apply(self, delta: Delta) -> None:
        """Raises ValueError for one that does not follow."""
        self.client_seq = delta.client_seq
        self.opening = delta.opening or self.opening
        self.written = delta.written or self.written
        self.status = delta.status or self.status
        if (change := delta.log) is not None:
            if change.keep > len(self.tokens) or change.keep_spans > len(self.spans):
                raise ValueError("a part of the log is missing")
            self.tokens[change.keep :] = change.tokens
            self.spans[change.keep_spans :] = change.spans
        if delta.replies is not None:
            self.replies = list(delta.replies)
        if delta.growth is not None:
            self._grow(delta.growth)
        self.taken.update(delta.taken)
        self.answered.update(dict.fromkeys(delta.answered))
        self.asked.update(dict.fromkeys(delta.asked))

    def _grow(self, growth: Growth) -> None:
        if not self.replies or not self.replies[0].segments:
            raise ValueError("there is no generation that could have grown")
        reply = self.replies[0]
        *before, last = reply.segments
        if growth.keep > len(last.tokens) or growth.keep_text > len(last.text):
            raise ValueError("a part of the generation is missing")
        grown = replace(
            last,
            tokens=last.tokens[: growth.keep] + growth.tokens,
            text=last.text[: growth.keep_text] + growth.text,
            clause_ends=growth.clause_ends,
        )
        self.replies[0] = replace(reply, segments=(*before, grown))
