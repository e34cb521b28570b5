"""Content never turns into markup, wherever in a conversation it stands."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from engine.text.chat import Chat, Message, Tool
from tests.engine.text.test_chat import FAMILIES, TOOLS, TURN, broken, chat_of, render


def conversation(value: str) -> tuple[list[Message], list[Tool]]:
    """Messages and tools that hold the value everywhere but in a name that a template looks up."""
    call: dict[str, Any] = {"name": f"book{value}", "arguments": {"day": value, value: [{"x": value}, 3, None]}}
    tools = copy.deepcopy(TOOLS)
    tools[0]["function"]["description"] = value
    return [
        {"role": "system", "content": value},
        {"role": "user", "content": value},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "name": f"book{value}", "content": value},
        {"role": "assistant", "content": value},
    ], tools


def added_in(chat: Chat, ids: tuple[int, ...]) -> list[int]:
    return [token for token in ids if token in chat.codec.hf.added_tokens_decoder]


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_in_a_prior_tool_call_are_text(family: str) -> None:
    chat = chat_of(family)
    plain, tools = conversation("Tuesday")
    head = chat.begin(plain, tools)
    assert list(head.ids) == render(chat, plain, tools)
    for token in chat.codec.hf.added_tokens_decoder.values():
        spelled, tools = conversation(token.content)
        ids = chat.begin(spelled, tools).ids
        assert added_in(chat, ids) == added_in(chat, head.ids), token.content
        assert chat.codec.decode(ids).count(token.content) >= 8


@pytest.mark.parametrize("value", ['qzxcontent0"qzx', "qzxfirstqzx", 'qzxvalue1"qzx <tool_call>'])
def test_what_looks_like_a_mark_is_text(value: str) -> None:
    chat = chat_of("embedded")
    messages, tools = conversation(value)
    wanted = render(chat, messages, tools)
    ids = chat.begin(messages, tools).ids
    assert chat.codec.decode(ids) == chat.codec.decode(wanted)


def test_what_a_template_leaves_out_takes_nothing_along() -> None:
    chat = Chat(broken(TURN.replace("HERE", "").replace("in messages", "in messages if m.role != 'tool'")))
    messages = [
        {"role": "user", "content": "Hi <tool_call>"},
        {"role": "tool", "content": "left out <tool_call>"},
        {"role": "user", "content": "said <tool_call>"},
    ]
    assert chat.codec.decode(chat.begin(messages).ids) == "Hi <tool_call>said <tool_call>"
