"""A real server that tells a real receiver all it can, after calls that went through everything it measures."""

from __future__ import annotations

import asyncio
import contextlib
import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc

from firstword.v1 import client_events_pb2 as client_pb
from firstword.v1 import options_pb2 as options_pb
from firstword.v1 import server_events_pb2 as server_pb
from scripts.otlp import Received, Receiver
from tests.e2e.pods import SECRET
from tests.e2e.server import CallStream, ServiceProcess, connected, example_calls
from tests.service.store.valkey import valkey

if TYPE_CHECKING:
    from firstword.v1.call_service_pb2_grpc import CallServiceAsyncStub as Stub

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CANARY = "zanzibarquux"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def scrape(port: int, accept: str = "text/plain") -> str:
    """What a Prometheus endpoint says now."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=30) as response:
        text: str = response.read().decode()
    return text


@dataclass
class Observed:
    """The server, still running, and the receiver that it exports to."""

    process: ServiceProcess
    receiver: Receiver
    metrics_port: int

    def scrape(self, accept: str = "text/plain") -> str:
        """What its Prometheus endpoint says now."""
        return scrape(self.metrics_port, accept)

    @property
    def interrupted(self) -> Received:
        """The span of the turn that called a tool and was spoken over."""
        return next(
            span
            for span in self.receiver.spans
            if span.name.startswith("chat ")
            and span.trace == TRACE
            and span.attributes["gen_ai.agent.invocation.end_reason"] == "interrupted"
            and span.attributes["firstword.turn.tool_calls"]
        )

    def children(self, parent: Received) -> list[Received]:
        return [span for span in self.receiver.spans if span.parent == parent.span]


@contextmanager
def observed() -> Iterator[Observed]:
    """Start it, hold the calls, and wait for what it has to tell."""
    with Receiver() as receiver, valkey() as store:
        environment = receiver.environment | {
            "OTEL_METRICS_EXPORTER": "otlp,prometheus",
            "OTEL_EXPORTER_PROMETHEUS_PORT": "0",
            "FIRSTWORD_ADMISSION__MAX_CALLS": "1",
            "FIRSTWORD_ADMISSION__RESERVE_TOKENS": "0",
            "FIRSTWORD_ENGINE__POOL_TOKENS": "1024",
            "FIRSTWORD_LOG__LEVEL": "debug",
            "FIRSTWORD_STORE__URL": store.url,
            "FIRSTWORD_RESUME__KEYS": SECRET,
            "FIRSTWORD_WATCHDOG__SILENCE_S": "60",
        }
        process = ServiceProcess(environment)
        port = int(process.wait_for("metrics served")["port"])
        with process:
            asyncio.run(hold_calls(process.address))
            found = Observed(process, receiver, port)
            receiver.wait(lambda seen: any(span.name == "call" for span in seen.spans))
            receiver.wait(lambda seen: "firstword.calls" in seen.metrics)
            yield found


async def hold_calls(address: str) -> None:
    """A call that hears ahead, calls a tool, is spoken over, misses a deadline and ends; and one that is refused."""
    async with connected(address) as stub:
        for system, tools, lines in example_calls(8):
            call = await _opened(stub, system_prompt=system, tools=tools, seed=3)
            refused = CallStream(stub)
            with contextlib.suppress(grpc.aio.AioRpcError):  # it may be refused before it is written
                await refused.send(open=client_pb.Open())
            assert await refused.stream.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # one call is all it takes
            spoken_over = await _speak_over(call, lines)
            if spoken_over:
                await call.say(lines[-1], first_token_deadline_ms=1)
                await call.send(
                    eager_end_of_turn=client_pb.EagerEndOfTurn(turn_id=call.turn_id + 1, revision=1, text="Bye.")
                )
                await asyncio.sleep(0.2)
                await call.say("Bye.")
                await call.say(f"{CANARY}?")
            await call.close()
            if spoken_over:
                await _run_out_of_pages(stub)
                await _run_out_of_time(stub)
                return
    raise AssertionError("no example's reply could be spoken over behind a tool call")


async def _opened(stub: Stub, **fields: Any) -> CallStream:
    """A call, as soon as the pages of the one before it are known to be free."""
    for _ in range(100):
        call = CallStream(stub)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call.open(**fields)
            return call
        assert await call.stream.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await asyncio.sleep(0.1)
    raise AssertionError("there is never any room")


async def _run_out_of_pages(stub: Stub) -> None:
    """A turn that fails: it fits the context, and not the pool."""
    call = await _opened(stub)
    assert (await call.say("please " * 1100)).errors
    await call.close()


async def _run_out_of_time(stub: Stub) -> None:
    """A call that the service ends."""
    call = await _opened(stub, limits=options_pb.Limits(max_call_ms=100))
    with contextlib.suppress(grpc.aio.AioRpcError):
        while await call.stream.read() is not grpc.aio.EOF:
            pass
    assert await call.stream.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def _speak_over(call: CallStream, lines: list[str]) -> bool:
    """Say the lines until a reply that has called a tool was interrupted while it was still being made."""
    for line in lines:
        call.turn_id += 1
        await call.send(partial=client_pb.Partial(turn_id=call.turn_id, revision=1, text=line))
        options = options_pb.TurnOptions(traceparent=f"00-{TRACE}-{PARENT}-01")
        await call.send(final=client_pb.Final(turn_id=call.turn_id, text=line, options=options))
        if await _interrupt_behind_tool(call):
            return True
    return False


async def _interrupt_behind_tool(call: CallStream) -> bool:
    called = False
    while True:
        message: Any = await call.next()
        kind = message.WhichOneof("event")
        if kind == "turn_waiting":
            called = True
            for call_id in message.turn_waiting.call_ids:
                result = client_pb.ToolResult(
                    turn_id=call.turn_id, call_id=call_id, output=json.dumps({"id": "V2443", "note": CANARY})
                )
                await call.send(tool_result=result)
        elif kind == "text_delta" and called:
            await call.send(interrupt=client_pb.Interrupt(turn_id=call.turn_id))
            called = False
        elif kind == "turn_ended" and message.turn_ended.turn_id == call.turn_id:
            interrupted: bool = message.turn_ended.reason == server_pb.TURN_END_REASON_INTERRUPTED
            return interrupted
