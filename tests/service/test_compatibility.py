"""Records and tokens that other revisions have written are read, and what they cannot know is passed over or refused.

``golden/`` holds what revisions wrote, each signed with a key of its own: a call in the middle of a reply, and a record
in which every field is set (``test_call_records.WHOLE``). They are never written anew: where the form grows a file is
added.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from service import call_records, server_events
from service.call_records import merged, of_call, opened_then, read, replayed
from service.call_state import Status
from service.problems import Problem, Reason
from service.signing import Signing
from service.store import CallKey
from tests.service import test_call_records
from tests.service.calls import CallUnderTest

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.json"))
FREE = {"parameters", "taken", "metadata"}
"""Objects whose keys are names of the client's or numbers, not fields."""


@pytest.fixture(params=GOLDEN, ids=lambda path: path.stem)
def golden(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(request.param.read_text())
    return found


COLDER = {
    **json.loads(TypeAdapter(Status).dump_json(test_call_records.STATUS)),
    "generation": {"sampling": {"temperature": 4e-320}},
}
"""Sampling as a version might have allowed it."""


def signing(golden: dict[str, Any]) -> Signing:
    return Signing((golden["secret"],), 60.0)


def payload(golden: dict[str, Any]) -> dict[str, Any]:
    """Of the record in which every field is set."""
    found: dict[str, Any] = json.loads(signing(golden).payload(base64.b64decode(golden["every_field"])))
    return found


def test_there_are_some() -> None:
    assert len(GOLDEN) >= 2


def test_every_field_comes_back(golden: dict[str, Any]) -> None:
    assert read(signing(golden), base64.b64decode(golden["every_field"])) == test_call_records.record(
        1, 0, test_call_records.WHOLE
    )


def test_a_call_goes_on_in_the_middle_of_its_word(golden: dict[str, Any]) -> None:
    """As it was written down; the model may be another one by now, so only what was said is known."""
    key = CallKey("", golden["call"])
    token = base64.b64decode(golden["token"])
    assert signing(golden).call_of(token, "") == key
    opened_at = signing(golden).opened_at(token)
    assert opened_at == golden["opened_at"]
    records = of_call((read(signing(golden), base64.b64decode(record)) for record in golden["records"]), key)
    found = replayed(merged(opened_then(records, opened_at)), golden["last_seq"])
    assert found is not None and len(records) == found[1] == golden["last_seq"]
    call = CallUnderTest.unopened()
    call.call.restore(found[0], golden["generation"] + 1, golden["last_seq"], 0)
    opened = call.envelopes[0]
    assert (opened.seq, opened.client_seq, call.ended_with) == (golden["last_seq"], golden["client_seq"], [])
    call.run()
    for turn, text in golden["texts"].items():
        (end,) = (end for end in call.of(server_events.TurnEnded) if end.turn_id == int(turn))
        assert end.text.startswith(text) and end.text == text + call.text(int(turn))


def grown(value: Any, name: str = "") -> Any:
    """A record as a later revision might write it: with fields that nobody knows yet, wherever there are fields."""
    match value:
        case dict() if name in FREE or (name == "tools" and value):
            return {key: grown(part, "parameters") for key, part in value.items()}
        case dict():
            return {**{key: grown(part, key) for key, part in value.items()}, "of_later": {"more": [1]}}
        case list():
            return [grown(part, name) for part in value]
        case _:
            return value


def test_fields_of_later_are_passed_over(golden: dict[str, Any]) -> None:
    later = grown(payload(golden))
    assert json.dumps(later).count("of_later") > 20
    assert read(signing(golden), signing(golden).record(json.dumps(later).encode())) == test_call_records.record(
        1, 0, test_call_records.WHOLE
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": 2}, "a record is of version 2; known here is 1"),
        ({"deltas": [{"client_seq": 1, "status": COLDER}]}, "of a form that this version does not know"),
        (
            {"deltas": [{"client_seq": 1, "replies": [{"phase": "humming"}]}]},
            "of a form that this version does not know",
        ),
    ],
)
def test_what_would_be_read_wrongly_is_refused(golden: dict[str, Any], change: dict[str, Any], message: str) -> None:
    other = signing(golden).record(json.dumps({**payload(golden), **change}).encode())
    with pytest.raises(Problem) as refused:
        read(signing(golden), other)
    assert refused.value.reason is Reason.INVALID_FIELD and message in refused.value.message
    assert refused.value.field == "open.resume.records"


def test_a_record_of_the_next_version_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """And this version, to which one that says nothing is of the first, refuses it."""
    record = test_call_records.record(1, 0, test_call_records.WHOLE)
    key = Signing(("a secret of the tests",), 60.0)
    monkeypatch.setattr(call_records, "VERSION", 2)
    later = call_records.written(key, record)
    assert read(key, later) == dataclasses.replace(record, v=2)
    monkeypatch.undo()
    with pytest.raises(Problem, match="version 2"):
        read(key, later)
