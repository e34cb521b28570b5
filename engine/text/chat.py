"""Chat templates, rendered once and appended for ever: what each new item adds to the token log.

The template is the tokenizer's own. At load it is probed with marked conversations, which gives the text around a
caller's turn, before a reply and after one; from then on a turn costs the encoding of its own words, however long the
call. A template whose pieces depend on their place is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import ModelError
from engine.text.codec import Codec

Message = dict[str, Any]
Tool = dict[str, Any]

_FIRST, _SECOND, _THIRD = "qzxfirstqzx", "qzxsecondqzx", "qzxthirdqzx"
_DATE = "01 Jan 2026"  # templates that print today's date would differ from one day to the next


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
        if not turn.startswith(self.tail) or not prompted.startswith(third):
            raise ModelError("the chat template changes what it has said before when a turn is added")
        self._trims = f" {_THIRD} " not in turn
        self._user_prefix, self._user_suffix = turn[len(self.tail) :].split(_THIRD if self._trims else f" {_THIRD} ")
        self._opening_prefix = opening.split(_FIRST)[0]
        self.prompt_text = prompted[len(third) :]
        self.prompt = tuple(codec.encode(self.prompt_text))
        self._tail_ids = tuple(codec.encode(self.tail))
        self.writes_hermes_calls = "<tool_call>" in self._template_source()
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
        marked, contents = _mark(messages)
        probe = [] if started else [_user(_FIRST)]
        text = self._render([*marked, *probe], tools)
        if tools and text == self._render([*marked, *probe]):
            raise ValueError("the model's chat template has no place for tools")
        first_user = None
        if not started:
            text = text.split(_FIRST)[0]
            first_user = self._user_prefix
            if text.endswith(first_user):
                text = text.removesuffix(first_user)
            else:
                whole = text
                text = self._render(marked) if marked else ""
                if not whole.startswith(text):
                    raise ValueError("the chat template does not begin with the instructions alone")
                first_user = whole[len(text) :]
        return Head(tuple(self._encode_marked(text, contents)), first_user)

    def user(self, text: str, *, first: str | None = None) -> list[int]:
        """Ids of a caller's turn. ``first``: ``Head.first_user`` for the first turn of a conversation."""
        content = text.strip() if self._trims else text
        return self.codec.encode_around(self._user_prefix if first is None else first, content, self._user_suffix)

    def close(self, last: int | None) -> list[int]:
        """Ids that end a reply whose last id is ``last``: nothing that the model itself wrote is written again."""
        ended = last is not None and last in self.codec.stop_tokens
        return list(self._tail_ids[1:] if ended else self._tail_ids)

    def said(self, text: str) -> list[int]:
        """Ids of given assistant text, without the prompt before it and the tail after it."""
        return self.codec.encode_plain(text)

    def tool_results(self, results: Sequence[tuple[str, str]]) -> list[int]:
        """Ids of tool results, given as (tool name, output), after the reply that called for them was closed."""
        call = {"type": "function", "function": {"name": results[0][0], "arguments": {"x": _SECOND}}}
        stub: list[Message] = [_user(_FIRST), {"role": "assistant", "content": "", "tool_calls": [call]}]
        answers = [{"role": "tool", "name": name, "content": output} for name, output in results]
        marked, contents = _mark(answers)
        closing = _after(self._render(stub), _SECOND)
        added = _after(self._render([*stub, *marked]), _SECOND)
        if not added.startswith(closing):
            raise ValueError("the chat template changes a tool call when its result is added")
        return self._encode_marked(added[len(closing) :], contents)

    def _encode_marked(self, text: str, contents: Sequence[str]) -> list[int]:
        """Ids of a rendering whose contents were replaced by marks, each content encoded as plain text."""
        safe = all(self.codec.is_plain(content) for content in contents)
        ids: list[int] = []
        for index, content in enumerate(contents):
            mark = _content_mark(index)
            before, found, rest = text.partition(mark)
            if not found:
                continue  # a template may leave a message out
            if safe:
                text = before + content.strip() + rest if self._trims else before + content + rest
                continue
            ids += self.codec.encode(before) + self.codec.encode_plain(content.strip() if self._trims else content)
            text = rest
        return ids + self.codec.encode(text)

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

    def _template_source(self) -> str:
        template = self.codec.hf.chat_template
        return template if isinstance(template, str) else "".join(template.values())

    def _verify(self) -> None:
        """The pieces, put together, must be what the template writes for a conversation of several turns."""
        words = [f"alpha {number} beta" for number in range(4)]
        messages: list[Message] = []
        pieces = self._opening_prefix
        for number, word in enumerate(words):
            messages += [_user(word), _assistant(word)]
            before = self._user_prefix if number else ""
            pieces += before + word + self._user_suffix
            whole = self._render(messages[:-1], prompt=True)
            if whole != pieces + self.prompt_text and number == 0:
                raise ModelError("the chat template writes a first turn otherwise than it writes one later")
            pieces += self.prompt_text + word + self.tail


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _content_mark(index: int) -> str:
    return f"qzxcontent{index}qzx"


def _mark(messages: Sequence[Message]) -> tuple[list[Message], list[str]]:
    """The messages with their contents replaced by marks, and those contents."""
    marked: list[Message] = []
    contents: list[str] = []
    for message in messages:
        content = message.get("content")
        if content:
            marked.append({**message, "content": _content_mark(len(contents))})
            contents.append(content)
        else:
            marked.append(message)
    return marked, contents


def _after(text: str, mark: str) -> str:
    """What follows the mark. ModelError where the template left it out."""
    _, found, rest = text.rpartition(mark)
    if not found:
        raise ModelError("the chat template leaves out what was said")
    return rest
