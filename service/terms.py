"""What one call may have: the guardrails and defaults in force, out of what the client asked and the service allows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import overload

from service import client_events as events
from service.config import CallConfig
from service.items import Item, ToolDefinition, text_of
from service.options import AnswerAhead, ContextPolicy, Generation, GenerationPatch, Limits, ToolChoice, TurnOptions
from service.problems import Guardrail, Problem, Reason, invalid


@dataclass
class Terms:
    """The terms of one call. One object serves all of its parts; only ``become`` changes it.

    generation: of a reply that asks for nothing of its own. deadline_ms: for a first token; None where there is none.
    context: the policy for a full one, announced at ``announce_at`` tokens, with at most ``keep_tokens`` left.
    unstable_s: how long the end of a partial that may still be revised is not computed. tools: their own time-outs by
    name, in milliseconds.
    """

    limits: Limits
    max_output_tokens: int
    max_input_code_points: int
    generation: Generation
    answer_ahead: AnswerAhead
    deadline_ms: int | None
    context: ContextPolicy
    announce_at: int
    keep_tokens: int
    progress_notices: bool
    unstable_s: float
    max_context_tokens: int
    vocab_size: int
    tools: Mapping[str, int | None]

    @staticmethod
    def of(opening: events.Open, config: CallConfig, vocab_size: int, max_context_tokens: int) -> Terms:
        """Raises Problem for what this model or this service cannot grant."""
        asked, context = opening.limits, opening.context
        for name in ("announce_at_tokens", "keep_tokens"):
            if (tokens := getattr(context, name)) is not None and tokens > max_context_tokens:
                raise invalid(f"open.context_policy.{name}", f"is above the {max_context_tokens} tokens that there are")
        announce_at, keep = context.announce_at_tokens, context.keep_tokens
        output = _lower(asked.max_output_tokens_per_turn, config.max_reply_tokens_limit)
        text = _lower(asked.max_input_code_points, config.max_input_chars)
        terms = Terms(
            limits=Limits(
                max_turns=asked.max_turns,
                max_output_tokens_per_turn=output,
                max_input_code_points=text,
                **{name: _lower(getattr(asked, name), getattr(config, name)) for name in _OPTIONAL},
            ),
            max_output_tokens=output,
            max_input_code_points=text,
            generation=Generation(max_tokens=config.max_reply_tokens),
            answer_ahead=AnswerAhead(
                normalised=opening.answer_ahead.normalised,
                max_tokens=_lower(opening.answer_ahead.max_tokens, config.max_held_tokens),
                max_s=_lower(opening.answer_ahead.max_ms, config.max_held_ms) / 1000,
            ),
            deadline_ms=opening.first_token_deadline_ms,
            context=dataclasses.replace(context, action=context.action or config.context_full),
            keep_tokens=max_context_tokens // 2 if keep is None else keep,
            announce_at=int(max_context_tokens * config.nearly_full) if announce_at is None else announce_at,
            progress_notices=opening.progress_notices,
            unstable_s=config.unstable_partial_ms / 1000,
            max_context_tokens=max_context_tokens,
            vocab_size=vocab_size,
            tools={tool.name: tool.timeout_ms for tool in opening.tools},
        )
        return dataclasses.replace(terms, generation=terms._merged(opening.generation, "open"))

    def updated(self, patch: GenerationPatch, tools: Sequence[ToolDefinition] | None) -> Terms:
        """The terms with what an update says. tools: None leaves them. Raises Problem for what cannot be."""
        found = self if tools is None else dataclasses.replace(self, tools={t.name: t.timeout_ms for t in tools})
        return dataclasses.replace(found, generation=found._merged(patch, "update"))

    def become(self, other: Terms) -> None:
        """Put updated terms into force."""
        self.generation, self.tools = other.generation, other.tools

    def for_turn(self, options: TurnOptions, event: str) -> Generation:
        """How the reply to ``event`` is generated. Raises Problem for stop tokens that are not in the vocabulary."""
        return self._merged(options.generation, f"{event}.options")

    def for_question(self, patch: GenerationPatch) -> Generation:
        """How a side question is answered: in any text unless it asks for a form, without tools."""
        form = patch.text_schema or ""
        return self._merged(dataclasses.replace(patch, text_schema=form, tool_choice=ToolChoice("none")), "generate")

    def deadline(self, options: TurnOptions, committed: float) -> float:
        """When the first token of a turn committed at ``committed`` is wanted; 0 where nobody said."""
        deadline_ms = options.first_token_deadline_ms or self.deadline_ms
        return committed + deadline_ms / 1000 if deadline_ms else 0.0

    def tool_timeout_ms(self, name: str) -> int | None:
        """Time that a call of the tool has; None: no limit."""
        return _lower(self.tools.get(name), self.limits.tool_timeout_ms)

    def check_input(self, text: str, path: str) -> None:
        """Raises Problem for a text that is longer than an event's may be."""
        limit = self.max_input_code_points
        if len(text) > limit:
            message = f"{len(text)} code points, of at most {limit}"
            raise Problem(Reason.INPUT_TOO_LONG, message, field=path, reached=(Guardrail.INPUT_SIZE, limit))

    def check_heard(self, heard: events.Heard, path: str) -> None:
        """Raises Problem for more text and words than an event may have; each word timing counts one more."""
        self.check_input("\n".join((heard.text or "", *(word.word for word in heard.words))), path)

    def check_items(self, items: Sequence[Item], path: str) -> None:
        """Raises Problem for items that are longer, all together, than an event may be."""
        self.check_input("".join(map(text_of, items)), path)

    def may_reply(self, made: int) -> bool:
        """Whether a call that has had so many replies may have one more."""
        limit = self.limits.max_turns
        return limit is None or made < limit

    def check_replies(self, made: int) -> None:
        """Raises Problem where a call that has had so many replies may not have one more."""
        limit = self.limits.max_turns
        if limit is not None and not self.may_reply(made):
            message = f"the call has had its {limit} turns"
            raise Problem(Reason.TOO_MANY_TURNS, message, reached=(Guardrail.TURNS, limit))

    def _merged(self, patch: GenerationPatch, path: str) -> Generation:
        """The call's generation with what the client said in ``path``, within the limits."""
        generation = patch.apply(self.generation)
        if any(token >= self.vocab_size for token in generation.stop_token_ids):
            raise invalid(f"{path}.sampling.stop_token_ids", "holds an id that is not in the vocabulary")
        choice = generation.tool_choice
        if choice.tool and choice.tool not in self.tools:
            raise invalid(f"{path}.tool_choice.tool_name", f"{choice.tool!r} is no tool of the call")
        if choice.mode == "required" and not self.tools:
            raise invalid(f"{path}.tool_choice.mode", "asks for a tool call, and the call has no tools")
        return dataclasses.replace(generation, max_tokens=min(generation.max_tokens, self.max_output_tokens))


_OPTIONAL = ("max_tool_calls_per_turn", "max_tool_calls_per_call", "max_call_ms", "max_idle_ms", "tool_timeout_ms")
"""Limits that need not be there."""


@overload
def _lower(asked: int | None, own: int) -> int: ...
@overload
def _lower(asked: int | None, own: int | None) -> int | None: ...
def _lower(asked: int | None, own: int | None) -> int | None:
    """What the client asked for, where that is below the service's own."""
    return min((limit for limit in (asked, own) if limit is not None), default=None)
