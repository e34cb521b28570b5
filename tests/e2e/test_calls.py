"""Calls over a real socket, with the real engine process and the embedded model."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from firstword.v1 import call_service_pb2 as call_pb
from firstword.v1 import client_events_pb2 as client_pb
from firstword.v1 import conversation_pb2 as conversation_pb
from firstword.v1 import options_pb2 as options_pb
from firstword.v1 import resume_pb2 as resume_pb
from firstword.v1 import server_events_pb2 as server_pb
from tests.e2e.server import CallStream, ServiceProcess, connected, example_calls

if TYPE_CHECKING:
    from firstword.v1.call_service_pb2_grpc import CallServiceAsyncStub as Stub

TURNS = 3
CLIENTS = 10
VANISHING = (2, 5, 8)
SERVICE = "firstword.v1.CallService"


def choosing(client: int) -> dict[str, Any]:
    """Each client its own way and seed: half of them greedy."""
    temperature = 0.8 if client % 2 else 0.0
    sampling = options_pb.Sampling(temperature=temperature, top_p=0.95, max_output_tokens=40)
    return {"sampling": sampling, "seed": 100 + client}


async def hold_call(stub: Stub, client: int) -> list[tuple[str, list[str]]]:
    """A whole call; per turn its text and its tool calls."""
    call = CallStream(stub)
    scripts = example_calls(3)
    system, tools, lines = scripts[client % len(scripts)]
    await call.open(system_prompt=system, tools=tools, **choosing(client))
    transcript = []
    for line in lines[:TURNS]:
        turn = await call.say(line)
        assert not turn.errors
        transcript.append((turn.text, [f"{made.name} {made.arguments_json}" for made in turn.calls]))
    assert await call.close() is grpc.StatusCode.OK
    return transcript


async def vanish_mid_turn(stub: Stub, client: int) -> None:
    """Open, ask, read one piece of the reply, and be gone without a word."""
    call = CallStream(stub)
    system, tools, lines = example_calls(1)[0]
    sampling = options_pb.Sampling(max_output_tokens=200)
    await call.open(system_prompt=system, tools=tools, sampling=sampling, seed=client)
    await call.send(final=client_pb.Final(turn_id=1, text=lines[0]))
    while (await call.next()).WhichOneof("event") != "text_delta":
        pass  # the engine may be struck before it has said anything
    call.stream.cancel()


async def test_one_call_end_to_end(service: ServiceProcess) -> None:
    async with connected(service.address) as stub:
        call = CallStream(stub)
        system, tools, lines = example_calls(1)[0]
        opened = await call.open(system_prompt=system, tools=tools, sampling=options_pb.Sampling(max_output_tokens=32))
        turn = await call.say(lines[0])
        assert turn.ended is not None
        assert turn.ended.text == turn.text != ""
        assert turn.ended.reason in (server_pb.TURN_END_REASON_COMPLETED, server_pb.TURN_END_REASON_LENGTH)
        assert turn.ended.usage.prompt_tokens > opened.used_tokens > 0
        assert 0 < turn.ended.usage.completion_tokens <= 32
        timings = turn.ended.timings
        assert timings.first_token_us + 1 >= timings.queue_us + timings.prefill_us  # each is rounded
        assert sum(delta.completion_tokens for delta in turn.deltas) <= turn.ended.usage.completion_tokens
        assert [message.seq for message in call.received] == list(range(1, len(call.received) + 1))
        assert call.received[-1].client_seq == call.seq
        assert await call.close() is grpc.StatusCode.OK


async def test_the_same_seed_says_the_same_and_partials_change_nothing(service: ServiceProcess) -> None:
    system, tools, lines = example_calls(1)[0]
    texts = []
    async with connected(service.address) as stub:
        for partials in ([], ["hi", "hi is any", lines[0]]):
            call = CallStream(stub)
            await call.open(system_prompt=system, tools=tools, **choosing(1))
            for revision, text in enumerate(partials):
                await call.send(partial=client_pb.Partial(turn_id=1, revision=revision + 1, text=text))
            turn = await call.say(lines[0])
            texts.append(turn.text)
            await call.close()
    assert texts[0] == texts[1] != ""


async def test_an_interruption_cuts_the_history_to_what_was_heard(service: ServiceProcess) -> None:
    """After a cut the next reply is that of a call which never held more than what was heard."""
    system, tools, lines = example_calls(1)[0]
    async with connected(service.address) as stub:
        call = CallStream(stub)
        await call.open(system_prompt=system, tools=tools, **choosing(0))
        whole = await call.say(lines[0])
        assert len(whole.text) > 8
        for _ in range(2):  # repeating is harmless
            heard = client_pb.Heard(code_points=len(whole.text) // 2)
            await call.send(interrupt=client_pb.Interrupt(turn_id=1, heard=heard))
            cut = await call.expect("interrupted")
            assert whole.text.startswith(cut.text)
            assert cut.text_code_points == len(cut.text) <= len(whole.text) // 2
        after = await call.say(lines[1])
        await call.close()

        told = CallStream(stub)
        items = [
            conversation_pb.Item(message=conversation_pb.Message(role=conversation_pb.ROLE_USER, text=lines[0])),
            conversation_pb.Item(message=conversation_pb.Message(role=conversation_pb.ROLE_ASSISTANT, text=cut.text)),
        ]
        await told.open(system_prompt=system, tools=tools, items=items, **choosing(0))
        expected = await told.say(lines[1])
        assert after.ended is not None
        assert expected.ended is not None
        assert after.ended.usage.prompt_tokens < whole.ended.usage.prompt_tokens + 64  # type: ignore[union-attr]
        if after.ended.usage.prompt_tokens == expected.ended.usage.prompt_tokens:
            assert after.text == expected.text
        await told.close()


async def test_a_final_interrupts_the_reply_that_runs(service: ServiceProcess) -> None:
    system, tools, lines = example_calls(1)[0]
    async with connected(service.address) as stub:
        call = CallStream(stub)
        await call.open(system_prompt=system, tools=tools, sampling=options_pb.Sampling(max_output_tokens=200))
        await call.send(final=client_pb.Final(turn_id=1, text=lines[0]))
        await call.expect("text_delta")
        await call.send(playback_progress=client_pb.PlaybackProgress(turn_id=1, heard=client_pb.Heard(code_points=1)))
        call.turn_id = 1
        turn = await call.say(lines[1])
        kinds = [message.WhichOneof("event") for message in call.received]
        ends = [message.turn_ended for message in call.received if message.WhichOneof("event") == "turn_ended"]
        assert "interrupted" in kinds
        assert [(end.turn_id, end.reason == server_pb.TURN_END_REASON_INTERRUPTED) for end in ends] == [
            (1, True),
            (2, False),
        ]
        cut = next(message.interrupted for message in call.received if message.WhichOneof("event") == "interrupted")
        assert cut.text_code_points <= 1
        first_of_second = next(i for i, m in enumerate(call.received) if m.text_delta.turn_id == 2)
        assert all(m.text_delta.turn_id != 1 for m in call.received[first_of_second:])
        assert turn.ended is not None
        await call.close()


@pytest.mark.parametrize(
    ("event", "code", "field"),
    [
        ({"generate": client_pb.Generate(question="x")}, grpc.StatusCode.INVALID_ARGUMENT, "generate.request_id"),
        (
            {"update": client_pb.Update(sampling={"seed": 1})},
            grpc.StatusCode.INVALID_ARGUMENT,
            "update.sampling.seed",
        ),
        ({"items": client_pb.Items(history_version=0)}, grpc.StatusCode.ABORTED, "items.history_version"),
        ({"open": client_pb.Open()}, grpc.StatusCode.FAILED_PRECONDITION, ""),
        ({}, grpc.StatusCode.INVALID_ARGUMENT, "event"),
        ({"final": client_pb.Final(text="x")}, grpc.StatusCode.INVALID_ARGUMENT, "final.turn_id"),
        ({"final": client_pb.Final(turn_id=1, text="x" * 20_000)}, grpc.StatusCode.RESOURCE_EXHAUSTED, "final.text"),
        (
            {"respond": client_pb.Respond(turn_id=1, options=options_pb.TurnOptions(sampling={"top_p": 0}))},
            grpc.StatusCode.INVALID_ARGUMENT,
            "respond.options.sampling.top_p",
        ),
        ({"interrupt": client_pb.Interrupt(turn_id=7)}, grpc.StatusCode.NOT_FOUND, "interrupt.turn_id"),
        (
            {"tool_result": client_pb.ToolResult(turn_id=1, call_id="none")},
            grpc.StatusCode.NOT_FOUND,
            "tool_result.call_id",
        ),
        ({"final": client_pb.Final(turn_id=1, text="word " * 3000)}, grpc.StatusCode.OUT_OF_RANGE, ""),
    ],
)
async def test_what_cannot_be_done_is_said_in_band_and_the_call_goes_on(
    service: ServiceProcess, event: dict[str, object], code: grpc.StatusCode, field: str
) -> None:
    async with connected(service.address) as stub:
        call = CallStream(stub)
        await call.open(sampling=options_pb.Sampling(max_output_tokens=4))
        await call.send(**event)
        error = await call.expect("error")
        assert error.code == code.value[0]
        assert error.client_seq == call.seq
        assert error.field == field
        turn = await call.say("hello")
        assert turn.ended is not None
        assert await call.close() is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("event", "code", "reason"),
    [
        ({"final": client_pb.Final(turn_id=1, text="x")}, grpc.StatusCode.FAILED_PRECONDITION, "NOT_OPEN"),
        ({"open": client_pb.Open(model="other")}, grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_MODEL"),
        ({"open": client_pb.Open(resume=resume_pb.Resume())}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        (
            {"open": client_pb.Open(sampling={"temperature": -1.0})},
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_FIELD",
        ),
        (
            {"open": client_pb.Open(tools=[conversation_pb.Tool(name="t", parameters_json_schema="[")])},
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_FIELD",
        ),
        ({"open": client_pb.Open(system_prompt="word " * 4000)}, grpc.StatusCode.OUT_OF_RANGE, "CONTEXT_FULL"),
    ],
)
async def test_a_call_that_cannot_begin_ends_with_a_status(
    service: ServiceProcess, event: dict[str, object], code: grpc.StatusCode, reason: str
) -> None:
    async with connected(service.address) as stub:
        call = CallStream(stub)
        await call.send(**event)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            while await call.stream.read() is not grpc.aio.EOF:
                pass
            raise AssertionError(await call.stream.code())
        assert raised.value.code() is code
        details = dict(raised.value.trailing_metadata() or ())["grpc-status-details-bin"]
        status = status_pb2.Status.FromString(details)  # type: ignore[arg-type]
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert (info.reason, info.domain) == (reason, "firstword")


async def test_resent_events_are_dropped(service: ServiceProcess) -> None:
    async with connected(service.address) as stub:
        call = CallStream(stub)
        await call.open(sampling=options_pb.Sampling(max_output_tokens=4))
        await call.say("hello")
        await call.stream.write(call_pb.CallRequest(client_seq=2, final=client_pb.Final(turn_id=9, text="again")))
        assert await call.close() is grpc.StatusCode.OK
        assert len([m for m in call.received if m.WhichOneof("event") == "turn_ended"]) == 1


async def test_the_agent_speaks_first_and_says_given_text(service: ServiceProcess) -> None:
    system, tools, lines = example_calls(1)[0]
    async with connected(service.address) as stub:
        call = CallStream(stub)
        await call.open(system_prompt=system, tools=tools, **choosing(0))
        await call.send(respond=client_pb.Respond(turn_id=1))
        call.turn_id = 1
        assert (await call.turn()).ended is not None
        await call.send(say=client_pb.Say(turn_id=2, text="One moment, please."))
        await call.expect("turn_ended")
        await call.send(interrupt=client_pb.Interrupt(turn_id=2, heard=client_pb.Heard(text="one moment")))
        cut = await call.expect("interrupted")
        assert "One moment, please.".startswith(cut.text)
        assert 0 < len(cut.text) <= len("One moment")
        call.turn_id = 2
        given = next(m.turn_ended for m in call.received if m.turn_ended.turn_id == 2)
        assert (given.source, given.text) == (server_pb.ANSWER_SOURCE_GIVEN_TEXT, "One moment, please.")
        assert (await call.say(lines[0])).ended is not None
        await call.close()


async def test_health_and_reflection(service: ServiceProcess) -> None:
    async with grpc.aio.insecure_channel(service.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE, "liveness"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await health.Check(health_pb2.HealthCheckRequest(service="other"))
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        stream = reflection.ServerReflectionInfo()
        await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        names = [listed.name for listed in (await stream.read()).list_services_response.service]
        assert SERVICE in names
        stream.cancel()


@pytest.fixture(scope="module")
def metrics_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def fragile(metrics_port: int) -> Iterator[ServiceProcess]:
    """A service of its own, whose engine is killed; its figures can be read."""
    environment = {
        "OTEL_METRICS_EXPORTER": "prometheus",
        "OTEL_EXPORTER_PROMETHEUS_PORT": str(metrics_port),
        "FIRSTWORD_WATCHDOG__SILENCE_S": "3",
        "FIRSTWORD_RESUME__KEEP_S": "0.5",
    }
    with ServiceProcess(environment) as process:
        yield process


def figure(port: int, name: str) -> float:
    """The value of a metric without labels of its own."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        lines = page.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith(name)).rsplit(" ", 1)[1])


async def no_call_has_pages(port: int) -> bool:
    """Whether the pages in use come down, in reasonable time, to what is kept for calls to come."""
    until = time.monotonic() + 20
    while figure(port, "firstword_engine_pages_used") != figure(port, "firstword_engine_pages_kept"):
        if time.monotonic() > until:
            return False
        await asyncio.sleep(0.1)
    return True


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
async def test_ten_clients_vanishing_clients_and_a_dead_engine(
    fragile: ServiceProcess, metrics_port: int, blow: signal.Signals
) -> None:
    """Every surviving transcript equals its single-client run, no stream breaks, and no page stays in use."""
    async with connected(fragile.address) as stub:
        alone = {client: await hold_call(stub, client) for client in range(CLIENTS) if client not in VANISHING}
        restarts = figure(metrics_port, "firstword_engine_restarts")

        async def strike() -> None:
            await asyncio.sleep(0.3)
            os.kill(fragile.engine_pid, blow)

        together = {
            client: asyncio.create_task(
                vanish_mid_turn(stub, client) if client in VANISHING else hold_call(stub, client)
            )
            for client in range(CLIENTS)
        }
        await strike()
        results = dict(zip(together, await asyncio.gather(*together.values()), strict=True))
    assert figure(metrics_port, "firstword_engine_restarts") == restarts + 1
    for client, transcript in alone.items():
        assert results[client] == transcript
    assert await no_call_has_pages(metrics_port)
    assert figure(metrics_port, "firstword_calls_active") == 0


async def test_a_client_that_vanishes_frees_its_pages_and_harms_nobody(
    fragile: ServiceProcess, metrics_port: int
) -> None:
    async with connected(fragile.address) as stub:
        expected = await hold_call(stub, 1)
        results = await asyncio.gather(hold_call(stub, 1), *(vanish_mid_turn(stub, client) for client in VANISHING))
    assert results[0] == expected
    assert await no_call_has_pages(metrics_port)


async def test_draining_tells_open_calls_and_ends_in_order() -> None:
    with ServiceProcess({"FIRSTWORD_SERVER__STOP_GRACE_S": "30"}) as process:
        async with connected(process.address) as stub:
            call = CallStream(stub)
            await call.open(sampling=options_pb.Sampling(max_output_tokens=8))
            process.process.send_signal(signal.SIGTERM)
            notice = await call.expect("notice")
            assert notice.draining.grace_ms == 25_000
            assert (await call.say("hello")).ended is not None
            assert await call.close() is grpc.StatusCode.OK
        assert await asyncio.to_thread(process.process.wait, 30) == 0
