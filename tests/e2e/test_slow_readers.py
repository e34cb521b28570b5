"""A client that does not read, over a real socket: its reply stands still, alone, and is the same when it is read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import pytest

from firstword.v1 import call_service_pb2 as call_pb
from firstword.v1 import call_service_pb2_grpc
from firstword.v1 import client_events_pb2 as client_pb
from firstword.v1 import options_pb2 as options_pb
from tests.e2e.server import CallStream, ServiceProcess, Turn, connected, example_calls

if TYPE_CHECKING:
    from firstword.v1.call_service_pb2_grpc import CallServiceAsyncStub as Stub

SYSTEM, _, LINES = example_calls(1)[0]
SAMPLED = options_pb.Sampling(temperature=0.9, max_output_tokens=60)
FILLING = 60
"""Events of about 4 KB that fill what HTTP/2 takes of a stream that nobody reads, 64 KB, and then the outbox."""


@pytest.fixture(scope="module")
def service() -> Iterator[ServiceProcess]:
    with ServiceProcess({"FIRSTWORD_SERVER__HOLD_AT_EVENTS": "8", "FIRSTWORD_SERVER__UNREAD_S": "100"}) as process:
        yield process


@asynccontextmanager
async def narrow(address: str) -> AsyncIterator[Stub]:
    """A channel whose window does not grow with how fast the service sends."""
    async with grpc.aio.insecure_channel(address, options=[("grpc.http2.bdp_probe", 0)]) as channel:
        yield call_service_pb2_grpc.CallServiceStub(channel)  # type: ignore[misc]


async def fill(call: CallStream) -> None:
    """Ask for more than the stream holds, by small events that are answered at length, and then for a reply."""
    await call.send(say=client_pb.Say(turn_id=1, text="We are open. " * 300))
    for _ in range(FILLING):
        await call.send(interrupt=client_pb.Interrupt(turn_id=1, heard=client_pb.Heard(code_points=4000)))
    await call.send(interrupt=client_pb.Interrupt(turn_id=1, heard=client_pb.Heard(code_points=24)))
    call.turn_id = 2
    await call.send(final=client_pb.Final(turn_id=2, text=LINES[0]))


async def test_a_reply_that_is_not_read_waits_alone_and_is_the_same(service: ServiceProcess) -> None:
    async with narrow(service.address) as stub, connected(service.address) as other_stub:
        prompt, slow, other = CallStream(other_stub), CallStream(stub), CallStream(other_stub)
        for call in (prompt, slow):
            await call.open(system_prompt=SYSTEM, sampling=SAMPLED, seed=3)
        filling = asyncio.create_task(fill(prompt))
        expected = await read_until_turn(prompt)
        await filling
        await fill(slow)
        await other.open(system_prompt=SYSTEM, sampling=SAMPLED, seed=4)
        for line in LINES[:2]:  # all of another call's turns while this one stands still
            turn = await other.say(line)
            assert turn.ended is not None and not turn.ended.timings.HasField("held_us") and turn.text
        await asyncio.sleep(0.3)
        late = await read_until_turn(slow, pause_s=0.005)
        assert late.ended is not None and expected.ended is not None
        assert late.text == late.ended.text == expected.text != ""
        assert late.ended.timings.held_us >= 300_000
        timings = late.ended.timings
        assert timings.decode_us + timings.held_us <= timings.total_us
        assert await slow.close() is grpc.StatusCode.OK


async def test_a_client_that_takes_nothing_for_too_long_loses_its_call_and_no_other_does() -> None:
    with ServiceProcess({"FIRSTWORD_SERVER__UNREAD_S": "1"}) as process:
        async with narrow(process.address) as stub, connected(process.address) as other_stub:
            stuck, other = CallStream(stub), CallStream(other_stub)
            for call in (stuck, other):
                await call.open(system_prompt=SYSTEM, sampling=SAMPLED)
            await fill(stuck)
            await asyncio.to_thread(process.wait_for, "call ended", cause="CLIENT_NOT_READING")
            assert (await other.say(LINES[0])).ended is not None
            with pytest.raises(grpc.aio.AioRpcError) as broken:
                while isinstance(await stuck.stream.read(), call_pb.CallResponse):
                    pass
            assert broken.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await other.close() is grpc.StatusCode.OK


async def read_until_turn(call: CallStream, pause_s: float = 0.0) -> Turn:
    """Read to the end of turn 2, and take the text of it together; with a pause after each event."""
    turn = Turn()
    while turn.ended is None:
        message = await call.next()
        await asyncio.sleep(pause_s)
        match message.WhichOneof("event"):
            case "text_delta":
                assert message.text_delta.offset_code_points == len(turn.text)
                turn.text += message.text_delta.text
            case "turn_ended" if message.turn_ended.turn_id == 2:
                turn.ended = message.turn_ended
            case "error":
                raise AssertionError(message.error)
    return turn
