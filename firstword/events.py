"""What the service says about a call and its turns. Offsets and lengths of text count Unicode code points."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from firstword.types import Limits, Sampling, ToolCall


class EndReason(enum.StrEnum):
    """Why a turn ended. UNKNOWN: for a reason that this version of the client does not know."""

    COMPLETED = "completed"
    LENGTH = "length"
    CONTEXT_FULL = "context_full"
    INTERRUPTED = "interrupted"
    LIMIT_REACHED = "limit_reached"
    FAILED = "failed"
    UNKNOWN = "unknown"


class AnswerSource(enum.StrEnum):
    """Who answered a turn. NOBODY: it ended before there was an answer."""

    NOBODY = "nobody"
    MODEL = "model"
    FALLBACK_MODEL = "fallback_model"
    FALLBACK_PHRASE = "fallback_phrase"
    GIVEN_TEXT = "given_text"


@dataclass(frozen=True)
class Opened:
    """The call is open. sampling: in force. seed: of the call; the same seed and the same ids say the same.

    resume_token: empty where the call cannot be resumed.
    """

    session_id: str
    model: str
    max_context_tokens: int
    used_tokens: int
    sampling: Sampling
    seed: int
    limits: Limits
    history_version: int
    item_ids: tuple[str, ...]
    drafting_modes: tuple[str, ...]
    service_version: str
    resume_token: bytes
    resumed: bool


@dataclass(frozen=True)
class TextDelta:
    """More of a turn's text.

    offset: where ``text`` starts in the turn's text. clause_ends: where clauses end, as offsets into the turn's text
    just behind each clause: places at which a synthesiser can start. spans: (length, whether a drafter had guessed it)
    of the pieces of ``text``. completion_tokens: tokens behind ``text``; drafted_tokens: those of them that a drafter
    had guessed. since_commit_ms: from the turn's commit, on the service's clock. received_at: the client's
    ``time.perf_counter()``.
    """

    turn_id: int
    text: str
    offset: int
    clause_ends: tuple[int, ...]
    spans: tuple[tuple[int, bool], ...]
    completion_tokens: int
    drafted_tokens: int
    since_commit_ms: float
    received_at: float


@dataclass(frozen=True)
class Usage:
    """Tokens of a turn. cached_tokens, prefilled_ahead_tokens: of the prompt's.

    wasted_ahead_tokens: of replies that were made ahead and dropped. rewound_tokens: of partials that were rewound.
    """

    prompt_tokens: int
    cached_tokens: int
    prefilled_ahead_tokens: int
    completion_tokens: int
    wasted_ahead_tokens: int
    rewound_tokens: int


@dataclass(frozen=True)
class Timings:
    """Where a turn's time went, in milliseconds from its commit on the service's clock. None: it did not come to that.

    prefill_ms, decode_ms, tool_wait_ms and held_ms (the reply stood still, for this client did not read) are durations;
    the others are moments.
    """

    queue_ms: float | None
    prefill_ms: float | None
    first_token_ms: float | None
    first_text_ms: float | None
    first_clause_ms: float | None
    decode_ms: float | None
    tool_wait_ms: float | None
    held_ms: float | None
    total_ms: float


@dataclass(frozen=True)
class DraftingPhase:
    """A run of steps that were drafted in one mode. mode: ``plain`` where nobody drafted. reason: for people."""

    mode: str
    reason: str
    steps: int
    drafted_tokens: int
    accepted_tokens: int


@dataclass(frozen=True)
class Drafting:
    """How a turn was drafted. steps: forward passes of the target that chose the reply's tokens.

    Element i of drafted_steps_at_depth: steps whose draft reached depth i + 1; of accepted_steps_at_depth: steps that
    accepted a token there. draft_ms and forward_ms: time spent drafting, and in the target.
    """

    steps: int
    drafted_tokens: int
    accepted_tokens: int
    drafted_steps_at_depth: tuple[int, ...]
    accepted_steps_at_depth: tuple[int, ...]
    draft_ms: float
    forward_ms: float
    phases: tuple[DraftingPhase, ...]


@dataclass(frozen=True)
class Waiting:
    """The reply has stopped at its tool calls and goes on when their results are there. The account is so far.

    call_ids: of the calls that have no result yet.
    """

    turn_id: int
    call_ids: tuple[str, ...]
    usage: Usage
    timings: Timings
    drafting: Drafting
    history_version: int


class HistoryCause(enum.StrEnum):
    """What changed a history other than a turn. UNKNOWN: a cause that this version of the client does not know."""

    ITEMS = "items"
    UPDATE = "update"
    DROPPED_OLDEST = "dropped_oldest"
    SUMMARISED = "summarised"
    TOOL_RESULT = "tool_result"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class HistoryChanged:
    """The history was changed. item_ids: of all its items now. kept_tokens: at the front, that stayed as they were, and
    warm. summary: with ``summarised``.
    """

    cause: HistoryCause
    history_version: int
    item_ids: tuple[str, ...]
    kept_tokens: int
    used_tokens: int
    summary: str


@dataclass(frozen=True)
class Generated:
    """The answer to a side question. timings: from the receipt of the question. reason: completed, length or
    context_full.
    """

    request_id: int
    text: str
    reason: EndReason
    model: str
    usage: Usage
    timings: Timings
    drafting: Drafting


@dataclass(frozen=True)
class Interrupted:
    """A turn was cut. text: what the history holds of its text, a beginning of it; at most what was heard."""

    turn_id: int
    text: str
    history_version: int
    used_tokens: int


@dataclass(frozen=True)
class Notice:
    """Something that ends nothing.

    kind: such as ``draining``, ``context_nearly_full`` or ``engine_restarted``, as the contract names it; empty for one
    that this version does not know. message: for people. details: the kind's fields.
    """

    kind: str
    message: str
    turn_id: int | None
    details: Mapping[str, Any]


@dataclass(frozen=True)
class TurnReport:
    """The account of a turn that is over.

    model: that answered; empty: none. drafting: None where nothing was generated. item_ids: of what the turn put into
    the history, the caller's message included. used_tokens: of the context, now. text: the turn's text as the history
    held it when the turn ended; an interruption that came later says in ``Interrupted`` what is left.
    """

    turn_id: int
    reason: EndReason
    source: AnswerSource
    model: str
    usage: Usage
    timings: Timings
    drafting: Drafting | None
    answered_ahead: bool
    history_version: int
    item_ids: tuple[str, ...]
    used_tokens: int
    text: str


TurnEvent = TextDelta | ToolCall | Waiting | Interrupted | Notice
"""What the iteration of a turn gives."""
