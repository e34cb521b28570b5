"""What a reply's ids become: text up to a stop string, clauses and tool calls, the same however the text was cut."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.text.call_form import HERMES, Call, CallForm, parse_calls
from engine.text.codec import Codec
from engine.text.reply import Read, ReplyReader
from tests.engine.embedded import codec

CALL, CALL_END = HERMES.mark, HERMES.end_mark


@dataclass
class Pieces:
    """A codec whose ids are pieces of text, so that a test says where tokens begin and end."""

    pieces: list[str]

    def stream(self) -> Pieces:
        return self

    def push(self, token: int) -> str:
        return self.pieces[token]


def read_pieces(pieces: list[str], stops: tuple[str, ...] = (), *, tools: bool = False) -> tuple[ReplyReader, Read]:
    """All that a reader makes of the pieces, taken after every one of them."""
    fake = Pieces(pieces)
    reader, whole = ReplyReader(fake, stops, calls=HERMES if tools else None), Read()  # type: ignore[arg-type]
    for token in range(len(pieces)):
        pushed = reader.push(token)
        taken = reader.take(final=token == len(pieces) - 1)
        assert taken.text.startswith(pushed)
        add(whole, taken)
    add(whole, reader.take(final=True))
    return reader, whole


def add(whole: Read, more: Read) -> None:
    whole.text += more.text
    whole.clause_ends += more.clause_ends
    whole.calls += more.calls
    whole.malformed += more.malformed


def cut(text: str, at: list[int]) -> list[str]:
    bounds = sorted({0, len(text), *(i for i in at if i < len(text))})
    return [text[a:b] for a, b in pairwise(bounds)]


def reference(text: str, stops: tuple[str, ...], tools: bool) -> Read:
    """The same, character by character over the whole text: the mark that is complete first wins."""
    read, start, end = Read(), 0, 0
    while end <= len(text):
        seen = text[start:end]
        stop = max((s for s in stops if seen.endswith(s)), key=len, default=None)
        mark = CALL if tools and seen.endswith(CALL) else None
        longest = max(filter(None, (stop, mark)), key=len, default=None)
        if longest is None:
            end += 1
            continue
        read.text += seen.removesuffix(longest)
        if longest != mark:
            return read
        body, found, _ = text[end:].partition(CALL_END)
        read.calls += parse_calls(body)
        read.malformed += [] if parse_calls(body) else [body]
        start = end = end + len(body) + len(found)
    read.text += text[start:]
    return read


GOOD = f'{CALL}{{"name": "book", "arguments": {{"day": "3 p.m."}}}}{CALL_END}'
TEXT = st.lists(
    st.sampled_from([*"ab .<>", "STOP", "ST", "OP", "\n\n", "<tool", "_call>", CALL, CALL_END, GOOD, "{}", "é"]),
    max_size=14,
).map("".join)
STOPS = st.lists(st.sampled_from(["STOP", "TO", "\n\n", "ab", "b", "a b", "aab", "<", "é"]), max_size=3, unique=True)


@given(TEXT, STOPS.map(tuple), st.booleans(), st.lists(st.integers(0, 80), max_size=20))
@settings(max_examples=800, deadline=None)
def test_any_chunking_reads_as_the_text_up_to_its_first_stop_string(
    text: str, stops: tuple[str, ...], tools: bool, at: list[int]
) -> None:
    reader, got = read_pieces(cut(text, at), stops, tools=tools)
    wanted = reference(text, stops, tools)
    assert got.text == wanted.text
    assert got.calls == wanted.calls
    assert got.malformed == wanted.malformed
    assert got.clause_ends == read_pieces([text], stops, tools=tools)[1].clause_ends
    assert all(end <= len(got.text) for end in got.clause_ends)
    if reader.stopped:
        kept = "".join(cut(text, at)[: reader.kept_tokens])
        assert not any(stop in kept for stop in stops) or tools  # in a call it is no stop


@given(
    st.lists(st.sampled_from(["Crème", " brûlée", "😀", " and", ".", "!", " 日本"]), max_size=8).map("".join), st.data()
)
@settings(max_examples=200, deadline=None)
def test_real_ids_read_as_their_text_up_to_the_stop_string(text: str, data: st.DataObject) -> None:
    stop = data.draw(st.sampled_from(["è", "😀", "lée", "本", " and.", "zz"]))
    ids = codec().encode_plain(text)
    reader, got = ReplyReader(codec(), (stop,)), ""
    for token in ids:
        got += reader.push(token)
    got += reader.finish()
    assert got == text.partition(stop)[0]
    assert reader.stopped == (stop in text)
    kept = codec().decode(ids[: reader.kept_tokens])
    assert got.startswith(kept)
    assert "\ufffd" not in kept


def test_ids_of_half_a_character_are_not_kept_behind_a_stop() -> None:
    ids = codec().encode_plain("ab😀c")
    reader = ReplyReader(codec(), ("😀",))
    for token in ids:
        reader.push(token)
    assert reader.stopped
    assert codec().decode(ids[: reader.kept_tokens]) == "ab"


def test_a_stop_string_over_several_tokens_is_held_back_until_it_is_none() -> None:
    reader = ReplyReader(Pieces(["Hel", "lo\n", "\nUs", "er"]), ("\n\n",))  # type: ignore[arg-type]
    assert [reader.push(token) for token in range(3)] == ["Hel", "lo", ""]
    assert reader.stopped
    assert reader.kept_tokens == 1  # "lo\n" holds the beginning of the stop string
    assert reader.push(3) == ""
    assert reader.take(final=True).text == "Hello"
    reader = ReplyReader(Pieces(["lo\n", "x"]), ("\n\n",))  # type: ignore[arg-type]
    assert [reader.push(0), reader.push(1)] == ["lo", "\nx"]


def test_what_was_held_back_comes_out_at_the_end() -> None:
    _, read = read_pieces(["Hello ", "ST"], ("STOP",))
    assert read.text == "Hello ST"
    assert read.clause_ends == [8]


def test_the_stop_string_that_is_complete_first_wins() -> None:
    for pieces in (["xabc"], ["x", "a", "b", "c"]):
        reader, read = read_pieces(pieces, ("abc", "b"))
        assert (reader.stopped, read.text) == (True, "xa")
        assert read_pieces(pieces, ("bc", "abc"))[1].text == "x"


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        ReplyReader(codec(), ("",))


def test_a_call_between_text() -> None:
    text = f"One moment. {GOOD}Done."
    for pieces in ([text], list(text)):
        _, read = read_pieces(pieces, ("3 p.m.",), tools=True)
        assert read.text == "One moment. Done."
        assert read.clause_ends == [11, 17]
        assert read.calls == [Call("book", '{"day": "3 p.m."}')]
    assert read_pieces([text])[1].text == text  # without tools it is text


@pytest.mark.parametrize(
    ("body", "call"),
    [
        ('{"name": "a", "arguments": {}}', Call("a", "{}")),
        ('\n{"name": "a", "parameters": {"x": "é"}}\n', Call("a", '{"x": "é"}')),
        ('{"name": "a"}', Call("a", "{}")),
        ('{"name": "a", "arguments": "{}"}', None),
        ('{"name": "a", "arguments": [1]}', None),
        ('{"name": 3, "arguments": {}}', None),
        ('{"arguments": {}}', None),
        ('{"name": "a", "arguments": {}', None),
        ("[]", None),
        ("", None),
        ('{"name": "a", "arguments": {"x": ' + "[" * 1500, None),
        ('{"name": "a", "arguments": {"x": ' + "[" * 100_000 + "]" * 100_000 + "}}", None),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_calls_well_and_badly_formed(body: str, call: Call | None) -> None:
    assert parse_calls(body) == ([call] if call else [])
    _, read = read_pieces([f"x{CALL}{body}{CALL_END}y"], tools=True)
    assert read.text == "xy"
    assert read.calls == ([call] if call else [])
    assert read.malformed == ([] if call else [body])


def test_where_calls_end_that_are_nested_too_deep() -> None:
    text = CALL + '{"a": ' + "[" * 1500 + CALL_END
    assert HERMES.end_of_calls(text, 1) == len(text)


def test_a_call_that_was_never_finished() -> None:
    _, read = read_pieces(["Wait. ", CALL, '{"name": "a", "argu'], tools=True)
    assert (read.text, read.calls, read.malformed) == ("Wait. ", [], ['{"name": "a", "argu'])
    _, read = read_pieces([CALL, '{"name": "a", ', '"arguments": {}}', "</tool"], tools=True)
    assert (read.calls, read.malformed) == ([], ['{"name": "a", "arguments": {}}</tool'])
    _, read = read_pieces([CALL, '{"name": "a", "arguments": {}}'], tools=True)  # whole but for its end mark
    assert (read.calls, read.malformed) == ([Call("a", "{}")], [])


def test_calls_of_the_embedded_tokenizer() -> None:
    arguments = {"name": "Zoë 😀", "time": "3:30", "note": 'a "b"\n'}
    written = f"{CALL}{json.dumps({'name': 'book', 'arguments': arguments}, ensure_ascii=False)}{CALL_END}"
    reader: ReplyReader = ReplyReader(codec(), calls=HERMES)
    marked: Codec = codec()
    for token in marked.encode(written):
        reader.push(token)
    (call,) = reader.take(final=True).calls
    assert json.loads(call.arguments) == arguments


LLAMA = CallForm('{"name": "', '", "parameters": ', "}")


@pytest.mark.parametrize(
    ("form", "text", "calls"),
    [
        (LLAMA, '{"name": "Ann", "age": 3}', []),
        (LLAMA, '{"name": "book", "age": 3}', []),
        (LLAMA, '{"name": "book", "parameters": {"day": 1e999}}', [Call("book", '{"day": 1e999}')]),
        (LLAMA, '{"mood": "good"}', []),
        (HERMES, '{"a": "x <tool_call> y"}', []),
        (HERMES, GOOD, [Call("book", '{"day": "3 p.m."}')]),
    ],
)
def test_a_reply_that_is_a_call_or_a_text_of_its_own(form: CallForm, text: str, calls: list[Call]) -> None:
    for pieces in ([text], list(text)):
        reader = ReplyReader(Pieces(pieces), calls=form, names={"book"}, alone=True)  # type: ignore[arg-type]
        for token in range(len(pieces)):
            reader.push(token)
        read = reader.take(final=True)
        assert (read.calls, read.text, read.malformed) == (calls, "" if calls else text, [])


@pytest.mark.parametrize("form", [LLAMA, HERMES])
def test_a_call_that_was_cut_off_is_none_though_it_could_be_whole(form: CallForm) -> None:
    text = form.before + "book" + form.between + "{}" + form.after.removesuffix("</tool_call>")
    for cut in (False, True):
        reader = ReplyReader(Pieces([text]), calls=form)  # type: ignore[arg-type]
        reader.push(0)
        read = reader.take(final=True, cut=cut)
        assert bool(read.calls) is not cut and bool(read.malformed) is cut and not read.text
