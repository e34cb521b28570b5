"""More calls than the page pool holds, over a real socket: each says what it says alone."""

from __future__ import annotations

import asyncio
import random
import re
import socket
import urllib.request
from typing import TYPE_CHECKING

import grpc
import pytest

from firstword.v1 import client_events_pb2 as client_pb
from firstword.v1 import options_pb2 as options_pb
from tests.e2e.server import CallStream, ServiceProcess, connected, example_calls

if TYPE_CHECKING:
    from firstword.v1.call_service_pb2_grpc import CallServiceAsyncStub as Stub

CALLS, TURNS, POOL_TOKENS = 12, 2, 800


async def begin(stub: Stub, number: int) -> CallStream:
    scripts = example_calls(3)
    system, tools, _ = scripts[number % len(scripts)]
    sampling = options_pb.Sampling(temperature=0.8 * (number % 2), top_p=0.95, max_output_tokens=12)
    call = CallStream(stub)
    await call.open(system_prompt=system, tools=tools, sampling=sampling, seed=number)
    return call


async def speak(call: CallStream, number: int) -> tuple[str, list[str]]:
    """One turn, announced and heard in part before it is committed. Tools are answered."""
    scripts = example_calls(3)
    lines = scripts[number % len(scripts)][2]
    line = lines[call.turn_id % len(lines)]
    await call.send(speech_started=client_pb.SpeechStarted())
    await call.send(partial=client_pb.Partial(turn_id=call.turn_id + 1, revision=1, text=line[: len(line) // 2]))
    turn = await call.say(line)
    assert not turn.errors
    return turn.text, [f"{made.name} {made.arguments_json}" for made in turn.calls]


async def alone(stub: Stub, number: int) -> list[tuple[str, list[str]]]:
    call = await begin(stub, number)
    said = [await speak(call, number) for _ in range(TURNS)]
    assert await call.close() is grpc.StatusCode.OK
    return said


async def together(stub: Stub) -> list[list[tuple[str, list[str]]]]:
    """All open at once, and speaking in a random order, two at a time."""
    calls = [await begin(stub, number) for number in range(CALLS)]
    said: list[list[tuple[str, list[str]]]] = [[] for _ in calls]
    turns = [number for number in range(CALLS) for _ in range(TURNS)]
    random.Random(1).shuffle(turns)

    async def take(first: list[int]) -> None:
        for number in first:
            said[number].append(await speak(calls[number], number))

    await asyncio.gather(*(take([number for number in turns if number % 2 == half]) for half in range(2)))
    for call in calls:
        assert await call.close() is grpc.StatusCode.OK
    return said


def figure(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        page = answer.read().decode()
    found = re.search(rf"^firstword_engine_sessions_{name}_total(?:\{{.*\}})? ([0-9.e+]+)$", page, re.MULTILINE)
    assert found, page
    return float(found[1])


@pytest.mark.asyncio
async def test_calls_beyond_the_pool_say_what_they_say_alone() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "FIRSTWORD_ENGINE__DTYPE": "float64",  # no decision is so close that rounding would make it
        "FIRSTWORD_ENGINE__POOL_TOKENS": str(POOL_TOKENS),
        "FIRSTWORD_ENGINE__HOST_CACHE_BYTES": str(24 << 20),
        "FIRSTWORD_ADMISSION__OVERCOMMIT": "100",
        "OTEL_METRICS_EXPORTER": "prometheus",
        "OTEL_EXPORTER_PROMETHEUS_PORT": str(port),
    }
    with ServiceProcess(settings) as service:
        async with connected(service.address) as stub:
            wanted = [await alone(stub, number) for number in range(CALLS)]
            assert figure(port, "hibernated") == figure(port, "dropped") == 0
            assert await together(stub) == wanted
        for name in ("hibernated", "dropped", "woken_from_host", "woken_from_log"):
            assert figure(port, name) > 0, name
