"""How replies are made and what a call may cost, as plain values: ``options.proto`` without its wire format."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from engine.sampling import Sampling

ToolMode = Literal["auto", "none", "required"]


@dataclass(frozen=True)
class ToolChoice:
    """How freely tools are called. tool: the one that must be; empty: the mode says. several: whether one reply may
    hold several calls.
    """

    mode: ToolMode = "auto"
    tool: str = ""
    several: bool = True


@dataclass(frozen=True)
class Generation:
    """How a reply is generated. max_tokens: of the whole reply, all its generations together; 0 is not decided yet.
    text_schema: JSON Schema of its text; empty for any text.
    """

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 0
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    drafting: bool = True
    tool_choice: ToolChoice = ToolChoice()
    text_schema: str = ""


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
    tool_choice: ToolChoice | None = None
    text_schema: str | None = None

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
            tool_choice=self.tool_choice or to.tool_choice,
            text_schema=to.text_schema if self.text_schema is None else self.text_schema,
        )


@dataclass(frozen=True)
class Limits:
    """Guardrails of a call. As asked for, None leaves the service's own; in force, None is no limit."""

    max_turns: int | None = None
    max_output_tokens_per_turn: int | None = None
    max_input_code_points: int | None = None
    max_tool_calls_per_turn: int | None = None
    max_tool_calls_per_call: int | None = None
    max_call_ms: int | None = None
    max_idle_ms: int | None = None
    tool_timeout_ms: int | None = None


@dataclass(frozen=True)
class AnswerAhead:
    """How replies are made ahead. normalised: whether they answer a final that differs in case, punctuation or spacing
    alone. max_tokens: held at most; max_s: for so long at most.
    """

    normalised: bool
    max_tokens: int
    max_s: float


@dataclass(frozen=True)
class AnswerAheadPatch:
    """What a client said about it; None leaves the service's own."""

    normalised: bool = False
    max_tokens: int | None = None
    max_ms: int | None = None


ContextAction = Literal["refuse", "drop_oldest", "summarise"]


@dataclass(frozen=True)
class ContextPolicy:
    """What is done when the context is full. action: None for the service's. announce_at_tokens: in use when it counts
    as nearly full; keep_tokens: that are left when turns go; None for the service's.
    """

    action: ContextAction | None = None
    announce_at_tokens: int | None = None
    keep_tokens: int | None = None
    summary_instructions: str = ""


@dataclass(frozen=True)
class Fallback:
    """One link of the chain that answers where the model is late: another model, or a phrase.

    deadline_ms: time that the model has for its first token; None: as long as the one before it had.
    """

    model: str = ""
    phrase: str = ""
    deadline_ms: int | None = None


@dataclass(frozen=True)
class TurnOptions:
    """What a turn needs of its own. first_token_deadline_ms: None for the call's."""

    traceparent: str = ""
    tracestate: str = ""
    first_token_deadline_ms: int | None = None
    generation: GenerationPatch = GenerationPatch()
