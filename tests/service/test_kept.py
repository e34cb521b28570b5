"""What stays of a reply with tool calls anywhere in it: the text that is told, and what the tokens spell, are one."""

from __future__ import annotations

import json
from functools import cache
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.text.call_form import Call
from engine.text.chat import Chat
from engine.text.codec import Codec
from engine.text.reply import Read, ReplyReader
from service import client_events as client
from service import server_events as server
from service.items import ToolCallItem
from service.kept import kept
from service.options import GenerationPatch, TurnOptions
from service.reply import Segment
from tests.engine.text.templates import codec_for
from tests.service.calls import SYSTEM, BegunEngine, CallUnderTest, chat
from tests.service.test_guardrails import WAIT

FAMILIES = ("embedded", "qwen", "straddled")
WORDS = st.sampled_from(["Sure.", "I am looking", "👋🏽 é", "9:30", "日本", "it is", "Well, ", " "])
MALFORMED = '{"name": wait'


@cache
def chat_of(family: str) -> Chat:
    """straddled: with tokens that hold the end of a text and the beginning of a call, or the other way round."""
    if family != "straddled":
        return Chat(codec_for(family))
    codec = codec_for("embedded")
    codec.hf.add_tokens([".<tool_call>", "</tool_call>I", "</tool_call><tool_call>"])
    return Chat(Codec(codec.hf, codec.stop_tokens))


def read(family: str, tokens: list[int]) -> Read:
    chat = chat_of(family)
    reader = ReplyReader(chat.codec, calls=chat.call_form)
    for token in tokens:
        reader.push(token)
    return reader.take(final=True)


@st.composite
def replies(draw: st.DrawFn, family: str) -> tuple[Segment, list[int]]:
    """A generation of texts and calls, some of them malformed, and where its text may be cut."""
    chat = chat_of(family)
    form = chat.call_form
    assert form is not None
    written, calls = "", []
    for kind in draw(st.lists(st.sampled_from(["text", "call", "malformed"]), max_size=6)):
        if kind == "text":
            written += draw(WORDS)
        elif kind == "malformed":
            written += f"{form.mark}{MALFORMED}{form.end_mark}"
        else:
            arguments = json.dumps({"x": f"<b>{len(calls)}</tool_call>"})
            calls.append(ToolCallItem(f"i{len(calls)}", f"c{len(calls)}", "wait", arguments))
            written += form.before + "wait" + form.between + arguments + form.after
    tokens = chat.codec.encode(written) + sorted(chat.codec.stop_tokens)[:1]
    whole = read(family, tokens)
    assert whole.calls == [Call(call.name, call.arguments) for call in calls]
    segment = Segment(1, 0, "s", tokens=tokens, text=whole.text, calls=calls, malformed_calls=len(whole.malformed))
    return segment, [len(read(family, tokens[:count]).text) for count in range(len(tokens) + 1)]


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_text_and_tokens_agree_wherever_a_reply_is_cut(family: str, data: st.DataObject) -> None:
    segment, ends = data.draw(replies(family))
    staying = segment.calls if data.draw(st.booleans()) else []
    for chars in range(len(segment.text) + 2):
        tokens, text = kept(chat_of(family), segment, chars, staying)
        assert segment.text.startswith(text) and len(text) <= chars
        assert len(text) == max(end for end in ends if end <= chars)
        holds = read(family, tokens)
        assert (holds.text.rstrip("\n"), holds.malformed) == (
            text.rstrip("\n"),
            [],
        )  # what a template puts before calls
        assert holds.calls == [Call(call.name, call.arguments) for call in staying]
        if family != "straddled":
            rest = iter(segment.tokens)
            assert all(token in rest for token in tokens), "what stays keeps its tokens, in order"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_at_every_character_of_text_call_text_call_text(family: str) -> None:
    chat = chat_of(family)
    form = chat.call_form
    assert form is not None
    texts = ("Sure.", "I am on it.", "It takes long.")
    call = form.before + "wait" + form.between + "{}" + form.after
    tokens = chat.codec.encode(call.join(texts))
    calls = [ToolCallItem(name, name, "wait", "{}") for name in "ab"]
    whole = read(family, tokens).text
    segment = Segment(1, 0, "s", tokens=tokens, text=whole, calls=calls)
    places = list(accumulate(map(len, texts)))
    for chars in range(places[-1] + 1):
        stay, text = kept(chat, segment, chars, calls)
        assert whole[:chars].startswith(text)
        assert read(family, stay).text == text and len(read(family, stay).calls) == 2
        assert chars not in places or len(text) == chars
    assert kept(chat, segment, len(whole), calls) == (tokens, whole)


def test_calls_without_marks_stay_as_far_as_they_were_made() -> None:
    """Llama's, of which a limit has let only the first be made."""
    chat = Chat(codec_for("llama3"))
    form = chat.call_form
    assert form is not None and not form.mark
    call = form.before + "wait" + form.between + "{}" + form.after
    tokens = chat.codec.encode(f"{call}; {call}")
    made = [ToolCallItem("a", "a", "wait", "{}")]
    segment = Segment(1, 0, "s", tokens=tokens, calls=made, malformed_calls=1)
    assert chat.codec.decode(kept(chat, segment, 0, made)[0]) == call
    assert kept(chat, segment, 0, ()) == ([], "")


def test_given_text_is_cut_where_the_template_writes_a_space_before_it() -> None:
    """Mistral's."""
    chat = Chat(codec_for("mistral"))
    text = "One moment, please."
    segment = Segment(1, 0, "s", tokens=chat.said(text), text=text)
    for chars in range(len(text) + 1):
        tokens, left = kept(chat, segment, chars, ())
        assert left == text[:chars] and chat.codec.decode(tokens).strip() == left.strip()


@pytest.mark.parametrize("answered", ["before", "after", "never"])
def test_a_call_holds_what_it_tells_wherever_text_around_a_tool_call_is_cut(answered: str) -> None:
    written = 'Sure.<tool_call>{"name": "wait", "arguments": {}}</tool_call>I am looking.'
    call = CallUnderTest(client.Open(system=SYSTEM, seed=7, tools=(WAIT,)), engine := BegunEngine(written))
    limit = TurnOptions(generation=GenerationPatch(max_tokens=len(engine.beginning) + 1))
    before = call.conversation.length
    call.send(client.Final(1, "Hello?", limit))
    call.run()
    (called,) = call.of(server.ToolCalled)
    result = client.ToolResult(1, called.call.call_id, '{"ok": true}', no_reply=True)
    said = call.text(1)
    assert said.startswith("Sure.I am looking.")
    if answered == "before":
        call.send(result)
    for chars in (*range(len(said) + 1), 5, len(said), 0, 3):
        call.send(client.Interrupt(1, client.Heard(chars=chars)))
        if answered == "after":
            call.send(result)
        text = call.of(server.Interrupted)[-1].text
        log = chat().codec.hf.decode(list(call.conversation.tokens)[before:])
        reply = log.partition("<|assistant|>")[2].partition("<|end|>")[0]
        made = '<tool_call>{"name": "wait", "arguments": {}}</tool_call>'
        assert (made in reply) is (answered != "never")
        assert reply.replace(made, "") == text and said[:chars].startswith(text)
        call.run()
        assert call.engine.log(call.call.session) == tuple(call.conversation.tokens)
