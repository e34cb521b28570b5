"""What a call says to its client, as plain values: server events and notices without their wire format.

``service.wire`` makes messages of them. Text offsets and lengths are Unicode code points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from service.items import ToolCallItem
from service.options import Generation, Limits
from service.problems import Guardrail, Problem
from service.telemetry import TurnRecord


@dataclass(frozen=True)
class Opened:
    session_id: str
    model: str
    seed: int
    used_tokens: int
    max_context_tokens: int
    generation: Generation
    limits: Limits
    item_ids: Sequence[str]
    history_version: int
    token: ResumeToken
    resumed: bool = False
    unfinished: Unfinished | None = None


@dataclass(frozen=True)
class ResumeToken:
    """What the call can be resumed with, for so long."""

    token: bytes
    ttl_s: float


@dataclass(frozen=True)
class Unfinished:
    """A turn that was not over when the call was resumed: it goes on at this place in its text, or waits for tools."""

    turn_id: int
    chars: int
    waiting: tuple[str, ...]


@dataclass(frozen=True)
class TextDelta:
    """More of a turn's text.

    offset: code points of the turn's text before it. clause_ends: offsets into the whole turn's text, known since the
    last delta. accepted: of its ``tokens``, those that the drafter had guessed. spans: the text in pieces, as
    (length, drafted). since_commit_s: age of the turn.
    """

    turn_id: int
    text: str
    offset: int
    clause_ends: tuple[int, ...]
    tokens: int
    accepted: int
    spans: tuple[tuple[int, bool], ...]
    since_commit_s: float


@dataclass(frozen=True)
class ToolCalled:
    """offset: where in the turn's text the call stands. timeout_ms: that the tool has; None: no limit."""

    turn_id: int
    call: ToolCallItem
    offset: int
    timeout_ms: int | None = None


class AnswerSource(Enum):
    """Who answers a turn. given_text: the client itself, with ``say``."""

    MODEL = "model"
    FALLBACK_MODEL = "fallback_model"
    FALLBACK_PHRASE = "fallback_phrase"
    GIVEN_TEXT = "given_text"


class TurnEnd(Enum):
    """Why a turn ended."""

    COMPLETED = "completed"
    LENGTH = "length"
    CONTEXT_FULL = "context_full"
    INTERRUPTED = "interrupted"
    LIMIT_REACHED = "limit_reached"
    FAILED = "failed"

    @classmethod
    def of(cls, finish: str) -> TurnEnd:
        """How a turn ends whose last generation ended so, by the value of ``engine.session.Finish``."""
        return {"length": cls.LENGTH, "context": cls.CONTEXT_FULL}.get(finish, cls.COMPLETED)


@dataclass(frozen=True)
class HistoryState:
    """version: grows with each reply that stops and each cut. item_ids: of the items that the event is about."""

    version: int
    used_tokens: int
    item_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class TurnEnded:
    """text: the turn's as the history holds it. account: its times and statistics. model: that answered; empty where
    none did.
    """

    turn_id: int
    reason: TurnEnd
    source: AnswerSource
    model: str
    text: str
    account: TurnRecord
    history: HistoryState


@dataclass(frozen=True)
class TurnWaiting:
    """The turn goes on when the results of these calls are there. account: of the turn so far."""

    turn_id: int
    call_ids: tuple[str, ...]
    account: TurnRecord
    history: HistoryState


@dataclass(frozen=True)
class Interrupted:
    """What the history now holds of the turn."""

    turn_id: int
    text: str
    history: HistoryState


class HistoryCause(Enum):
    """What changed the history other than a turn."""

    ITEMS = "items"
    UPDATE = "update"
    DROPPED_OLDEST = "dropped_oldest"
    SUMMARISED = "summarised"
    TOOL_RESULT = "tool_result"


@dataclass(frozen=True)
class HistoryChanged:
    """history: with the ids of all items. kept_tokens: at the front, that stayed as they were. summary: of what is gone
    since.
    """

    cause: HistoryCause
    history: HistoryState
    kept_tokens: int
    summary: str = ""


@dataclass(frozen=True)
class Draining:
    """The service is about to stop: what is still open in ``grace_ms`` ends then. successor: address of another."""

    grace_ms: int
    successor: str = ""


@dataclass(frozen=True)
class Durability:
    """Whether the store keeps up with the call."""

    durable: bool


@dataclass(frozen=True)
class ContextNearlyFull:
    used_tokens: int
    max_context_tokens: int


@dataclass(frozen=True)
class EngineRestarted:
    """The engine process was replaced; replies go on where they were."""

    model: str


@dataclass(frozen=True)
class DeadlineAtRisk:
    """The first token will come after the deadline. expected_s: when; None: nobody knows. Both since the commit."""

    turn_id: int
    deadline_s: float
    expected_s: float | None


@dataclass(frozen=True)
class ModeChange:
    """The reply is drafted in another way from here on."""

    turn_id: int
    mode: str
    reason: str


@dataclass(frozen=True)
class FallbackTaken:
    """Link ``index`` of the chain answers. model: that does; empty with a phrase."""

    turn_id: int
    index: int
    model: str


@dataclass(frozen=True)
class LimitReached:
    """limit: the guardrail's value in force. turn_id: of the turn that it ended; None where it refused an event."""

    guardrail: Guardrail
    limit: int
    turn_id: int | None = None


@dataclass(frozen=True)
class ToolTimedOut:
    """A tool had no result after ``timeout_ms``: the reply goes on with that as the result."""

    turn_id: int
    call_id: str
    timeout_ms: int


class AheadState(Enum):
    """What becomes of a reply made ahead."""

    STARTED = "started"
    RELEASED = "released"
    MISMATCHED = "mismatched"
    RESUMED = "resumed"
    EXPIRED = "expired"
    ABANDONED = "abandoned"


@dataclass(frozen=True)
class PrefilledAhead:
    """A hypothesis of turn ``turn_id`` is in the cache: all its ``tokens``, of which so many were ``computed`` for it.
    rewound: of the one before.
    """

    turn_id: int
    revision: int
    tokens: int
    rewound: int
    computed: int


@dataclass(frozen=True)
class AnsweringAhead:
    """A reply that is made ahead, to turn ``turn_id``, changed its state; tokens: generated by then."""

    turn_id: int
    state: AheadState
    tokens: int


Notice = (
    PrefilledAhead
    | AnsweringAhead
    | Draining
    | ModeChange
    | Durability
    | ResumeToken
    | DeadlineAtRisk
    | FallbackTaken
    | ContextNearlyFull
    | EngineRestarted
    | LimitReached
    | ToolTimedOut
)


@dataclass(frozen=True)
class Generated:
    """The answer to a side question."""

    request_id: int
    text: str
    reason: TurnEnd
    model: str
    account: TurnRecord


@dataclass(frozen=True)
class Failure:
    """A problem in-band: of a turn, of a client event, of a side question; None and 0 where of none."""

    problem: Problem
    turn_id: int | None = None
    client_seq: int | None = None
    request_id: int = 0


@dataclass(frozen=True)
class Heartbeat:
    """Nothing has been said for a while. Of a stream and not of its call: never numbered, written down or replayed."""


ServerEvent = (
    Opened
    | Heartbeat
    | TextDelta
    | ToolCalled
    | TurnWaiting
    | TurnEnded
    | Interrupted
    | Generated
    | HistoryChanged
    | Notice
    | Failure
)


@dataclass(frozen=True)
class Envelope:
    """One server event as it is sent.

    generation: of the lease. seq: grows by one per event of a call. durable_seq: how far the store has it.
    client_seq: the last client event seen. record: what the event changed; empty where nothing.
    whole_seq: of the last record that is the whole call.
    """

    generation: int
    seq: int
    durable_seq: int
    client_seq: int
    event: ServerEvent
    record: bytes = b""
    whole_seq: int = 0
