"""A call's history: its items, and the token log that is the truth about them.

Owns which tokens belong to which item, what a cut leaves of a reply, and from where on the engine's log differs from
this one. Knows no turn, no client and no engine; what items look like to the model is ``engine.text.chat``'s.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine.constraint import Constraint, JsonConstraint, ToolConstraint
from engine.models.config import read_json
from engine.text.chat import Chat, Message, Tool
from engine.text.codec import Codec
from service.items import Item, MessageItem, ToolCallItem, ToolDefinition, ToolResultItem
from service.options import Generation, ToolMode
from service.problems import invalid
from service.reply import Segment

ITEM_PREFIX = "fw-"
"""Of the ids that the service makes. A client's own id that begins so may meet one of these."""


@dataclass(frozen=True)
class Span:
    """Tokens ``start`` to ``end`` of the log are these items, and what the template puts around them."""

    items: tuple[Item, ...]
    start: int
    end: int


class Conversation:
    """The history of one call."""

    def __init__(
        self,
        chat: Chat,
        system: str,
        items: Sequence[Item],
        tools: Sequence[ToolDefinition],
        path: str = "open.items",
    ) -> None:
        """Raises Problem for items, which came in the field ``path``, or tools that the model's template refuses."""
        self._chat = chat
        self._system = system
        self._definitions = tuple(tools)
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        try:
            head = chat.begin(messages + _messages(items), [_function(tool) for tool in tools])
        except ValueError as error:
            raise invalid(path if items else "open.tools", str(error)) from None
        self._tokens = list(head.ids)
        self._known = 0
        self._first_user = head.first_user
        self._made_ids = 0
        form = chat.call_form
        if tools and form is None:
            raise invalid("open.tools", "the model's chat template writes tool calls in no form that is known here")
        self.call_form = form if tools else None
        self.may_call = True
        self._tools = tuple((tool.name, json.dumps(tool.parameters)) for tool in tools)
        named = tuple(item if item.id else replace(item, id=self.new_id()) for item in items)
        self.spans = [Span(named, 0, len(head.ids))]

    @property
    def length(self) -> int:
        return len(self._tokens)

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(self._tokens)

    @property
    def vocab_size(self) -> int:
        return len(self._chat.codec.hf)

    @property
    def prompt(self) -> tuple[int, ...]:
        """What asks the model for a reply."""
        return self._chat.prompt

    @property
    def stop_tokens(self) -> frozenset[int]:
        return self._chat.codec.stop_tokens

    def constraint(self, generation: Generation, *, goes_on: bool) -> Constraint | None:
        """What form a generation must have; None for any. goes_on: a reply behind its tool results, which has made the
        calls that it had to make.
        """
        choice, text = generation.tool_choice, generation.text_schema
        if self.call_form is None:
            return JsonConstraint(text) if text else None
        mode: ToolMode = "auto" if choice.mode == "required" and goes_on else choice.mode
        if not self.may_call:
            mode = "none"
        tools = tuple(tool for tool in self._tools if mode != "required" or choice.tool in ("", tool[0]))
        return ToolConstraint(self.call_form, tools, mode, choice.several, text)

    def take_change(self, ahead: Sequence[int] = (), *, limit: int | None = None) -> tuple[int, tuple[int, ...]]:
        """(keep, tokens) that make the engine's log this one, followed by ``ahead``; the engine counts as told.

        ``ahead`` is no part of the history: the next change replaces it. ``limit``: how many tokens the engine's log
        can have; the rest of this one is not told.
        """
        keep = self._known
        told = self._tokens[keep:limit]
        self._known = keep + len(told)
        return keep, (*told, *ahead)

    def user_tokens(self, text: str) -> tuple[int, ...]:
        """A turn of the caller as it would follow now."""
        return tuple(self._chat.user(text, first=None if self._had_user else self._first_user))

    def aside(self, question: str) -> tuple[int, tuple[int, ...]]:
        """(keep, tokens) that make the log of a fork of the engine's: the whole items of the history, a question behind
        them, and what asks for the answer.
        """
        base = self._tokens[: self.spans[-1].end]
        keep = min(self._known, len(base))
        return keep, (*base[keep:], *self.user_tokens(question), *self.prompt)

    def aside_items(self, items: Sequence[Item]) -> tuple[int, tuple[int, ...]]:
        """The same of other items in place of the history's. Raises Problem for items that the template refuses."""
        other = Conversation(self._chat, self._system, items, self._definitions, "generate.conversation")
        tokens = (*other.tokens, *self.prompt)
        same = zip(self._tokens[: self._known], tokens, strict=False)
        keep = next((at for at, (mine, theirs) in enumerate(same) if mine != theirs), min(self._known, len(tokens)))
        return keep, tokens[keep:]

    def new_id(self) -> str:
        """A name for an item that the client did not name."""
        self._made_ids += 1
        return f"{ITEM_PREFIX}{self._made_ids}"

    def item_ids(self, since: int = 0) -> tuple[str, ...]:
        """Ids of the items whose tokens begin at position ``since`` or after, in order."""
        return tuple(item.id for span in self.spans if span.start >= since for item in span.items)

    def put_user(self, text: str, tokens: Sequence[int], item_id: str = "") -> None:
        """Append a turn of the caller, ``tokens`` being its ``user_tokens``."""
        self._put(tokens, MessageItem(item_id or self.new_id(), "user", text))

    def put_prompt(self) -> None:
        """Append what asks for a reply. It is part of the reply's span."""
        self._put(self.prompt)

    def adopt(self, segment: Segment) -> None:
        """The engine's log has a whole generation at its end: so has this one, with the message properly closed."""
        self._tokens += segment.tokens
        self._known = len(self._tokens)
        self._close(segment, segment.start, segment.text, segment.calls)

    def begin_segment(self, number: int, ahead: int = 0) -> Segment:
        """The generation that begins where the log ends now, or ``ahead`` tokens later."""
        return Segment(number, len(self._tokens) + ahead, self.new_id(), self._chat.codec.stream())

    def put_said(self, text: str, number: int, item_id: str) -> Segment:
        """Append given text as a message of the assistant."""
        self.put_prompt()
        segment = Segment(number, len(self._tokens), item_id or self.new_id(), tokens=self._chat.said(text), text=text)
        self._put(segment.tokens)
        self._close(segment, segment.start, text, ())
        return segment

    def said_tokens(self, text: str) -> int:
        """How many tokens ``put_said`` will append, at most."""
        return len(self.prompt) + len(self._chat.said(text)) + len(self._chat.close(None))

    def put_heard(self, segment: Segment, chars: int, calls: Sequence[ToolCallItem]) -> str:
        """Append what was heard of a generation, and the tool calls it made; returns the text that this holds.

        The cut is at the last token that ends on a whole character at or before ``chars``. Nothing at all is appended
        where that leaves nothing.
        """
        tokens, text = self._cut(segment, chars, with_calls=bool(calls))
        if not text and not calls:
            return ""
        self.put_prompt()
        start = len(self._tokens)
        self._put(tokens)
        self._close(segment, start, text, calls)
        return text

    def put_results(self, results: Sequence[ToolResultItem]) -> None:
        """Append the results of a generation's tool calls. Raises ValueError where the template has no place."""
        if results:
            self._put(self._result_tokens(results), *results)

    def result_tokens(self, results: Sequence[ToolResultItem]) -> int:
        """How many tokens ``put_results`` will append."""
        return len(self._result_tokens(results))

    def rewind(self, length: int) -> None:
        """Forget everything behind the first ``length`` tokens, which must end a span."""
        del self._tokens[length:]
        self._known = min(self._known, length)
        while self.spans and self.spans[-1].end > length:
            self.spans.pop()

    @property
    def _had_user(self) -> bool:
        return self._first_user is None or any(
            isinstance(item, MessageItem) and item.role == "user" for span in self.spans for item in span.items
        )

    def _result_tokens(self, results: Sequence[ToolResultItem]) -> list[int]:
        return self._chat.tool_results([(result.name, result.output) for result in results])

    def _put(self, tokens: Sequence[int], *items: Item) -> None:
        start = len(self._tokens)
        self._tokens += tokens
        if items:
            self.spans.append(Span(items, start, len(self._tokens)))

    def _close(self, segment: Segment, start: int, text: str, calls: Sequence[ToolCallItem]) -> None:
        """End the assistant's message whose own tokens begin at ``start``."""
        last = self._tokens[-1] if len(self._tokens) > start else None
        self._tokens += self._chat.close(last)
        items: tuple[Item, ...] = tuple(calls)
        if text or not calls:
            message = MessageItem(segment.item_id, "assistant", text, interrupted=text != segment.text)
            items = (message, *items)
        self.spans.append(Span(items, start - len(self.prompt), len(self._tokens)))

    def _cut(self, segment: Segment, chars: int, *, with_calls: bool) -> tuple[list[int], str]:
        """The tokens of a generation that its first ``chars`` code points leave, and their text."""
        tokens = segment.tokens
        ends = self._chat.codec.text_ends(tokens)
        calls_at = len(tokens)
        form = self._chat.call_form
        if form is not None and (segment.calls or segment.malformed_calls):
            raw = self._chat.codec.decode(tokens)
            calls_at = bisect_right(ends, raw.find(form.mark)) if form.mark else 0
            if with_calls and chars >= len(segment.text):
                end = raw.rfind(form.end_mark) + len(form.end_mark) if form.end_mark else len(raw)
                return tokens[: bisect_left(ends, end) + 1], segment.text
        fitting = bisect_right(ends, chars, hi=calls_at)
        # Behind the token that completes a character there may be some that begin the next one.
        kept = bisect_left(ends, ends[fitting - 1]) + 1 if fitting and ends[fitting - 1] else 0
        text = segment.text[: ends[kept - 1]] if kept else ""
        return tokens[:kept] + (tokens[calls_at:] if with_calls else []), text


def load_chat(directory: str) -> Chat:
    """The chat template and tokenizer of a model directory. Raises ``engine.errors.ModelError``."""
    vocab_size = read_json(Path(directory) / "config.json")["vocab_size"]
    return Chat(Codec.load(directory, int(vocab_size)))


def _messages(items: Sequence[Item]) -> list[Message]:
    """Items as chat templates take them: tool calls belong to the assistant's message before them."""
    messages: list[Message] = []
    for item in items:
        match item:
            case MessageItem():
                messages.append({"role": item.role, "content": item.text})
            case ToolCallItem():
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant", "content": ""})
                function = {"name": item.name, "arguments": json.loads(item.arguments)}
                call = {"type": "function", "id": item.call_id, "function": function}
                messages[-1].setdefault("tool_calls", []).append(call)
            case ToolResultItem():
                message = {"role": "tool", "name": item.name, "tool_call_id": item.call_id, "content": item.output}
                messages.append(message)
    return messages


def _function(tool: ToolDefinition) -> Tool:
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}
