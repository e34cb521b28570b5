"""What a client says: messages, tools, and how replies shall be made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]
ToolHandler = Callable[..., Any]
"""Takes a tool's arguments as keyword arguments; returns text, or what ``json.dumps`` takes. May be async."""


@dataclass(frozen=True)
class Message:
    """Something said.

    interrupted: the caller spoke over it, so it may end in the middle of a sentence; only of the assistant.
    item_id: its name in the history, unique in the call; empty: the service makes one.
    """

    role: Role
    text: str
    interrupted: bool = False
    item_id: str = ""


@dataclass(frozen=True)
class ToolCall:
    """The model calls a tool: an event of a turn, or an item of a history that is handed over.

    arguments: the JSON object. offset: where in the turn's text the call stands, in code points. timeout_ms: time that
    the tool has; None: no limit. received_at: ``time.perf_counter()`` of the client. turn_id, offset, timeout_ms and
    received_at are the service's and the client's to fill.
    """

    call_id: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    item_id: str = ""
    turn_id: int = 0
    offset: int = 0
    timeout_ms: int | None = None
    received_at: float = 0.0


@dataclass(frozen=True)
class ToolResult:
    """What a call of a tool gave, as an item of a history that is handed over.

    output: any text, usually JSON. is_error: the tool failed, and ``output`` says how. name: of the tool; empty: of the
    one that ``call_id`` called.
    """

    call_id: str
    output: str
    is_error: bool = False
    name: str = ""
    item_id: str = ""


Item = Message | ToolCall | ToolResult
"""One thing said or done."""


@dataclass(frozen=True)
class Tool:
    """A tool that the model may call.

    parameters: JSON Schema of an object; empty: it takes no arguments. handler: answers the calls in ``Call.ask``,
    ``Turn.run`` and ``Call.answer``; a function that is not async runs in a thread, so that a slow one holds up
    nothing. timeout_ms: time after which an unanswered call counts as failed; None: the call's.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    handler: ToolHandler | None = None
    timeout_ms: int | None = None


@dataclass(frozen=True)
class Sampling:
    """How a reply's tokens are chosen. None and empty: as the call, or else the service, has it.

    temperature: 0 is greedy. top_k: 0 is off. top_p and repetition_penalty: 1 is off. min_p: 0 is off. seed: of the
    call, or in a turn's options of that turn. max_tokens: longest reply. stop: texts that end a reply and are not
    emitted. stop_token_ids: tokens that end it.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()


@dataclass(frozen=True)
class Limits:
    """Guardrails of a call. None: the service's value, which also lowers a higher one.

    max_input_code_points: length of one event's text. max_idle_ms: time without an event while no reply is in progress.
    """

    max_tool_calls_per_turn: int | None = None
    max_tool_calls_per_call: int | None = None
    max_output_tokens_per_turn: int | None = None
    max_turns: int | None = None
    max_call_ms: int | None = None
    max_idle_ms: int | None = None
    max_input_code_points: int | None = None
    tool_timeout_ms: int | None = None


@dataclass(frozen=True)
class AnswerAhead:
    """How replies are made ahead, at an eager end of turn. None: the service's value, which also lowers a higher one.

    normalised: such a reply also answers a final that differs from the eager text in case, punctuation or spacing
    alone; the history then keeps the eager text. max_held_tokens: made before the final. max_held_ms: time that the
    reply waits for it.
    """

    normalised: bool = False
    max_held_tokens: int | None = None
    max_held_ms: int | None = None


@dataclass(frozen=True)
class ContextPolicy:
    """What happens when the context is full: the turn is refused, the oldest turns are dropped, or a summary that is
    written in the background takes their place. It is announced before. None and empty: as the service has it.

    announce_at_tokens: tokens in use when the notice comes. keep_tokens: tokens that are left. summary_instructions:
    what the summary is asked for.
    """

    action: Literal["", "refuse", "drop_oldest", "summarise"] = ""
    announce_at_tokens: int | None = None
    keep_tokens: int | None = None
    summary_instructions: str = ""


@dataclass(frozen=True)
class Fallback:
    """Who answers where the first token is late: another model that the service has, or a phrase that is said as it
    stands.

    first_token_deadline_ms: time that the model has for its first token; None: as long as the one before it.
    """

    model: str = ""
    phrase: str = ""
    first_token_deadline_ms: int | None = None


@dataclass(frozen=True)
class ToolChoice:
    """How freely the model calls tools. tool: the one that it must call, whatever the mode. parallel: whether one reply
    may hold several calls; None: where the model's chat template knows how.
    """

    mode: Literal["auto", "none", "required"] = "auto"
    tool: str = ""
    parallel: bool | None = None


@dataclass(frozen=True)
class TurnOptions:
    """What one reply is asked for with. None and empty: as the call has it.

    response_schema: JSON Schema that the reply's text is held to; empty: any text.
    first_token_deadline_ms: time within which the first token is wanted, from the turn's commit. drafting_mode: one of
    ``Opened.drafting_modes``; the text is the same in each. traceparent and tracestate: W3C trace context of the span
    that asks.
    """

    sampling: Sampling = Sampling()
    tool_choice: ToolChoice | None = None
    response_schema: Mapping[str, Any] | None = None
    first_token_deadline_ms: int | None = None
    drafting_mode: str = ""
    traceparent: str = ""
    tracestate: str = ""


@dataclass(frozen=True)
class WordTiming:
    """When a synthesised word has been played to its end.

    end_ms: from the beginning of the turn's speech. The word is given as it was spoken, or by where it ends in the
    turn's text, in code points; the place counts where both are given.
    """

    end_ms: int
    word: str = ""
    end_code_points: int | None = None
