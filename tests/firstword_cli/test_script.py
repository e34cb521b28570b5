"""Reading recorded calls, tools and instructions; and what answers the tools."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from firstword.talk.front_desk import FrontDesk
from firstword.talk.script import ScriptError, parse_call, read_call, read_tools, text_or_file

FUNCTION = {"name": "find", "description": "Find it.", "parameters": {"type": "object", "properties": {}}}
PLAIN = {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello"}]}
CALLING = {
    "messages": [
        {"role": "system", "content": "Be quick."},
        {"role": "user", "content": "where is it"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {"name": "find", "arguments": {}}},
                {"type": "function", "function": {"name": "note", "arguments": {}}},
            ],
        },
        {"role": "tool", "content": "here"},
        {"role": "tool", "content": "noted"},
        {"role": "assistant", "content": "Here."},
        {"role": "user", "content": "thanks"},
    ],
    "tools": [{"type": "function", "function": FUNCTION}],
}


def test_a_recorded_call_gives_the_caller_and_the_results_of_the_tools() -> None:
    call = parse_call(CALLING)
    assert call.system == "Be quick."
    assert call.lines == ("where is it", "thanks")
    assert call.results == (("find", "here"), ("note", "noted"))
    assert [tool.name for tool in call.tools] == ["find"]


def test_the_call_in_which_a_tool_is_used_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    path.write_text(f"{json.dumps(PLAIN)}\n\n{json.dumps(CALLING)}\n")
    assert read_call(path).system == "Be quick."
    path.write_text(json.dumps(PLAIN))
    assert read_call(path).system == "Be kind."


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"messages": [{"role": "system", "content": "x"}]}', '{"a": 1}'])
def test_a_file_of_something_else_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "calls.jsonl"
    path.write_text(text)
    with pytest.raises(ScriptError, match=r"calls\.jsonl"):
        read_call(path)
    with pytest.raises(ScriptError, match="absent"):
        read_call(tmp_path / "absent")


def test_tools_come_bare_or_wrapped(tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([FUNCTION, {"type": "function", "function": {"name": "note"}}]))
    found, note = read_tools(path)
    assert (found.name, found.description, found.parameters) == ("find", "Find it.", FUNCTION["parameters"])
    assert (note.name, note.description, note.parameters) == ("note", "", {})
    path.write_text('[{"description": "nameless"}]')
    with pytest.raises(ScriptError, match="'name' is missing"):
        read_tools(path)


def test_instructions_are_a_file_or_the_text(tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("Be brief.\n")
    assert text_or_file(str(tmp_path / "system.txt")) == "Be brief."
    assert text_or_file("You answer the phone.") == "You answer the phone."
    assert text_or_file("long " * 5000) == "long " * 5000


def test_the_front_desk_uses_up_what_was_recorded_and_then_makes_it_up() -> None:
    desk = FrontDesk([("find_appointment", "recorded"), ("unheard_of", "also")])
    assert desk.answer("find_appointment") == "recorded"
    assert set(json.loads(desk.answer("find_appointment") or "")) == {"id", "service", "date", "time"}
    assert json.loads(desk.answer("check_availability") or "") == {"free": True}
    assert desk.answer("book_appointment") != desk.answer("book_appointment")
    assert desk.answer("unheard_of") == "also"
    assert desk.answer("unheard_of") is None
