"""What the client does with envelopes that the service does not send yet: generations, records, an unknown event.

The other side is a gRPC server on a real socket that says what it is told to.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import grpc
import pytest

from firstword import Call, CallError, CallFailed, Client, EndReason, TextDelta
from firstword.stream import ACKNOWLEDGE_EVERY
from firstword.v1 import call_service_pb2 as call_pb
from firstword.v1 import call_service_pb2_grpc
from firstword.v1 import error_pb2 as error_pb
from firstword.v1 import server_events_pb2 as server_pb

Answer = Callable[[call_pb.CallRequest], Iterable[call_pb.CallResponse]]


class Scripted(call_service_pb2_grpc.CallServiceServicer):
    """Opens a call and then answers each request as ``answer`` says."""

    def __init__(self, answer: Answer) -> None:
        self.requests: list[call_pb.CallRequest] = []
        self._answer = answer

    async def Call(
        self, request_iterator: AsyncIterator[call_pb.CallRequest], context: object
    ) -> AsyncIterator[call_pb.CallResponse]:
        async for request in request_iterator:
            self.requests.append(request)
            if request.WhichOneof("event") == "open":
                yield call_pb.CallResponse(generation=1, seq=1, opened=server_pb.Opened(session_id="scripted"))
            elif request.WhichOneof("event") == "close":
                return
            for response in self._answer(request):
                yield response


@asynccontextmanager
async def scripted(answer: Answer) -> AsyncIterator[tuple[Call, Scripted]]:
    server = grpc.aio.server()
    servicer = Scripted(answer)
    call_service_pb2_grpc.add_CallServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with Client(f"127.0.0.1:{port}") as client, client.call() as call:
            yield call, servicer
    finally:
        await server.stop(0)


def delta(seq: int, text: str, offset: int, *, generation: int = 1, **envelope: object) -> call_pb.CallResponse:
    event = server_pb.TextDelta(turn_id=1, text=text, offset_code_points=offset)
    return call_pb.CallResponse(generation=generation, seq=seq, text_delta=event, **envelope)  # type: ignore[arg-type]


def ended(seq: int, **fields: object) -> call_pb.CallResponse:
    event = server_pb.TurnEnded(turn_id=1, **fields)  # type: ignore[arg-type]
    return call_pb.CallResponse(generation=1, seq=seq, turn_ended=event)


def for_a_final(*responses: call_pb.CallResponse) -> Answer:
    return lambda request: responses if request.WhichOneof("event") == "final" else ()


async def test_a_server_that_lost_the_call_is_not_listened_to() -> None:
    late = delta(3, "LOST", 3, generation=1)
    newer = [delta(seq, text, at, generation=2) for seq, text, at in ((3, "two", 3), (4, "!", 6))]
    end = ended(5)
    end.generation = 2
    async with scripted(for_a_final(delta(2, "one", 0), newer[0], late, newer[1], end)) as (call, _):
        assert (await call.ask("x")).text == "onetwo!"


async def test_text_behind_the_place_where_a_turn_goes_on_is_dropped() -> None:
    async with scripted(for_a_final(delta(2, "one too", 0), delta(3, "two", 4), ended(4))) as (call, _):
        assert (await call.ask("x")).text == "one two"


async def test_records_are_kept_until_they_are_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firstword.books.MAX_RECORDS", 3)
    kept = [delta(seq, "", 0, record=b"%d" % seq, durable_seq=durable) for seq, durable in ((2, 0), (3, 0), (4, 2))]
    more = [delta(seq, "", 0, record=b"%d" % seq, durable_seq=2) for seq in (6, 7, 8)]
    answers = {"a": [*kept, ended(5)], "b": [*more]}
    async with scripted(lambda request: answers.get(request.final.text, ())) as (call, _):
        await call.ask("a")
        assert call.records == {3: b"3", 4: b"4"}
        await call.final("b")
        await call.close()
        assert call.records == {6: b"6", 7: b"7", 8: b"8"}


async def test_what_is_said_twice_is_heard_once() -> None:
    said = [delta(2, "one", 0), delta(2, "one", 0), delta(3, "two", 3), delta(2, "one", 0), ended(4)]
    async with scripted(for_a_final(*said)) as (call, _):
        turn = await call.final("x")
        assert [event.text async for event in turn if isinstance(event, TextDelta)] == ["one", "two"]


async def test_what_was_received_is_acknowledged_every_so_often() -> None:
    last = 2 * ACKNOWLEDGE_EVERY + 10
    deltas = [delta(seq, "x", seq - 2) for seq in range(2, last)]
    async with scripted(for_a_final(*deltas, ended(last))) as (call, servicer):
        await call.ask("x")
    kinds = [request.WhichOneof("event") for request in servicer.requests]
    assert kinds == ["open", "final", "acknowledge", "acknowledge", "close"]
    acknowledged = [request for request in servicer.requests if request.HasField("acknowledge")]
    assert [request.acknowledge.seq for request in acknowledged] == [ACKNOWLEDGE_EVERY, 2 * ACKNOWLEDGE_EVERY]
    assert [request.client_seq for request in servicer.requests] == [1, 2, 0, 0, 3]


async def test_an_error_of_a_turn_that_runs_ends_it_with_its_report() -> None:
    error = error_pb.Error(code=error_pb.ERROR_CODE_DEADLINE_EXCEEDED, reason="LATE", retry_after_ms=250, turn_id=1)
    failed = call_pb.CallResponse(generation=1, seq=3, error=error)
    end = ended(4, reason=server_pb.TURN_END_REASON_FAILED, text="on")
    async with scripted(for_a_final(delta(2, "one", 0), failed, end)) as (call, _):
        turn = await call.final("x")
        with pytest.raises(CallError) as raised:
            await turn.run()
        assert (raised.value.code, raised.value.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "LATE")
        assert (raised.value.retry_after_s, raised.value.turn_id) == (0.25, 1)
        assert turn.report is not None
        assert (turn.report.reason, turn.history_text, turn.text) == (EndReason.FAILED, "on", "one")


async def test_what_the_client_does_not_know_is_passed_over() -> None:
    unknown = call_pb.CallResponse(generation=1, seq=3)
    generated = call_pb.CallResponse(generation=1, seq=4, generated=server_pb.Generated(request_id=1))
    end = ended(5, reason=99, source=99)
    async with scripted(for_a_final(delta(2, "one", 0), unknown, generated, end)) as (call, _):
        turn = await call.ask("x")
        assert turn.text == "one"
        assert turn.report is not None
        assert turn.report.reason is EndReason.UNKNOWN


async def test_an_event_that_cannot_be_read_ends_the_call_and_hangs_nobody() -> None:
    made = server_pb.ToolCalled(turn_id=1)
    made.call.arguments_json = "{"
    async with scripted(for_a_final(call_pb.CallResponse(generation=1, seq=2, tool_called=made))) as (call, _):
        with pytest.raises(CallFailed) as raised:
            await call.ask("x")
        assert raised.value.code is grpc.StatusCode.INTERNAL
