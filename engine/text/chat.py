"""Chat templates, rendered once and appended for ever: what each new item adds to the token log.

The template is the tokenizer's own. At load it is probed with marked conversations, which gives the text around a
caller's turn, before a reply and after one; from then on a turn costs the encoding of its own words, however long the
call. A template whose pieces depend on their place is refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from engine.errors import ModelError
from engine.text.call_form import KEYS, NAME, VALUE, CallForm, form_of
from engine.text.codec import Codec
from engine.text.common import common_prefix

Message = dict[str, Any]
Tool = dict[str, Any]

_FIRST, _SECOND, _THIRD = "qzxfirstqzx", "qzxsecondqzx", "qzxthirdqzx"
_DATE = "01 Jan 2026"  # templates that print today's date would differ from one day to the next
_MARK = re.compile(r'qzx(content|value)(\d+)(\\?)"qzx')
"""The place of a text, by its number. A template that quotes the text (Llama 3.1: what a tool says) quotes this too."""


@dataclass(frozen=True)
class Head:
    """The beginning of a conversation: its ids, and what stands before the first turn of the caller.

    first_user: some templates (Llama 3.1) put the tools there; it is the usual prefix elsewhere, and None once the
    conversation has a turn of the caller.
    """

    ids: tuple[int, ...]
    first_user: str | None


class Chat:
    """One model's chat template over its tokenizer."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        if not codec.hf.chat_template:
            raise ModelError(f"the tokenizer in {codec.hf.name_or_path} has no chat template")
        opening = self._render([_user(_FIRST)])
        replied = self._render([_user(_FIRST), _assistant(_SECOND)])
        third = self._render([_user(_FIRST), _assistant(_SECOND), _user(f" {_THIRD} ")])
        prompted = self._render([_user(_FIRST), _assistant(_SECOND), _user(f" {_THIRD} ")], prompt=True)
        self.tail = _after(replied, _SECOND)
        turn = _after(third, _SECOND)
        if not third.startswith(opening) or not turn.startswith(self.tail) or not prompted.startswith(third):
            raise ModelError("the chat template changes what it has said before when a turn is added")
        self._trims = f" {_THIRD} " not in turn
        self._user_prefix, self._user_suffix = turn[len(self.tail) :].split(_THIRD if self._trims else f" {_THIRD} ")
        self._opening_prefix = opening.split(_FIRST)[0]
        self.prompt_text = prompted[len(third) :]
        self.prompt = tuple(codec.encode(self.prompt_text))
        # Before a past reply a template writes the prompt, or more (Mistral's space), or less (Qwen3's empty thought).
        self._past_prompt = third[len(opening) :].partition(_SECOND)[0]
        self._said_prefix = self._past_prompt[len(self.prompt_text) :]
        if not self._past_prompt.startswith(self.prompt_text):
            self._said_prefix = ""
        self._tail_ids = tuple(codec.encode(self.tail))
        self._verify()

    def begin(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> Head:
        """The log's beginning for instructions, tools and prior messages, as the template writes them.

        Raises ValueError for messages that the template refuses, and for tools where it has no place for them.
        """
        if not messages and not tools:
            prefix = self._opening_prefix
            if prefix.endswith(self._user_prefix):
                return Head(tuple(self.codec.encode(prefix.removesuffix(self._user_prefix))), self._user_prefix)
            return Head((), prefix)
        started = any(message["role"] == "user" for message in messages)
        marks = _Marks(self.codec)
        marked, tools = marks.messages(messages), marks.within(tools)
        probe = [] if started else [_user(_FIRST)]
        text = self._render([*marked, *probe], tools)
        if tools and text == self._render([*marked, *probe]):
            raise ValueError("the model's chat template has no place for tools")
        first_user = None
        if not started:
            text = text.split(_FIRST)[0]
            if not self._render([*marked, *probe, _assistant(_SECOND), _user(_THIRD)], tools).startswith(text):
                raise ValueError("the chat template moves the instructions or the tools when a turn is added")
            start = text.rfind(self._user_prefix)
            if start < 0:
                raise ValueError("the chat template writes a first turn otherwise than it writes one later")
            text, first_user = text[:start], self._fill_plain(text[start:], marks.texts)
        return Head(tuple(self._encode_marked(text, marks.texts)), first_user)

    def user(self, text: str, *, first: str | None = None) -> list[int]:
        """Ids of a caller's turn. ``first``: ``Head.first_user`` for the first turn of a conversation."""
        content = text.strip() if self._trims else text
        return self.codec.encode_around(self._user_prefix if first is None else first, content, self._user_suffix)

    def close(self, last: int | None) -> list[int]:
        """Ids that end a reply whose last id is ``last``: nothing that the model itself wrote is written again."""
        stops = self.codec.stop_tokens
        ended = last in stops and self._tail_ids[:1] and self._tail_ids[0] in stops
        return list(self._tail_ids[1:] if ended else self._tail_ids)

    def said(self, text: str) -> list[int]:
        """Ids of given assistant text, without the prompt before it and the tail after it."""
        return self.codec.encode_around(self._said_prefix, text, "")

    def assistant(self, text: str, calls: Sequence[tuple[str, str]]) -> list[int]:
        """Ids of a past message of the assistant with tool calls, (name, JSON of the arguments), without the prompt
        before it and the tail after it.
        """
        if not calls:
            return self.said(text)
        functions = [{"name": name, "arguments": json.loads(arguments)} for name, arguments in calls]
        made = [{"type": "function", "function": function} for function in functions]
        marks = _Marks(self.codec)
        (marked,) = marks.messages([{"role": "assistant", "content": text, "tool_calls": made}])
        body = self._render([_user(_FIRST), marked])[len(self._render([_user(_FIRST)])) :].removesuffix(self.tail)
        return self._encode_marked(body[len(common_prefix(body, self._past_prompt)) :], marks.texts)

    def tool_results(self, results: Sequence[tuple[str, str]]) -> list[int]:
        """Ids of tool results, given as (tool name, output), after the reply that called for them was closed."""
        call = {"type": "function", "function": {"name": results[0][0], "arguments": {"x": _SECOND}}}
        stub: list[Message] = [_user(_FIRST), {"role": "assistant", "content": "", "tool_calls": [call]}]
        answers = [{"role": "tool", "name": name, "content": output} for name, output in results]
        marks = _Marks(self.codec)
        marked = marks.messages(answers)
        called = self._render(stub)
        if _SECOND not in called:
            raise ValueError("the model's chat template has no place for tool calls")
        closing = _after(called, _SECOND)
        added = _after(self._render([*stub, *marked]), _SECOND)
        if not added.startswith(closing):
            raise ValueError("the chat template changes a tool call when its result is added")
        return self._encode_marked(added[len(closing) :], marks.texts)

    def _encode_marked(self, rendering: str, texts: Sequence[str]) -> list[int]:
        """Ids of a rendering in which marks stand for the texts, each text encoded as plain text."""
        pieces = self._fill(rendering, texts)
        if all(self.codec.is_plain(text) for text in pieces[1::2]):
            return self.codec.encode("".join(pieces))
        ids: list[int] = []
        for index, piece in enumerate(pieces):
            ids += self.codec.encode_plain(piece) if index % 2 else self.codec.encode(piece)
        return ids

    def _fill_plain(self, rendering: str, texts: Sequence[str]) -> str:
        """A rendering with the texts in the place of their marks. ValueError where they spell a special token."""
        pieces = self._fill(rendering, texts)
        if not all(self.codec.is_plain(text) for text in pieces[1::2]):
            raise ValueError("instructions inside a caller's turn must not spell a special token")
        return "".join(pieces)

    def _fill(self, rendering: str, texts: Sequence[str]) -> list[str]:
        """The rendering cut at its marks: markup, a text as the template writes it, markup, a text, ... markup."""
        pieces, start = [], 0
        for mark in _MARK.finditer(rendering):
            kind, number, quoted = mark.groups()
            text = texts[int(number)]
            if quoted:
                text = json.dumps(text, ensure_ascii=False)[1:-1]
            elif kind == "content" and self._trims:
                text = text.strip()
            pieces += [rendering[start : mark.start()], text]
            start = mark.end()
        return [*pieces, rendering[start:]]

    def _render(self, messages: Sequence[Message], tools: Sequence[Tool] = (), *, prompt: bool = False) -> str:
        try:
            text = self.codec.hf.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                tokenize=False,
                add_generation_prompt=prompt,
                date_string=_DATE,
                enable_thinking=False,
            )
        except Exception as error:  # a template raises what it likes
            raise ValueError(f"the chat template refuses this conversation: {error}") from error
        return str(text)

    @cached_property
    def call_form(self) -> CallForm | None:
        """How the template writes the assistant's tool calls; None where it does not, or in a form of its own."""
        function = {"name": NAME, "arguments": dict.fromkeys(KEYS, VALUE)}
        call = {"type": "function", "function": function}
        messages: list[Message] = [_user(_FIRST), {"role": "assistant", "content": "", "tool_calls": [call]}]
        try:
            written = self._render(messages)
        except ValueError:
            return None
        body = written[len(self._render([_user(_FIRST)])) :].removesuffix(self.tail)
        prompt = common_prefix(body, self._past_prompt)
        form = form_of(body[len(prompt) :])
        if form is None or not self._reads_as_written(form):
            return None
        messages[-1]["tool_calls"] = [call, call]
        try:
            return replace(form, several=self._render(messages).count(NAME) == 2)
        except ValueError:
            return replace(form, several=False)

    def _reads_as_written(self, form: CallForm) -> bool:
        """Whether its marks come out of the model as text: special tokens would be left out."""
        marks = form.mark + form.end_mark
        return self.codec.decode(self.codec.encode(marks)) == marks

    def _verify(self) -> None:
        """The pieces, put together, must be what the template writes for a conversation of several turns.

        All but the beginning of a past reply, which some templates write otherwise than their prompt.
        """
        words = [f"alpha {number} beta" for number in range(4)]
        messages: list[Message] = []
        pieces = self._opening_prefix
        for number, word in enumerate(words):
            messages += [_user(word), _assistant(word)]
            before = self._user_prefix if number else ""
            pieces += before + word + self._user_suffix
            whole = self._render(messages[:-1], prompt=True)
            if whole != pieces + self.prompt_text:
                raise ModelError("the pieces of the chat template depend on their place in the conversation")
            pieces += self._past_prompt + word + self.tail


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


class _Marks:
    """Puts marks in the place of ``texts``, so that a rendering shows where the template writes which."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.texts: list[str] = []

    def messages(self, messages: Sequence[Message]) -> list[Message]:
        """Marked are the contents, and whatever else spells a special token (an argument of a tool call, say)."""
        return [
            {
                key: self._put("content", value) if key == "content" and value else self.within(value)
                for key, value in message.items()
            }
            for message in messages
        ]

    def within(self, value: Any) -> Any:
        """A JSON value in which every string that spells a special token, or looks like a mark, is marked."""
        if isinstance(value, str):
            plain = self._codec.is_plain(value) and "qzx" not in value
            return value if plain else self._put("value", value)
        if isinstance(value, Mapping):
            return {self.within(key): self.within(item) for key, item in value.items()}
        if isinstance(value, Sequence):
            return [self.within(item) for item in value]
        return value

    def _put(self, kind: str, text: str) -> str:
        self.texts.append(text)
        return f'qzx{kind}{len(self.texts) - 1}"qzx'


def _after(text: str, mark: str) -> str:
    """What follows the mark. ModelError where the template left it out."""
    _, found, rest = text.rpartition(mark)
    if not found:
        raise ModelError("the chat template leaves out what was said")
    return rest
