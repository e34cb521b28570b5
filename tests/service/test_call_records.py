"""Records: what they hold comes back, what was changed is refused, what was written without a lease is void."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.call_records import Record, merged, of_call, opened_then, read, replayed, written
from service.call_state import CallState, Delta, Growth, LogChange, Opening, ReplyState, SegmentState, Status, Written
from service.client_events import Generate, Open, Update, WordTiming
from service.conversation import Span
from service.items import MessageItem, ToolCallItem, ToolDefinition, ToolResultItem
from service.options import ContextPolicy, Fallback, Generation, GenerationPatch, Limits, ToolChoice
from service.problems import Problem, Reason
from service.reply import Phase
from service.server_events import AnswerSource, TurnEnd
from service.signing import Signing
from service.store import CallKey

SIGNING = Signing(("a secret of the tests",), 60.0)
ITEMS = (
    MessageItem("a", "user", "hi é日本"),
    MessageItem("b", "assistant", "ye", interrupted=True),
    ToolCallItem("c", "id-1", "book", '{"a": 1}'),
    ToolResultItem("d", "id-1", "book", "done", is_error=True),
)
TOOL = ToolDefinition("book", "Books.", {"type": "object", "properties": {"a": {"type": "integer"}}}, 5)
PATCH = GenerationPatch(temperature=0.5, top_k=3, seed=2**64 - 1, stop_token_ids=frozenset({4}), stop_strings=("x",))
GENERATION = PATCH.apply(Generation(tool_choice=ToolChoice("required", "book", several=False), text_schema="{}"))
SEGMENT = SegmentState(3, 12, "b", True, False, (5, 6), "ye", 1, (ITEMS[2],), 1, (ITEMS[3],), True)  # type: ignore[arg-type]
REPLY = ReplyState(
    turn_id=2,
    begin=10,
    before=11,
    generation=GENERATION,
    source=AnswerSource.FALLBACK_MODEL,
    model="small",
    phase=Phase.WAITING,
    segments=(SEGMENT,),
    played=1,
    words=(WordTiming(40, end_chars=2), WordTiming(60, word="you")),
    cut=1,
    kept="y",
    cut_by=TurnEnd.LIMIT_REACHED,
    item_ids=("a", "b"),
    settled=True,
    ending=TurnEnd.FAILED,
    told=True,
)
STATUS = Status(
    4,
    5,
    6,
    False,
    True,
    7,
    2,
    3,
    GENERATION,
    {"book": 5, "other": None},
    (Update("s", (TOOL,), PATCH),),
    (Generate(8, "?"),),
)
OPEN = Open(
    session_id="call-1",
    system="You answer.",
    items=ITEMS,
    tools=(TOOL,),
    generation=PATCH,
    seed=2**64 - 1,
    limits=Limits(max_turns=3),
    context=ContextPolicy("summarise", 10, 5, "short"),
    fallbacks=(Fallback("small", deadline_ms=3), Fallback(phrase="One moment.")),
    caller_key="anna",
)
WHOLE = Delta(
    9,
    Opening(OPEN, "m", 12.5),
    Written("You answer.", (TOOL,), ITEMS, "before"),
    LogChange(0, tuple(range(20)), 0, (Span(ITEMS[:1], 0, 12), Span(ITEMS[1:], 12, 20))),
    STATUS,
    (REPLY,),
    None,
    {1: "ab", 2: "cd"},
    ("id-1",),
    (8,),
)


def record(seq: int, prev: int, *deltas: Delta, generation: int = 1, base: int = 0) -> Record:
    return Record("t", "call-1", generation, base, seq, prev, deltas or (Delta(seq),))


def test_everything_comes_back() -> None:
    whole = record(1, 0, WHOLE)
    assert read(SIGNING, written(SIGNING, whole)) == whole
    growth = record(2, 1, Delta(10, growth=Growth(2, (7,), 2, "s!", 2)), Delta(11, log=LogChange(3, (), 1, ())))
    assert read(SIGNING, written(SIGNING, growth)) == growth


def test_a_field_of_a_later_version_is_left_alone_and_another_version_refused() -> None:
    payload = json.loads(SIGNING.payload(written(SIGNING, record(1, 0, WHOLE))))
    later = SIGNING.record(json.dumps({**payload, "more": {"of": "it"}}).encode())
    assert read(SIGNING, later) == record(1, 0, WHOLE)
    with pytest.raises(Problem) as refused:
        read(SIGNING, SIGNING.record(json.dumps({**payload, "v": 2}).encode()))
    assert refused.value.reason is Reason.INVALID_FIELD


@given(st.data())
def test_a_record_that_was_changed_is_refused(data: st.DataObject) -> None:
    sealed = bytearray(written(SIGNING, record(1, 0, WHOLE)))
    at = data.draw(st.integers(0, len(sealed) - 2))  # the last character of base64 has bits that say nothing
    sealed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Problem) as refused:
        read(SIGNING, bytes(sealed))
    assert refused.value.reason is Reason.FORGED


def test_a_record_of_another_call_is_refused() -> None:
    with pytest.raises(Problem) as refused:
        of_call([record(1, 0, WHOLE)], CallKey("t", "call-2"))
    assert refused.value.reason is Reason.FORGED


def test_keys_rotate() -> None:
    old, new = "an old secret", "a newer secret"
    made = written(Signing((old,), 60.0), record(1, 0, WHOLE))
    assert read(Signing((new, old), 60.0), made) == record(1, 0, WHOLE)
    assert written(Signing((new, old), 60.0), record(1, 0, WHOLE)) == written(
        Signing((new,), 60.0), record(1, 0, WHOLE)
    )
    with pytest.raises(Problem):
        read(Signing((new,), 60.0), made)


def test_a_token_is_of_one_call_of_one_tenant_for_a_time() -> None:
    key = CallKey("t", "call-1")
    token = SIGNING.token(key, 7.0)
    assert SIGNING.call_of(token, "t") == key
    for refused, reason in (
        (lambda: SIGNING.call_of(token, "u"), Reason.FORGED),
        (lambda: SIGNING.call_of(token[:-2] + b"xx", "t"), Reason.FORGED),
        (lambda: SIGNING.call_of(SIGNING.record(b"{}"), "t"), Reason.FORGED),
        (lambda: SIGNING.call_of(Signing(SIGNING.keys, -1.0).token(key, 7.0), "t"), Reason.TOKEN_EXPIRED),
    ):
        with pytest.raises(Problem) as problem:
            refused()
        assert problem.value.reason is reason


def test_a_name_that_comes_back_is_another_call() -> None:
    key = CallKey("t", "call-1")
    first, second = (dataclasses.replace(record(1, 0, WHOLE), opened_at=at) for at in (7.0, 8.0))
    assert SIGNING.opened_at(SIGNING.token(key, 7.0)) == 7.0
    assert opened_then([first, second], 7.0) == [first]
    unsaid = record(1, 0, WHOLE)  # by a server that did not say when
    assert opened_then([unsaid, second], 7.0) == [unsaid]
    assert opened_then([first, second], 0.0) == [first, second]


# How records add up


def test_deltas_add_up_and_twice_is_once() -> None:
    deltas = [
        Delta(10, growth=Growth(2, (7, 8), 2, "s!", 2), taken={3: "ef"}),
        Delta(11, log=LogChange(12, (90, 91), 1, (Span(ITEMS[1:2], 12, 14),)), answered=("id-2",)),
        Delta(12, status=dataclasses.replace(STATUS, version=5), replies=(), asked=(9,)),
    ]
    once, twice = CallState.begun(WHOLE), CallState.begun(WHOLE)
    for delta in deltas:
        once.apply(delta)
        for _ in range(2):
            twice.apply(delta)
    assert once == twice
    assert once.tokens == [*range(12), 90, 91]
    assert [span.end for span in once.spans] == [12, 14]
    assert (once.client_seq, once.status.version, once.taken) == (12, 5, {1: "ab", 2: "cd", 3: "ef"})


def test_what_does_not_follow_is_refused() -> None:
    state = CallState.begun(WHOLE)
    for delta in (
        Delta(1, log=LogChange(21, (), 0, ())),
        Delta(1, log=LogChange(0, (), 3, ())),
        Delta(1, growth=Growth(3, (), 0, "", 0)),
        Delta(1, growth=Growth(0, (), 3, "", 0)),
    ):
        with pytest.raises(ValueError, match="missing"):
            state.apply(delta)
    with pytest.raises(ValueError, match="begins"):
        CallState.begun(Delta(1))


def test_a_chain_with_a_hole_is_none() -> None:
    chain = {1: record(1, 0, WHOLE), 3: record(3, 1), 4: record(4, 3)}
    found = replayed(chain, 4)
    assert found is not None and found[0].client_seq == 4
    assert replayed({1: chain[1], 4: chain[4]}, 4) is None
    assert replayed({3: chain[3], 4: chain[4]}, 4) is None
    before = replayed(chain, 3)
    assert before is not None and before[0].client_seq == 3
    assert replayed({**chain, 6: record(6, 0, WHOLE)}, 9) is not None  # the whole call stands for all before it


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), max_size=8),
    st.lists(st.booleans(), min_size=40, max_size=40),
)
def test_what_a_server_wrote_behind_a_takeover_is_void(
    takeovers: Sequence[tuple[int, int]], kept: Sequence[bool]
) -> None:
    """Servers write on behind the place where the next one took over. Whoever still has what of that, what counts is
    what the client was told.
    """
    told: dict[int, Record] = {}
    everything: list[Record] = []
    base, generation = 0, 1
    for back, wrote in [*takeovers, (0, 5)]:
        for seq in range(base + 1, base + wrote + 1):
            told[seq] = record(seq, seq - 1, generation=generation, base=base)
            everything.append(told[seq])
        top = max(told, default=0)
        base = max(0, top - back)  # the client has so much of it
        told = {seq: one for seq, one in told.items() if seq <= base}
        generation += 1
    last = max(told, default=0)
    known = [one for one, keep in zip(everything, kept, strict=False) if keep or told.get(one.seq) == one]
    known += everything[len(kept) :]
    found = {seq: one for seq, one in merged(known).items() if seq <= last}
    assert found == told


def test_a_long_call_is_merged_at_once() -> None:
    """Of two generations, the second of which took over in the middle."""
    first = [Record("", "a", 1, 0, seq, seq - 1, ()) for seq in range(1, 8001)]
    second = [Record("", "a", 2, 5000, seq, seq - 1, ()) for seq in range(5001, 10001)]
    began = time.process_time()
    found = merged([*second, *first])
    assert time.process_time() - began < 1.0
    assert [found[seq].generation for seq in (5000, 5001, 8000)] == [1, 2, 2] and list(found) == [*range(1, 10001)]
