"""What a client and a call say to each other, as plain values: the contract without its wire format.

``service.wire`` translates from and to the protobuf messages of ``firstword.v1``. Text offsets and lengths are Unicode
code points. What this version of the service does not do never gets this far as a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from engine.sampling import Sampling
from service.items import Item, ToolCallItem, ToolDefinition
from service.problems import Problem
from service.telemetry import TurnRecord

# What a client says


@dataclass(frozen=True)
class Generation:
    """How a reply is generated. max_tokens: of the whole reply, all its generations together; 0 is not decided yet."""

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 0
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    drafting: bool = True


@dataclass(frozen=True)
class GenerationPatch:
    """What a client said about generation; None and empty leave what was there."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    drafting: bool | None = None

    def apply(self, to: Generation) -> Generation:
        """``to`` with what was said. Raises ``engine.errors.InvalidSampling`` for a value out of range."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return Generation(
            sampling=replace(to.sampling, **given),
            max_tokens=to.max_tokens if self.max_tokens is None else self.max_tokens,
            stop_strings=self.stop_strings or to.stop_strings,
            stop_token_ids=self.stop_token_ids or to.stop_token_ids,
            drafting=to.drafting if self.drafting is None else self.drafting,
        )


@dataclass(frozen=True)
class Limits:
    """Guardrails of a call; None leaves the service's own."""

    max_turns: int | None = None
    max_output_tokens_per_turn: int | None = None
    max_input_code_points: int | None = None


@dataclass(frozen=True)
class TurnOptions:
    """What a turn needs of its own. first_token_deadline_ms: None for the call's."""

    traceparent: str = ""
    tracestate: str = ""
    first_token_deadline_ms: int | None = None
    generation: GenerationPatch = GenerationPatch()


@dataclass(frozen=True)
class Open:
    """Begin a call. seed: of the call's noise; None draws one. announce_at_tokens: when to say that the context is
    nearly full; None for the service's share."""

    session_id: str = ""
    model: str = ""
    system: str = ""
    items: tuple[Item, ...] = ()
    tools: tuple[ToolDefinition, ...] = ()
    generation: GenerationPatch = GenerationPatch()
    seed: int | None = None
    limits: Limits = Limits()
    announce_at_tokens: int | None = None
    first_token_deadline_ms: int | None = None


@dataclass(frozen=True)
class SpeechStarted:
    """The caller makes a sound."""


@dataclass(frozen=True)
class Partial:
    """The recogniser's hypothesis so far. Replaces the one before it; stale revisions are dropped."""

    turn_id: int
    revision: int
    text: str


@dataclass(frozen=True)
class Final:
    """The caller's turn is complete: reply to it."""

    turn_id: int
    text: str
    options: TurnOptions = TurnOptions()
    item_id: str = ""


@dataclass(frozen=True)
class Respond:
    """The agent speaks without a turn of the caller before it."""

    turn_id: int
    options: TurnOptions = TurnOptions()


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
class Acknowledge:
    """Every server event up to ``seq`` has been received."""

    seq: int


@dataclass(frozen=True)
class CloseCall:
    """The call is over."""


@dataclass(frozen=True)
class Malformed:
    """An event that cannot be used, or that a later version of the service will know."""

    problem: Problem
    turn_id: int = 0
    request_id: int = 0


ClientEvent = (
    Open
    | SpeechStarted
    | Partial
    | Final
    | Respond
    | Say
    | Interrupt
    | Playback
    | ToolResult
    | Acknowledge
    | CloseCall
    | Malformed
)

# What a call says


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


@dataclass(frozen=True)
class TextDelta:
    """More of a turn's text.

    offset: code points of the turn's text before it. clause_ends: offsets into the whole turn's text, known since the
    last delta. accepted: of the step's ``tokens``, those that the drafter had guessed. spans: the text in pieces, as
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
    """offset: where in the turn's text the call stands."""

    turn_id: int
    call: ToolCallItem
    offset: int


class TurnEnd(Enum):
    """Why a turn ended."""

    COMPLETED = "completed"
    LENGTH = "length"
    CONTEXT_FULL = "context_full"
    INTERRUPTED = "interrupted"
    LIMIT_REACHED = "limit_reached"
    FAILED = "failed"


@dataclass(frozen=True)
class HistoryState:
    """version: grows with each reply that ends and each cut. item_ids: of the items that the event is about."""

    version: int
    used_tokens: int
    item_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class TurnEnded:
    """text: the turn's as the history holds it. account: its times and statistics. generated: a model made it, rather
    than the client's ``say``."""

    turn_id: int
    reason: TurnEnd
    model: str
    text: str
    generated: bool
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


@dataclass(frozen=True)
class Draining:
    """The service is about to stop: what is still open in ``grace_ms`` ends then."""

    grace_ms: int


@dataclass(frozen=True)
class ContextNearlyFull:
    used_tokens: int
    max_context_tokens: int


@dataclass(frozen=True)
class EngineRestarted:
    """The engine process was replaced; replies go on where they were."""

    model: str


Notice = Draining | ContextNearlyFull | EngineRestarted


@dataclass(frozen=True)
class Failure:
    """A problem in-band: of a turn, of a client event, of a side question; None and 0 where of none."""

    problem: Problem
    turn_id: int | None = None
    client_seq: int | None = None
    request_id: int = 0


ServerEvent = Opened | TextDelta | ToolCalled | TurnWaiting | TurnEnded | Interrupted | Notice | Failure


@dataclass(frozen=True)
class Envelope:
    """One server event as it is sent.

    generation: of the lease. seq: grows by one per event of a call. durable_seq: how far the store has it.
    client_seq: the last client event seen.
    """

    generation: int
    seq: int
    durable_seq: int
    client_seq: int
    event: ServerEvent
