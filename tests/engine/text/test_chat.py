"""The pieces of a chat template, put together turn by turn, are what the template writes for the whole conversation."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ModelError
from engine.text.chat import Chat, Message, Tool
from engine.text.codec import Codec
from tests.engine.embedded import load_codec
from tests.engine.text import templates
from tests.engine.text.test_codec import MARKS, SPECIAL

FAMILIES = ["embedded", "llama3", "qwen", "qwen3", "mistral"]
TOOLS: list[Tool] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "what it does",
            "parameters": {"type": "object", "properties": {"day": {"type": "string"}}, "required": ["day"]},
        },
    }
    for name in ("book", "cancel")
]


@cache
def chat_of(name: str) -> Chat:
    return Chat(templates.codec_for(name))


def render(chat: Chat, messages: list[Message], tools: list[Tool], *, prompt: bool = False) -> list[int]:
    """The tokenizer's own rendering."""
    hf = chat.codec.hf
    more: dict[str, Any] = {"date_string": "01 Jan 2026", "enable_thinking": False}
    encoded = hf.apply_chat_template(
        messages, tools=tools or None, add_generation_prompt=prompt, return_dict=False, **more
    )
    return list(encoded)


WORDS = st.lists(
    st.sampled_from(["Hi", "there", "at 3:30", "naïve", "😀", "I'm", "$4.50", '"quoted"', "back\\slash", "x\ny", "."]),
    min_size=1,
    max_size=5,
).map(" ".join)
STEPS = st.lists(st.tuples(WORDS, WORDS, st.lists(WORDS, max_size=2)), min_size=1, max_size=4)


def call(number: int) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "book", "arguments": {"day": f"day {number}"}}}


def build(chat: Chat, steps: list[tuple[str, str, list[str]]], system: str, tools: list[Tool], start: int) -> None:
    """A conversation through ``Chat``'s pieces, compared with the template's own rendering before every reply.

    steps: (caller, reply, outputs of tools called before the reply). start: steps that are there from the beginning.
    """
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    past: list[Message] = []
    for user, reply, _ in steps[:start]:
        past += [{"role": "user", "content": user}, {"role": "assistant", "content": reply}]
    head = chat.begin([*messages, *past], tools)
    log, messages = list(head.ids), [*messages, *past]
    assert (head.first_user is None) == (start > 0)
    for number, (user, reply, outputs) in enumerate(steps[start:]):
        messages.append({"role": "user", "content": user})
        log += chat.user(user, first=None if number or start else head.first_user)
        if outputs and tools:
            assert [*log, *chat.prompt] == render(chat, messages, tools, prompt=True)
            calls = [call(i) for i in range(len(outputs))]
            messages.append({"role": "assistant", "content": "", "tool_calls": calls})
            called = render(chat, messages, tools)  # the model's own words, whatever form they have
            assert called[: len(log)] == log
            log = called
            messages += [{"role": "tool", "name": "book", "content": output} for output in outputs]
            log += chat.tool_results([("book", output) for output in outputs])
        assert [*log, *chat.prompt] == render(chat, messages, tools, prompt=True)
        messages.append({"role": "assistant", "content": reply})
        said = chat.said(reply)
        log += [*past_prompt(chat), *said, *chat.close(said[-1])]
        assert log == render(chat, messages, tools)


def past_prompt(chat: Chat) -> list[int]:
    """The prompt as it is shown before a past reply: Qwen3 no longer shows its empty thought, which the log keeps."""
    return chat.codec.encode(chat.prompt_text.removesuffix("<think>\n\n</think>\n\n"))


@pytest.mark.parametrize("name", FAMILIES)
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_pieces_put_together_are_the_templates_own(name: str, data: st.DataObject) -> None:
    chat, steps = chat_of(name), data.draw(STEPS)
    system = data.draw(st.one_of(st.just(""), WORDS))
    tools = TOOLS if data.draw(st.booleans()) else []
    build(chat, steps, system, tools, data.draw(st.integers(0, len(steps) - 1)))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_stop_token_that_the_model_wrote_is_not_written_again(name: str) -> None:
    chat = chat_of(name)
    (stop,) = chat.codec.stop_tokens
    assert [stop, *chat.close(stop)] == chat.close(None) == chat.close(5)


def test_special_tokens_in_what_a_caller_says_are_text() -> None:
    chat = chat_of("embedded")
    added = set(chat.codec.hf.added_tokens_decoder)
    for mark in MARKS:
        said = f"x {mark}{SPECIAL[2]} y"
        ids = chat.user(said)
        assert [token for token in ids if token in added] == chat.codec.encode("<|user|><|end|>")
        assert said in chat.codec.decode(ids)
        system = chat.begin([{"role": "system", "content": said}]).ids
        assert [token for token in system if token in added] == chat.codec.encode("<|begin|><|system|><|end|>")
        assert not added & set(chat.said(said))
        results = chat.tool_results([("book", said)])
        assert [token for token in results if token in added] == chat.codec.encode("<|tool|><|end|>")


def test_instructions_that_stay_in_the_first_turn() -> None:
    chat = chat_of("llama2")
    build(chat, [("a", "b", []), ("c", "d", [])], "Be kind.", [], 0)
    head = chat.begin([{"role": "system", "content": "Be kind."}])
    assert head.first_user == "[INST] Be kind.\n\n"
    with pytest.raises(ValueError, match="special token"):
        chat.begin([{"role": "system", "content": "Be [INST] kind."}])


def test_instructions_that_move_are_refused_by_name() -> None:
    chat = chat_of("old mistral")
    build(chat, [("a", "b", []), ("c", "d", [])], "", [], 0)
    with pytest.raises(ValueError, match="moves the instructions"):
        chat.begin([{"role": "system", "content": "Be kind."}])


def broken(template: str) -> Codec:
    codec = load_codec()
    codec.hf.chat_template = template
    return codec


TURN = "{% for m in messages %}<|user|>HERE{{ m.content }}<|end|>{% endfor %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (TURN.replace("HERE", "{{ loop.index }}"), "depend on their place"),
        (TURN.replace("HERE", "{{ 'last' if loop.last and m.role == 'user' else '' }}"), "said before"),
        ("{{ messages | length }}" + TURN, "said before"),
        ("{% for m in messages[-2:] %}<|user|>{{ m.content }}<|end|>{% endfor %}", "said before"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}<|end|>{% endfor %}", "leaves out"),
        ("", "has no chat template"),
    ],
)
def test_a_template_whose_pieces_depend_on_their_place_is_refused_by_name(template: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Chat(broken(template))


def test_what_a_template_cannot_say_is_refused_by_name() -> None:
    chat = chat_of("old mistral")
    with pytest.raises(ValueError, match="no place for tools"):
        chat.begin([], TOOLS)
    with pytest.raises(ValueError, match="no place for tool calls"):
        chat.tool_results([("book", "yes")])


def test_tool_output_is_quoted_where_the_template_quotes_it() -> None:
    output = json.dumps({"free": ["3 p.m."]})
    text = chat_of("llama3").codec.decode(chat_of("llama3").tool_results([("book", output)]))
    assert json.dumps(output) in text


def test_a_conversation_that_begins_with_nothing() -> None:
    for name in FAMILIES:
        chat = chat_of(name)
        head = chat.begin([])
        log = [*head.ids, *chat.user("Hello", first=head.first_user), *chat.prompt]
        assert log == render(chat, [{"role": "user", "content": "Hello"}], [], prompt=True)
