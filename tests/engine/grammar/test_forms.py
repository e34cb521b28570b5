"""What a reply may say under each constraint, in each form in which a model's template writes tool calls."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch

from engine.constraint import Constraint, JsonConstraint, ToolConstraint
from engine.errors import InvalidConstraint
from engine.grammar.compiler import GrammarCompiler, check_schema
from engine.text.call_form import CallForm
from engine.text.chat import Chat
from engine.text.codec import Codec
from engine.text.reply import ReplyReader
from engine.tree import DraftTree
from tests.engine.text.templates import codec_for

FAMILIES = ("embedded", "qwen", "qwen3", "llama3")
DAY = {"type": "object", "properties": {"day": {"type": "string"}, "hour": {"type": "integer"}}, "required": ["day"]}
TOOLS = (("check", json.dumps(DAY)), ("end", json.dumps({"type": "object", "properties": {}})))
ARGUMENTS = '{"day": "Tue}</tool_call>", "hour": 9}'
ROOT = DraftTree.chain(torch.tensor([0]))


@cache
def of(family: str) -> tuple[Codec, CallForm, GrammarCompiler]:
    codec = codec_for(family)
    form = Chat(codec).call_form
    assert form is not None
    return codec, form, GrammarCompiler(codec, len(codec.hf), torch.device("cpu"))


def call(form: CallForm, name: str = "check", arguments: str = ARGUMENTS) -> str:
    return form.before + name + form.between + arguments + form.after


def ids_of(codec: Codec, text: str) -> list[int]:
    """Ids of a reply; a mark inside the arguments is spelt, for the token stands for the end of a call alone."""
    found: list[int] = []
    for number, piece in enumerate(text.split(ARGUMENTS)):
        found += codec.encode_plain(ARGUMENTS) if number else []
        found += codec.encode(piece)
    return found


def says(family: str, constraint: Constraint, ids: list[int]) -> tuple[bool, bool]:
    """(whether a reply may begin so, whether it may end there)"""
    codec, _, compiler = of(family)
    grammar = compiler.begin(compiler.compile(constraint))
    for token in ids:
        if not grammar.mask(ROOT)[0, token]:
            return False, False
        grammar.consume([token])
    allowed = grammar.mask(ROOT)[0]
    return True, all(bool(allowed[stop]) for stop in codec.stop_tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_form_is_what_the_template_writes(family):
    codec, form, _ = of(family)
    function = {"name": "check", "arguments": {"day": "Tue", "hour": 9}}
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": function}]},
    ]
    rendered = codec.hf.apply_chat_template(messages, tokenize=False)
    assert call(form, arguments='{"day": "Tue", "hour": 9}') in rendered


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("choice", ["auto", "none", "required"])
def test_which_replies_there_are(family, choice):
    codec, form, _ = of(family)
    constraint = ToolConstraint(form, TOOLS, choice)
    one, other = call(form), call(form, "end", "{}")
    joint = one + other if form.mark else f"{one}; {other}"
    may_call, may_talk = choice != "none", choice != "required"
    for text, allowed in [
        ("Hello <there>, {you}.", may_talk),
        (one, may_call),
        (other, may_call),
        (joint, may_call),
        (f"Wait. {one}", may_talk and (may_call or not form.mark)),  # without a mark it is text
        (f"{one}Done.", may_call and may_talk and bool(form.mark)),
    ]:
        assert says(family, constraint, ids_of(codec, text)) == (allowed, allowed), text
    for wrong in (call(form, "chec"), call(form, arguments='{"hour": 9}'), call(form, arguments='{"day": 3}')):
        assert not says(family, constraint, ids_of(codec, wrong))[0], wrong
    half = ids_of(codec, one)[:-2]
    assert says(family, constraint, half) == (may_call, False)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_call(family):
    codec, form, _ = of(family)
    for choice in ("auto", "required"):
        constraint = ToolConstraint(form, TOOLS, choice, several=False)
        assert says(family, constraint, ids_of(codec, call(form))) == (True, True)
        joint = call(form) * 2 if form.mark else f"{call(form)}; {call(form)}"
        assert not says(family, constraint, ids_of(codec, joint))[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_text_of_a_schema_beside_calls_and_alone(family):
    codec, form, _ = of(family)
    schema = json.dumps({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]})
    for constraint in (JsonConstraint(schema), ToolConstraint(form, TOOLS, text=schema)):
        assert says(family, constraint, codec.encode('{"ok": true}')) == (True, True)
        assert not says(family, constraint, codec.encode('{"ok": 1'))[0]
        assert not says(family, constraint, codec.encode("Yes"))[0]
        assert not says(family, constraint, codec.encode('{"ok": true, "more'))[0]
    assert says(family, ToolConstraint(form, TOOLS, text=schema), ids_of(codec, call(form))) == (True, True)


@pytest.mark.parametrize("family", ["embedded", "qwen"])
@pytest.mark.parametrize("choice", ["auto", "none"])
def test_a_mark_spelt_by_other_tokens_is_no_way_around_it(family, choice):
    """A reader of text sees a call there all the same."""
    codec, form, _ = of(family)
    spelt = [token for character in form.mark for token in codec.encode(character)]
    assert len(spelt) == len(form.mark)
    constraint = ToolConstraint(form, TOOLS, choice)
    assert says(family, constraint, spelt[:-1])[0]
    begun = says(family, constraint, spelt)[0]
    assert not begun or not says(family, constraint, [*spelt, *codec.encode("oops")])[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_may_be_said_is_read_as_the_call_it_is(family):
    codec, form, _ = of(family)
    for text, wanted in [(call(form), ["check"]), ("Fine.", []), (call(form, "end", "{}"), ["end"])]:
        reader = ReplyReader(codec, calls=form)
        for token in ids_of(codec, text):
            reader.push(token)
        read = reader.take(final=True)
        assert [one.name for one in read.calls] == wanted and not read.malformed
        assert read.text == ("" if wanted else text)
        assert all(json.loads(one.arguments) == json.loads(ARGUMENTS) for one in read.calls if one.name == "check")


def test_llama_may_write_its_tag_before_a_call():
    codec = codec_for("llama3")
    form = Chat(codec).call_form
    codec.hf.add_tokens(["<|python_tag|>"], special_tokens=True)
    codec = Codec(codec.hf, codec.stop_tokens)
    compiler = GrammarCompiler(codec, len(codec.hf), torch.device("cpu"))
    grammar = compiler.begin(compiler.compile(ToolConstraint(form, TOOLS, "required")))
    for token in ids_of(codec, "<|python_tag|>" + call(form)):
        assert grammar.mask(ROOT)[0, token]
        grammar.consume([token])


def test_a_schema_that_cannot_be_enforced_is_refused_by_name():
    assert not check_schema(json.dumps(DAY)) and not check_schema("{}")
    assert "not" in check_schema('{"type": "object", "properties": {"a": {"not": {"type": "string"}}}}')
    assert check_schema('{"type": "strin"}')
    itself = {"type": "object", "properties": {"a": {"$ref": "#"}}}
    assert not check_schema(json.dumps(itself))
    assert "end" in check_schema(json.dumps({**itself, "required": ["a"]}))
    _, form, compiler = of("embedded")
    with pytest.raises(InvalidConstraint):
        compiler.compile(ToolConstraint(form, (("bad", '{"type": "strin"}'),)))
    with pytest.raises(InvalidConstraint):
        compiler.compile(JsonConstraint("[1]"))


ID = {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}
JOINED = [
    {**ID, "anyOf": [{"properties": {"a": {"type": "string"}}}, {"properties": {"b": {"type": "string"}}}]},
    {"$defs": {"Base": ID}, "$ref": "#/$defs/Base", "properties": {"more": {"type": "string"}}},
    {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x", "y"]},
    {"type": "object", "required": ["x"]},
    {"type": "object", "minProperties": 1},
]


@pytest.mark.parametrize("schema", JOINED)
def test_objects_that_cannot_be_closed_stay_open(schema):
    _, form, compiler = of("embedded")
    assert not check_schema(json.dumps(schema))
    compiler.compile(ToolConstraint(form, (("do", json.dumps(schema)),)))


def test_an_object_of_any_members_takes_any():
    codec, form, _ = of("embedded")
    constraint = ToolConstraint(form, (("do", '{"type": "object"}'),))
    assert says("embedded", constraint, codec.encode(call(form, "do", '{"x": [1, null]}'))) == (True, True)


def test_definitions_of_tools_and_text_do_not_meet():
    codec, form, _ = of("llama3")
    schema = {"$defs": {"A": {"type": "integer"}}, "type": "object", "properties": {"x": {"$ref": "#/$defs/A"}}}
    other = {**schema, "$defs": {"A": {"type": "boolean"}}}
    constraint = ToolConstraint(form, (("do", json.dumps(schema)),), text=json.dumps(other))
    assert says("llama3", constraint, codec.encode(call(form, "do", '{"x": 3}'))) == (True, True)
    assert says("llama3", constraint, codec.encode('{"x": true}')) == (True, True)
    assert not says("llama3", constraint, codec.encode('{"x": 3'))[0]
