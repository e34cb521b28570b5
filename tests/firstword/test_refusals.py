"""What is refused, and how it is told."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from firstword import CallError, CallFailed, Client, Message, Notice, Tool
from firstword.stream import CallStream
from firstword.v1 import call_service_pb2_grpc, client_events_pb2
from service.errors import abort
from service.problems import Problem, Reason
from tests.e2e.server import ServiceProcess


@pytest.mark.parametrize(
    ("text", "code", "reason", "field"),
    [
        ("", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "final.text"),
        ("x" * 20_000, grpc.StatusCode.RESOURCE_EXHAUSTED, "INPUT_TOO_LONG", "final.text"),
        ("word " * 3000, grpc.StatusCode.OUT_OF_RANGE, "CONTEXT_FULL", ""),
    ],
)
async def test_a_refused_turn_raises_when_it_is_followed(
    service: ServiceProcess, text: str, code: grpc.StatusCode, reason: str, field: str
) -> None:
    async with Client(service.address) as client, client.call(max_tokens=4) as call:
        refused = await call.final(text)
        with pytest.raises(CallError) as raised:
            async for _ in refused:
                pass
        assert (raised.value.code, raised.value.reason, raised.value.field) == (code, reason, field)
        assert refused.report is None
        with pytest.raises(CallError):
            await call.say(text)
        assert (await call.ask("hello")).report is not None


async def test_refusals_that_nothing_waits_for_are_told(
    service: ServiceProcess, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Notice | CallError] = []
    async with Client(service.address) as client:
        async with client.call(max_tokens=4, on_notice=told.append) as call:
            await call.partial("x" * 20_000)
            await call.say("One moment.")
            await call.played(ms=500)  # there are no word timings
            assert (await call.ask("hello")).report is not None
        assert [error.field for error in told if isinstance(error, CallError)] == [
            "partial.text",
            "playback_progress.heard.played_ms",
        ]
        with caplog.at_level(logging.WARNING, "firstword"):
            async with client.call(max_tokens=4) as call:
                await call.partial("x" * 20_000)
                await call.say("One moment.")
    assert "INPUT_TOO_LONG" in caplog.text


@pytest.mark.parametrize(
    ("fields", "code", "reason", "field"),
    [
        ({"model": "other"}, grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_MODEL", "open.model"),
        ({"temperature": -1.0}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "open.sampling.temperature"),
        ({"system": "word " * 4000}, grpc.StatusCode.OUT_OF_RANGE, "CONTEXT_FULL", "open.items"),
        ({"tools": [Tool("two words")]}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "open.tools[0].name"),
    ],
)
async def test_a_call_that_cannot_begin(
    service: ServiceProcess, fields: dict[str, Any], code: grpc.StatusCode, reason: str, field: str
) -> None:
    async with Client(service.address) as client:
        with pytest.raises(CallFailed) as raised:
            async with client.call(**fields):
                raise AssertionError("it began")
        failure = raised.value
        assert (failure.code, failure.reason, failure.field, failure.retry_after_s) == (code, reason, field, None)
        with pytest.raises(ValueError, match="nobody"):
            client.call(items=[Message("nobody", "x")])  # type: ignore[arg-type]


async def test_a_name_that_is_taken(service: ServiceProcess) -> None:
    async with Client(service.address) as client, client.call(session_id="taken"):
        with pytest.raises(CallFailed) as raised:
            async with client.call(session_id="taken"):
                pass
    assert (raised.value.code, raised.value.reason) == (grpc.StatusCode.ALREADY_EXISTS, "SESSION_EXISTS")


class Refusing(call_service_pb2_grpc.CallServiceServicer):
    """Ends every stream before it has read anything."""

    async def Call(self, request_iterator: object, context: Any) -> None:
        await abort(context, Problem(Reason.TOO_MANY_CALLS, "none here", retry_after_s=2.0))


async def test_a_write_under_way_does_not_hide_why_the_call_was_refused() -> None:
    """About one such stream in fifteen has a write under way; what grpc.aio says of it is INTERNAL."""
    server = grpc.aio.server()
    call_service_pb2_grpc.add_CallServiceServicer_to_server(Refusing(), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    async def refusal(stub: Any) -> tuple[grpc.StatusCode, str, str, float | None]:
        ended: asyncio.Future[CallFailed] = asyncio.get_running_loop().create_future()
        stream = CallStream(lambda response: None, ended.set_result, lambda: True, 5.0, "")
        stream.start(lambda address: stub, lambda: ())
        for _ in range(5):
            if stream.failure is None:
                stream.send(partial=client_events_pb2.Partial(text="x" * 1000))
        failure = await ended
        return failure.code, failure.reason, failure.message, failure.retry_after_s

    told = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = call_service_pb2_grpc.CallServiceStub(channel)
        for _ in range(30):
            told += await asyncio.gather(*(refusal(stub) for _ in range(20)))
    await server.stop(None)
    assert told == [(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS", "none here", 2.0)] * 600


def test_a_status_with_details_and_one_that_cannot_be_read() -> None:
    info, retry = any_pb2.Any(), any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(reason="R", domain="firstword", metadata={"a": "b"}))
    delay = error_details_pb2.RetryInfo()
    delay.retry_delay.FromMilliseconds(1500)
    retry.Pack(delay)
    status = status_pb2.Status(code=14, message="m", details=[retry, info])

    def failure(details: bytes) -> CallFailed:
        trailers = grpc.aio.Metadata(("other", "x"), ("grpc-status-details-bin", details))
        return CallFailed.of(grpc.StatusCode.UNAVAILABLE, "m", trailers)

    read = failure(status.SerializeToString())
    assert (read.reason, read.retry_after_s, read.metadata, read.message) == ("R", 1.5, {"a": "b"}, "m")
    unreadable = failure(b"\xff")
    assert (unreadable.reason, unreadable.retry_after_s, str(unreadable)) == ("", None, "UNAVAILABLE: m")
