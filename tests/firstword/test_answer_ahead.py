"""Replies made ahead, over a real socket: held until they are asked for, and the same as without."""

from __future__ import annotations

import asyncio

from firstword import AnswerAhead, CallError, Client, Notice, Sampling, TurnOptions
from tests.e2e.server import ServiceProcess
from tests.firstword.receptionist import LINES, SYSTEM

SHORT = TurnOptions(sampling=Sampling(max_tokens=16))


async def test_a_reply_made_ahead_is_released_by_its_final(service: ServiceProcess) -> None:
    told: list[Notice | CallError] = []
    done = asyncio.Event()

    def on_notice(notice: Notice | CallError) -> None:
        told.append(notice)
        done.set()

    async with Client(service.address) as client:
        async with client.call(system=SYSTEM, seed=3) as call:
            plain = await call.ask(LINES[0], options=SHORT)
        assert plain.report is not None and not plain.report.answered_ahead
        async with client.call(
            system=SYSTEM,
            seed=3,
            answer_ahead=AnswerAhead(normalised=True, max_held_ms=60_000),
            progress_notices=True,
            on_notice=on_notice,
        ) as call:
            await call.partial(LINES[0][:9])
            await asyncio.wait_for(done.wait(), 10)
            await call.eager_end_of_turn(LINES[0][:12])
            await call.turn_resumed()
            await call.eager_end_of_turn(LINES[0], options=SHORT)
            turn = await call.ask(LINES[0].upper(), options=SHORT)
            second = await call.ask(LINES[1], options=SHORT)
    assert turn.text == plain.text and turn.report is not None
    assert turn.report.answered_ahead and turn.report.text == plain.report.text
    usage, timings = turn.report.usage, turn.report.timings
    assert 0 < usage.prefilled_ahead_tokens <= usage.cached_tokens <= usage.prompt_tokens
    assert timings.first_token_ms is not None and timings.total_ms >= timings.first_token_ms >= 0
    assert second.report is not None and not second.report.answered_ahead
    kinds = [(notice.kind, notice.turn_id) for notice in told if isinstance(notice, Notice)]
    assert kinds[0] == ("prefilled_ahead", 1) and ("answer_ahead", 1) in kinds
    states = [
        notice.details["state"] for notice in told if isinstance(notice, Notice) and notice.kind == "answer_ahead"
    ]
    assert states == ["started", "resumed", "started", "released"]
