"""What a client says to a call, as plain values: ``client_events.proto`` without its wire format.

``service.wire`` makes them. Text offsets and lengths are Unicode code points. What this version of the service does not
do never gets this far as a value.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from service.items import Item, ToolDefinition
from service.options import AnswerAheadPatch, ContextPolicy, Fallback, GenerationPatch, Limits, TurnOptions
from service.problems import Problem


@dataclass(frozen=True)
class Open:
    """Begin a call. seed: of the call's noise; None draws one."""

    session_id: str = ""
    model: str = ""
    system: str = ""
    items: tuple[Item, ...] = ()
    tools: tuple[ToolDefinition, ...] = ()
    generation: GenerationPatch = field(default_factory=GenerationPatch)
    seed: int | None = None
    limits: Limits = field(default_factory=Limits)
    context: ContextPolicy = field(default_factory=ContextPolicy)
    first_token_deadline_ms: int | None = None
    fallbacks: tuple[Fallback, ...] = ()
    answer_ahead: AnswerAheadPatch = field(default_factory=AnswerAheadPatch)
    progress_notices: bool = False
    caller_key: str = ""


@dataclass(frozen=True)
class Resume:
    """Go on with a call. last_seq: the last event that the client has, of the generation ``last_generation`` or an
    earlier one. records: of events that may be in no store. take_over: also from a server that is warm for it.
    last_record: the newest event of which the client has had a record; 0 where it does not say.
    """

    token: bytes
    last_seq: int
    last_generation: int
    records: tuple[bytes, ...] = ()
    take_over: bool = False
    last_record: int = 0


@dataclass(frozen=True)
class SpeechStarted:
    """The caller makes a sound."""


@dataclass(frozen=True)
class Partial:
    """The recogniser's hypothesis so far. Replaces the one before it; stale revisions are dropped. stable: its first
    code points that will not be revised any more; 0 where nobody says so.
    """

    turn_id: int
    revision: int
    text: str
    stable: int = 0


@dataclass(frozen=True)
class EagerEndOfTurn:
    """The caller has probably finished. Replaces the hypothesis before it, as a ``Partial`` does."""

    turn_id: int
    revision: int
    text: str
    options: TurnOptions = field(default_factory=TurnOptions)


@dataclass(frozen=True)
class TurnResumed:
    """The caller went on after an eager end of turn."""

    turn_id: int


@dataclass(frozen=True)
class Final:
    """The caller's turn is complete: reply to it."""

    turn_id: int
    text: str
    options: TurnOptions = field(default_factory=TurnOptions)
    item_id: str = ""


@dataclass(frozen=True)
class Respond:
    """The agent speaks without a turn of the caller before it."""

    turn_id: int
    options: TurnOptions = field(default_factory=TurnOptions)


@dataclass(frozen=True)
class Say:
    """Put given text into the history as the assistant's own."""

    turn_id: int
    text: str
    item_id: str = ""
    traceparent: str = ""
    tracestate: str = ""


@dataclass(frozen=True)
class WordTiming:
    """When a synthesised word ends, and which one it is: by where it ends in the turn's text, or as it was spoken."""

    end_ms: int
    end_chars: int | None = None
    word: str = ""


@dataclass(frozen=True)
class Heard:
    """How much of a turn's text was played: one of text, chars and played_ms is given. words: newly known timings."""

    text: str | None = None
    chars: int | None = None
    played_ms: int | None = None
    words: tuple[WordTiming, ...] = ()


@dataclass(frozen=True)
class Interrupt:
    """The caller spoke over turn ``turn_id``. heard None: as far as playback was reported."""

    turn_id: int
    heard: Heard | None


@dataclass(frozen=True)
class Playback:
    """How far turn ``turn_id`` has been played."""

    turn_id: int
    heard: Heard


@dataclass(frozen=True)
class ToolResult:
    """What a tool call gave. output: text, usually JSON. no_reply: it asks for none."""

    turn_id: int
    call_id: str
    output: str
    is_error: bool = False
    no_reply: bool = False
    item_id: str = ""


@dataclass(frozen=True)
class Items:
    """The whole conversation as the client sees it. history_version: the newest that it had seen; None: all of it."""

    items: tuple[Item, ...]
    history_version: int | None = None


@dataclass(frozen=True)
class Update:
    """What changes from the next turn on. system, tools: None leaves them."""

    system: str | None = None
    tools: tuple[ToolDefinition, ...] | None = None
    generation: GenerationPatch = field(default_factory=GenerationPatch)


@dataclass(frozen=True)
class Generate:
    """A side question: a message behind the history, or a conversation of its own, where ``items`` is given."""

    request_id: int
    question: str = ""
    items: tuple[Item, ...] | None = None
    generation: GenerationPatch = field(default_factory=GenerationPatch)
    timeout_ms: int | None = None
    traceparent: str = ""
    tracestate: str = ""


@dataclass(frozen=True)
class CancelGenerate:
    """The answer to a side question is not wanted any more."""

    request_id: int


@dataclass(frozen=True)
class Acknowledge:
    """Every server event up to ``seq`` has been received."""

    seq: int


@dataclass(frozen=True)
class CloseCall:
    """The call is over. forget: nothing of it is to be kept."""

    forget: bool = False


@dataclass(frozen=True)
class Malformed:
    """An event that cannot be used, or that a later version of the service will know."""

    problem: Problem
    turn_id: int = 0
    request_id: int = 0


ClientEvent = (
    Open
    | Resume
    | SpeechStarted
    | Partial
    | EagerEndOfTurn
    | TurnResumed
    | Final
    | Respond
    | Say
    | Interrupt
    | Playback
    | ToolResult
    | Items
    | Update
    | Generate
    | CancelGenerate
    | Acknowledge
    | CloseCall
    | Malformed
)
