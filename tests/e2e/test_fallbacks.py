"""A primary that hangs, over a real socket: another resident model answers inside the deadline."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator

import grpc
import pytest

from firstword import AnswerSource, Call, CallError, Client, Fallback, Notice, TextDelta, TurnOptions
from firstword.v1 import options_pb2 as options_pb
from tests.e2e.server import MODEL, CallStream, ServiceProcess, connected, example_calls

SYSTEM, TOOLS, LINES = example_calls(1)[0]
PHRASE = "One moment, please."
DEADLINE_MS = 2000
"""Long enough for a busy machine of two cores, and far below the time after which the hung process is replaced."""


@pytest.fixture(scope="module")
def pair() -> ServiceProcess:
    """The embedded model, and its draft model as a fallback."""
    settings = {"FIRSTWORD_FALLBACK__SMALL": str(MODEL / "draft"), "FIRSTWORD_WATCHDOG__SILENCE_S": "8"}
    with ServiceProcess(settings) as process:
        yield process


@contextlib.asynccontextmanager
async def hung(process: ServiceProcess, *others: str) -> AsyncIterator[None]:
    """The primary's process, and those of other models, stand still, and go on later."""
    pids = [process.engine_pid_of(model) for model in (MODEL.name, *others)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # it may have been replaced meanwhile
                os.kill(pid, signal.SIGCONT)


@contextlib.asynccontextmanager
async def call_with(
    process: ServiceProcess, notices: list[Notice | CallError], *chain: Fallback
) -> AsyncIterator[Call]:
    async with (
        Client(process.address) as client,
        client.call(
            system=SYSTEM,
            seed=7,
            max_tokens=12,
            first_token_deadline_ms=DEADLINE_MS,
            fallbacks=chain,
            on_notice=notices.append,
        ) as call,
    ):
        yield call


async def test_a_hung_primary_is_answered_for_inside_the_deadline(pair: ServiceProcess) -> None:
    notices: list[Notice | CallError] = []
    async with call_with(pair, notices, Fallback(model="small"), Fallback(phrase=PHRASE)) as call:
        first = (await call.ask(LINES[0])).report
        assert first is not None
        assert first.source is AnswerSource.MODEL and first.model == MODEL.name
        async with hung(pair):
            turn = await call.final(LINES[1])
            texts = [event async for event in turn if isinstance(event, TextDelta) and event.text]
            assert turn.report is not None
        assert turn.report.source is AnswerSource.FALLBACK_MODEL and turn.report.model == "small"
        assert texts and 0.0 < turn.report.timings.first_token_ms <= DEADLINE_MS
        kinds = [notice.kind for notice in notices if isinstance(notice, Notice)]
        assert kinds == ["deadline_at_risk", "fallback_taken"]
        again = (await call.ask(LINES[2], options=TurnOptions(first_token_deadline_ms=60_000))).report
        assert again is not None and again.source is AnswerSource.MODEL


async def test_a_phrase_is_said_where_no_model_is_there(pair: ServiceProcess) -> None:
    notices: list[Notice | CallError] = []
    async with call_with(pair, notices, Fallback(phrase=PHRASE)) as call:
        async with hung(pair):
            report = (await call.ask(LINES[0])).report
        assert report is not None
        assert (report.text, report.source, report.model) == (PHRASE, AnswerSource.FALLBACK_PHRASE, "")


async def test_after_the_last_link_the_turn_fails_and_the_call_goes_on(pair: ServiceProcess) -> None:
    """Every model of the chain hangs."""
    notices: list[Notice | CallError] = []
    async with call_with(pair, notices, Fallback(model="small", first_token_deadline_ms=300)) as call:
        async with hung(pair, "draft"):
            with pytest.raises(CallError) as late:
                await call.ask(LINES[0])
        assert (late.value.reason, late.value.code) == ("FIRST_TOKEN_LATE", grpc.StatusCode.DEADLINE_EXCEEDED)
        kinds = [notice.kind for notice in notices if isinstance(notice, Notice)]
        assert kinds == ["deadline_at_risk", "fallback_taken"]
        report = (await call.ask(LINES[1], options=TurnOptions(first_token_deadline_ms=60_000))).report
        assert report is not None and report.source is AnswerSource.MODEL and report.text


async def test_what_cannot_be_a_fallback_is_refused(pair: ServiceProcess) -> None:
    for link, field in (
        (options_pb.Fallback(model="large"), "open.fallbacks[0].model"),
        (options_pb.Fallback(), "open.fallbacks[0].answer"),
        (options_pb.Fallback(phrase="x", first_token_deadline_ms=9), "open.fallbacks[0].first_token_deadline_ms"),
    ):
        async with connected(pair.address) as stub:
            call = CallStream(stub)
            await call.send(open={"fallbacks": [link]})
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call.next()
                raise AssertionError("the call was opened")
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert field in str(raised.value.trailing_metadata())
