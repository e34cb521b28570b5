"""The fuzz in short: scripts that once found something, and some that are drawn; and that it finds what is there."""

from __future__ import annotations

import random
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2

from firstword.v1 import call_service_pb2 as call_pb
from firstword.v1 import client_events_pb2 as client_pb
from firstword.v1 import error_pb2 as error_pb
from firstword.v1 import server_events_pb2 as server_pb
from service.call import Call
from service.errors import status_of
from service.problems import Problem, Reason
from tests.fuzz.answers import Tally
from tests.fuzz.block import play_block
from tests.fuzz.damage import damaged
from tests.fuzz.events import CANARY, Events
from tests.fuzz.heard import Heard
from tests.fuzz.script import Script, Send, Wait, keep, load
from tests.fuzz.scripts import drawn

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.json"))


async def test_nothing_is_found_any_more() -> None:
    assert CORPUS
    tally = await play_block([load(path) for path in CORPUS for _ in range(3)])
    assert tally.findings == []
    assert tally.scripts == 3 * len(CORPUS)


async def test_scripts_that_are_drawn() -> None:
    tally = await play_block([drawn(seed) for seed in range(60)])
    assert tally.findings == []
    assert tally.scripts == 60 and tally.resumed > 0
    refused = {reason for what, _, reason in tally.answers if what == "event"}
    assert {"INVALID_FIELD", "UNKNOWN_TOOL_CALL"} <= refused
    assert tally.answers["stream", "OK", ""] > 10


def test_a_seed_is_a_script(tmp_path: Path) -> None:
    for seed in range(50):
        script = drawn(seed)
        assert script == drawn(seed)
        keep(script, tmp_path / "script.json")
        assert load(tmp_path / "script.json") == script


def test_damage_is_of_every_kind() -> None:
    rng, messages, others = random.Random(1), set(), 0
    events = Events(rng)
    for _ in range(400):
        data = damaged(rng, events.next())
        try:
            messages.add(call_pb.CallRequest.FromString(data).WhichOneof("event"))
        except DecodeError:
            others += 1
    assert others > 10
    assert {field.name for field in call_pb.CallRequest.DESCRIPTOR.oneofs_by_name["event"].fields} <= messages


async def test_a_fault_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the service on an event, and of one that stays behind."""
    dispatch = Call._dispatch

    def fails(self: Call, parts: object, event: object) -> None:
        if type(event).__name__ == "SpeechStarted":
            raise KeyError("no such thing")
        dispatch(self, parts, event)  # type: ignore[arg-type]

    monkeypatch.setattr(Call, "_dispatch", fails)
    sent = (
        Send(call_pb.CallRequest(open=client_pb.Open()).SerializeToString()),
        Wait("event", 5.0),
        Send(call_pb.CallRequest(speech_started=client_pb.SpeechStarted()).SerializeToString()),
    )
    tally = await play_block([Script(7, 0, sent, False, "half_close")])
    assert [what.splitlines()[0] for seed, what in tally.findings if seed == 7] == [
        "the service failed: the service failed on this event",
        "logged: client event failed",
    ]


@pytest.mark.parametrize(
    ("problem", "code", "wrong"),
    [
        (Problem(Reason.NOT_OPEN, "first open"), grpc.StatusCode.FAILED_PRECONDITION, ""),
        (Problem(Reason.NOT_OPEN, "first open"), grpc.StatusCode.ABORTED, "NOT_OPEN came as ABORTED"),
        (Problem(Reason.NOT_OPEN, f"not {CANARY}"), grpc.StatusCode.FAILED_PRECONDITION, "repeats what was said"),
        (Problem(Reason.INTERNAL, "oh"), grpc.StatusCode.INTERNAL, "the service failed: oh"),
    ],
)
def test_statuses_are_held_to_the_table(problem: Problem, code: grpc.StatusCode, wrong: str) -> None:
    details = (("grpc-status-details-bin", status_of(problem).SerializeToString()),)
    found = Tally().stream_ended(code, problem.message, details, own=False)
    assert wrong in found and bool(wrong) == bool(found)


def test_statuses_that_nobody_has_documented() -> None:
    tally = Tally()
    assert not tally.stream_ended(grpc.StatusCode.OK, "", (), own=False)
    assert not tally.stream_ended(grpc.StatusCode.CANCELLED, "", (), own=True)
    assert tally.stream_ended(grpc.StatusCode.CANCELLED, "", (), own=False)
    assert tally.stream_ended(grpc.StatusCode.UNKNOWN, "Unexpected <class 'KeyError'>", (), own=False)
    status = status_of(Problem(Reason.NOT_OPEN, ""))
    status.details[0].Pack(error_details_pb2.ErrorInfo(reason="SURPRISE", domain="firstword"))
    details = (("grpc-status-details-bin", status.SerializeToString()),)
    assert "SURPRISE" in tally.stream_ended(grpc.StatusCode.FAILED_PRECONDITION, "", details, own=False)
    assert tally.refused(error_pb.Error(code=error_pb.ERROR_CODE_NOT_FOUND, reason="STALE_TURN"))
    assert not tally.refused(error_pb.Error(code=error_pb.ERROR_CODE_ABORTED, reason="STALE_TURN"))


def test_events_that_are_out_of_order_are_noticed() -> None:
    heard = Heard()
    for seq, generation, event in (
        (1, 2, {"opened": server_pb.Opened()}),
        (2, 2, {"text_delta": server_pb.TextDelta(turn_id=1, text="Hel")}),
        (3, 2, {"text_delta": server_pb.TextDelta(turn_id=1, text="lo", offset_code_points=3)}),
        (3, 2, {"heartbeat": server_pb.Heartbeat()}),
        (4, 2, {"turn_ended": server_pb.TurnEnded(turn_id=1)}),
    ):
        heard.take(call_pb.CallResponse(seq=seq, generation=generation, **event))
    assert heard.wrong == []
    heard.take(call_pb.CallResponse(seq=6, generation=1, text_delta=server_pb.TextDelta(turn_id=1, text="again")))
    heard.take(call_pb.CallResponse(seq=7, generation=2, turn_ended=server_pb.TurnEnded(turn_id=1)))
    heard.take(call_pb.CallResponse(seq=5, generation=2, heartbeat=server_pb.Heartbeat()))
    assert heard.wrong == [
        "event 6 (text_delta) after 4",
        "generation 1 after 2",
        "the text of turn 1 goes on at 0, not 5",
        "turn 1 goes on behind its end",
        "event 7 (turn_ended) after 4",
        "turn 1 has ended twice",
        "event 5 (heartbeat) after 7",
    ]
