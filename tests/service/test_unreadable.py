"""What is no message, or none that a client would send, over a real socket: refused by name, and nothing is left."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from firstword.errors import CallFailed
from firstword.v1 import call_service_pb2 as call_pb
from firstword.v1 import client_events_pb2 as client_pb
from firstword.v1 import resume_pb2 as resume_pb
from service import wire
from service.client_events import Malformed
from service.problems import Reason
from tests.service.pods import LocalPod, local_pods
from tests.service.waiting import until

OPEN = call_pb.CallRequest(open=client_pb.Open(session_id="anna")).SerializeToString()
CUT_SHORT = call_pb.CallRequest(open=client_pb.Open(model="abc")).SerializeToString()[:-1]
GARBAGE = (b"\xff\xff\xff", CUT_SHORT, b"\x12\x02\x0a\xff")


@pytest.fixture
async def pod() -> AsyncIterator[LocalPod]:
    async with local_pods(1) as (only,):
        yield only


async def played(pod: LocalPod, *sent: bytes) -> CallFailed:
    """How a stream ends on which these bytes are sent, one after the other as they are answered."""
    async with grpc.aio.insecure_channel(pod.address) as channel:
        stream: Any = channel.stream_stream(
            "/firstword.v1.CallService/Call", response_deserializer=call_pb.CallResponse.FromString
        )()
        for data in sent[:-1]:
            await stream.write(data)
            assert await stream.read() is not grpc.aio.EOF
        await stream.write(sent[-1])
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stream.read()
        error = refused.value
        return CallFailed.of(error.code(), error.details() or "", error.trailing_metadata() or ())


@pytest.mark.parametrize("garbage", GARBAGE, ids=("no tag", "cut short", "no UTF-8"))
@pytest.mark.parametrize("before", [(), (OPEN,)], ids=("at first", "in a call"))
async def test_bytes_that_are_no_message(pod: LocalPod, before: tuple[bytes, ...], garbage: bytes) -> None:
    failed = await played(pod, *before, garbage)
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.INVALID_FIELD.value)
    assert "CallRequest" in failed.message
    await until(lambda: not pod.sessions)


@pytest.mark.parametrize("name", ["[" * 3000, "👋🏽" * 2000])
async def test_a_status_that_names_what_the_client_said_fits_into_a_header(pod: LocalPod, name: str) -> None:
    request = call_pb.CallRequest(open=client_pb.Open(model=name))
    failed = await played(pod, request.SerializeToString())
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.UNKNOWN_MODEL.value)
    assert failed.message == name[:255] + "…" and failed.field == "open.model"


async def test_a_token_is_not_good_for_a_later_call_of_the_same_name(pod: LocalPod) -> None:
    """The call is over, and another one has its name: whoever held the first is told nothing of the second."""
    close = call_pb.CallRequest(close=client_pb.Close()).SerializeToString()
    async with grpc.aio.insecure_channel(pod.address) as channel:

        def stream() -> Any:
            return channel.stream_stream(
                "/firstword.v1.CallService/Call", response_deserializer=call_pb.CallResponse.FromString
            )()

        first = stream()
        await first.write(OPEN)
        opened = await first.read()
        await first.write(close)
        assert await first.read() is grpc.aio.EOF
        second = stream()
        await second.write(OPEN)
        assert (await second.read()).opened.session_id == "anna"
        token = opened.opened.resume_token.token
        resume = resume_pb.Resume(resume_token=token, last_seq=1, last_generation=1, take_over=True)
        failed = await played(pod, call_pb.CallRequest(open=client_pb.Open(resume=resume)).SerializeToString())
        assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, Reason.UNKNOWN_CALL.value)
        await second.write(close)
        assert await second.read() is grpc.aio.EOF and await second.code() is grpc.StatusCode.OK


def test_a_fault_in_reading_an_event_costs_that_event_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*given: object) -> None:
        raise RecursionError

    monkeypatch.setattr("service.wire.incoming._client_event", fails)
    event = wire.client_event(call_pb.CallRequest(final=client_pb.Final(turn_id=7, text="Hello?")))
    assert isinstance(event, Malformed)
    assert (event.problem.reason, event.turn_id) == (Reason.INTERNAL, 7)
    assert "cannot be read" in caplog.text
