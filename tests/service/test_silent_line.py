"""A line on which nothing passes any more, and nobody is told: keepalive finds it out, and so do heartbeats alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from firstword import CallFailed, Client, TextDelta
from firstword.books import Books
from firstword.stream import OPENED_TIMEOUT_S
from firstword.v1 import call_service_pb2 as call_pb
from firstword.v1 import call_service_pb2_grpc
from firstword.v1 import client_events_pb2 as client_pb
from tests.e2e.lines import Lines
from tests.firstword.receptionist import LINES, SYSTEM
from tests.proto.test_breaking import RELEASED
from tests.service.pods import local_pods
from tests.service.waiting import until

OPENING: dict[str, Any] = {"system": SYSTEM, "seed": 11, "temperature": 0.9, "max_tokens": 40}
NEVER_MS = 3_600_000
NO_KEEPALIVE = (
    ("grpc.keepalive_time_ms", NEVER_MS),
    ("grpc.http2.ping_timeout_ms", NEVER_MS),  # also of the pings that measure bandwidth
    ("grpc.use_local_subchannel_pool", 1),
)

LEFT_WITHIN_S = 30.0
"""By default it takes eight seconds, or gRPC's own sixty where keepalive does not work."""


async def test_a_silent_line_is_left_for_another() -> None:
    async with local_pods(1) as (pod,), Client(pod.address) as client:
        async with client.call(**OPENING) as call:
            wanted = await (await call.final(LINES[0])).run()
        async with client.call(**OPENING) as call:
            turn, deltas = await call.final(LINES[0]), 0
            async with asyncio.timeout(LEFT_WITHIN_S):
                async for event in turn:
                    deltas += isinstance(event, TextDelta)
                    if deltas == 2:
                        pod.lines.silence_those_there_are()
            assert turn.text == wanted.text
            assert call.resumes == 1


async def test_a_client_that_hears_no_heartbeat_goes_on_elsewhere_without_any_ping() -> None:
    """As behind a proxy, which answers pings itself: two ways lead to the server, and one swallows everything."""
    server = {"heartbeat_s": 0.3, "keepalive_time_ms": NEVER_MS, "keepalive_timeout_ms": NEVER_MS}
    async with local_pods(1, sections={"server": server}) as (pod,):
        other = Lines()
        listening = await other.listen()
        assert pod.server is not None
        other.lead_to(pod.server.port)
        async with Client(f"ipv4:{pod.address},{other.address}", options=NO_KEEPALIVE) as client:
            async with client.call(**OPENING) as alone:
                wanted = await alone.ask(LINES[0])
            await until(lambda: bool(pod.lines._connections and other._connections))
            async with client.call(**OPENING) as one, client.call(**OPENING) as two:  # one each way
                pod.lines.silence_those_there_are()
                async with asyncio.timeout(LEFT_WITHIN_S):
                    await until(lambda: one.resumes + two.resumes == 1)
                    for call in (one, two):
                        turn = await call.ask(LINES[0])
                        assert turn.text == wanted.text
                pod.lines.cut_all()
        listening.close()


class _Hanging(call_service_pb2_grpc.CallServiceServicer):
    """Takes every stream, and says nothing on it. What gRPC answers by itself, it answers: pings."""

    async def Call(self, request_iterator: AsyncIterator[call_pb.CallRequest], context: Any) -> None:  # type: ignore[override]
        await asyncio.Event().wait()


@asynccontextmanager
async def hanging() -> AsyncIterator[int]:
    """The port of a server that hangs."""
    server = grpc.aio.server(options=(("grpc.http2.max_ping_strikes", 0),))
    call_service_pb2_grpc.add_CallServiceServicer_to_server(_Hanging(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


async def test_a_call_that_nobody_opens_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firstword.call.OPENING_TIMEOUT_S", 0.5)
    async with hanging() as port, Client(f"127.0.0.1:{port}") as client, asyncio.timeout(LEFT_WITHIN_S):
        call = client.call(**OPENING)
        with pytest.raises(CallFailed) as failed:
            await call.__aenter__()
        assert (failed.value.code, failed.value.reason) == (grpc.StatusCode.UNAVAILABLE, "")
        assert call.failure is not None


async def test_a_call_is_no_longer_without_a_server_than_it_may_be() -> None:
    """However patient a single try would be."""
    async with (
        hanging() as port,
        local_pods(1) as (pod,),
        Client(pod.address, resume_timeout_s=1.5) as client,
        asyncio.timeout(LEFT_WITHIN_S),
        client.call(**OPENING) as call,
    ):
        pod.lines.lead_to(port)
        pod.lines.cut_all()
        left = time.monotonic()
        await until(lambda: call.failure is not None)
        assert 1.0 < time.monotonic() - left < OPENED_TIMEOUT_S - 1.0
        assert call.failure is not None and call.failure.code is grpc.StatusCode.UNAVAILABLE


async def test_a_client_that_stood_still_itself_does_not_leave_its_line() -> None:
    async with (
        local_pods(1, sections={"server": {"heartbeat_s": 0.3}}) as (pod,),
        Client(pod.address) as client,
        client.call(**OPENING) as call,
    ):
        time.sleep(2.0)  # noqa: ASYNC251 (nothing in this process moves)
        await asyncio.sleep(0.6)
        turn = await call.ask(LINES[0])
        assert turn.text and call.resumes == 0


async def test_heartbeats_are_no_events_of_the_call_and_clients_that_do_not_know_them_pass_over_them() -> None:
    """Read with the contract as it was released, and entered in the books of a client."""
    released = message_factory.GetMessageClass(_released().FindMessageTypeByName("firstword.v1.CallResponse"))
    asked: asyncio.Queue[call_pb.CallRequest] = asyncio.Queue()

    async def requests() -> AsyncIterator[call_pb.CallRequest]:
        while True:
            yield await asked.get()

    async with (
        local_pods(1, sections={"server": {"heartbeat_s": 0.1}}) as (pod,),
        grpc.aio.insecure_channel(pod.address) as channel,
    ):
        stream = call_service_pb2_grpc.CallServiceStub(channel).Call(requests())
        asked.put_nowait(call_pb.CallRequest(client_seq=1, open=client_pb.Open(system_prompt=SYSTEM)))
        opened = await stream.read()
        assert opened.opened.heartbeat_interval_ms == 100
        books, beats, kinds = Books(), 0, []
        assert books.take(opened)
        while "turn_ended" not in kinds:
            response = await stream.read()
            kind, seq = response.WhichOneof("event"), books.seq
            news = books.take(response)
            if kind == "heartbeat":
                old = released.FromString(response.SerializeToString())
                assert (old.WhichOneof("event"), old.seq, response.record, news) == (None, seq, b"", False)
                beats += 1
                if beats == 2:
                    asked.put_nowait(call_pb.CallRequest(client_seq=2, final=client_pb.Final(turn_id=1, text="Hi")))
            else:
                kinds.append(kind)
                assert (response.seq, news) == (seq + 1, True)
        assert beats >= 2
        stream.cancel()


def _released() -> descriptor_pool.DescriptorPool:
    """The contract that clients have been built with."""
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(RELEASED.read_bytes()).file:
        pool.Add(file)
    return pool
