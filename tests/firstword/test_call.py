"""Calls of the client on the real service."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from firstword import (
    AnswerSource,
    Call,
    Client,
    EndReason,
    Interrupted,
    Limits,
    Message,
    Sampling,
    TextDelta,
    TurnOptions,
)
from firstword.stream import ACKNOWLEDGE_EVERY
from tests.e2e.server import ServiceProcess
from tests.firstword import receptionist
from tests.firstword.receptionist import LINES, SYSTEM

GREEDY: dict[str, Any] = {"system": SYSTEM, "temperature": 0.0, "max_tokens": 40}


async def texts(call: Call, lines: list[str]) -> list[str]:
    return [(await call.ask(line)).text for line in lines]


async def test_the_deltas_add_up_to_what_the_report_says(service: ServiceProcess) -> None:
    async with Client(service.address) as client, client.call(**GREEDY, session_id="adds up", seed=7) as call:
        assert (call.opened.session_id, call.opened.seed) == ("adds up", 7)
        assert call.opened.used_tokens < call.opened.max_context_tokens
        turn = await call.final(LINES[0])
        deltas = [event async for event in turn if isinstance(event, TextDelta)]
    assert turn.report is not None
    assert "".join(delta.text for delta in deltas) == turn.text == turn.report.text == turn.history_text != ""
    assert (turn.report.reason, turn.report.source) == (EndReason.COMPLETED, AnswerSource.MODEL)
    assert turn.report.model == call.opened.model
    length = 0
    for delta in deltas:
        assert (delta.offset, delta.turn_id) == (length, turn.id)
        assert sum(span for span, _ in delta.spans) == len(delta.text)
        length += len(delta.text)
        assert all(end <= length for end in delta.clause_ends)
        assert turn.sent_at < delta.received_at
    assert sum(delta.completion_tokens for delta in deltas) <= turn.report.usage.completion_tokens
    assert deltas[0].since_commit_ms >= (turn.report.timings.first_token_ms or 0) > 0
    assert turn.report.drafting is not None
    assert turn.report.drafting.steps == sum(phase.steps for phase in turn.report.drafting.phases) > 0
    assert [event async for event in turn] == []


async def test_partials_change_no_word_and_spare_the_prefill(service: ServiceProcess) -> None:
    said: list[tuple[str, int]] = []
    async with Client(service.address) as client:
        for hypotheses in ([], ["hi", "hi is any", LINES[0]]):
            async with client.call(system=SYSTEM, temperature=0.8, seed=3, max_tokens=40) as call:
                await call.speech_started()
                for text in hypotheses:
                    await call.partial(text, stable_code_points=0)
                await asyncio.sleep(0.3 if hypotheses else 0)
                turn = await call.ask(LINES[0])
                assert turn.report is not None
                said.append((turn.text, turn.report.usage.prompt_tokens - turn.report.usage.cached_tokens))
    (without, computed_without), (with_partials, computed_with) = said
    assert without == with_partials != ""
    assert computed_with < computed_without


async def test_two_calls_at_once_say_what_each_says_alone(service: ServiceProcess) -> None:
    choices: list[dict[str, Any]] = [{"seed": seed, "temperature": 0.8, "max_tokens": 30} for seed in (1, 2)]
    lines = list(LINES[:3])

    async def hold(client: Client, choice: dict[str, Any]) -> list[str]:
        async with client.call(system=SYSTEM, **choice) as call:
            return await texts(call, lines)

    async with Client(service.address) as client:
        alone = [await hold(client, choice) for choice in choices]
        together = await asyncio.gather(*(hold(client, choice) for choice in choices))
    assert together == alone
    assert alone[0] != alone[1]


async def test_a_history_that_is_handed_over_is_the_one_that_was_held(service: ServiceProcess) -> None:
    async with Client(service.address) as client:
        async with client.call(**GREEDY) as held:
            first, second = await texts(held, list(LINES[:2]))
        items = [Message("user", LINES[0], item_id="asked"), Message("assistant", first, item_id="said")]
        async with client.call(**GREEDY, items=items) as told:
            assert told.opened.item_ids == ("asked", "said")
            assert await texts(told, list(LINES[1:2])) == [second]


async def test_a_final_overtakes_the_reply_in_progress(service: ServiceProcess) -> None:
    async with Client(service.address) as client, client.call(system=SYSTEM, max_tokens=200) as call:
        overtaken = await call.final(LINES[0])
        await anext(overtaken)
        await call.played(code_points=0)
        newer = await call.ask(LINES[1])
        events = [event async for event in overtaken]
        assert isinstance(events[-1], Interrupted)
        assert overtaken.report is not None
        assert overtaken.report.reason is EndReason.INTERRUPTED
        assert overtaken.history_text == "" != overtaken.text
        assert newer.report is not None
        assert call.turn is newer


async def test_the_agent_speaks_first_and_says_given_text(service: ServiceProcess) -> None:
    async with Client(service.address) as client, client.call(**GREEDY) as call:
        first = await (await call.respond()).run()
        assert first.report is not None
        given = await call.say("One moment, please.", item_id="phrase")
        assert given.text == given.history_text == "One moment, please."
        assert given.report is not None
        assert (given.report.source, given.report.item_ids) == (AnswerSource.GIVEN_TEXT, ("phrase",))
        assert given.report.drafting is None
        cut = await call.interrupt(heard_text="one moment")
        assert given.text.startswith(cut.text)
        assert 0 < len(cut.text) <= len("One moment")
        assert given.history_text == cut.text
        assert (await call.ask(LINES[0])).report is not None


async def test_sampling_of_the_call_and_of_one_turn(service: ServiceProcess) -> None:
    common = Sampling(temperature=0.5, top_p=0.9, stop=["never said"], seed=11)
    limits = Limits(max_turns=3)
    async with Client(service.address) as client:
        async with client.call(system=SYSTEM, sampling=common, temperature=0.0, max_tokens=5, limits=limits) as call:
            sampling = call.opened.sampling
            assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.0, 0.9, 5)
            assert (sampling.stop, call.opened.seed) == (("never said",), 11)
            assert call.opened.limits.max_turns == 3
            short = await call.ask(LINES[0])
            assert short.report is not None
            assert short.report.reason is EndReason.LENGTH
            longer = await call.ask(LINES[1], options=TurnOptions(Sampling(max_tokens=40), drafting_mode="plain"))
            assert longer.report is not None
            assert longer.report.usage.completion_tokens > 5 == short.report.usage.completion_tokens
            stop = longer.text[3:6]
        async with client.call(system=SYSTEM, temperature=0.0, items=[Message("user", LINES[1])], stop=[stop]) as call:
            assert stop not in (await (await call.respond()).run()).text


async def test_a_long_call_is_acknowledged(service: ServiceProcess, caplog: pytest.LogCaptureFixture) -> None:
    """More than the client acknowledges at a time; the service finds nothing wrong with it."""
    received = 0
    with caplog.at_level(logging.WARNING, "firstword"):
        async with Client(service.address) as client, client.call(**GREEDY) as call:
            for line in LINES:
                await call.partial(line)
                turn = await call.final(line, options=TurnOptions(drafting_mode="plain"))  # an event for each token
                received += len([event async for event in turn])
    assert received > 2 * ACKNOWLEDGE_EVERY
    assert [record for record in caplog.records if record.name.startswith("firstword")] == []
    assert list(call.records) == sorted(call.records)  # without a store that outlives the server all are kept
    assert call.records


async def test_calls_are_made_inside_the_client(service: ServiceProcess) -> None:
    client = Client(service.address)
    with pytest.raises(RuntimeError, match="async with"):
        client.call()
    async with client, client.call(tools=receptionist.tools()) as call:
        with pytest.raises(ValueError, match="no turn"):
            await call.interrupt()
