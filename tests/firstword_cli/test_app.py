"""The live view through its pilot, on the real service."""

from __future__ import annotations

import asyncio
import html
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Static

from firstword import Client
from firstword.talk.app import TalkApp, call_of
from firstword.talk.front_desk import FrontDesk
from firstword.talk.hearing import Hearing
from firstword.talk.picture import draw
from firstword.talk.script import Script
from firstword.talk.view import TO_COME, TurnRow
from tests.e2e.server import ServiceProcess

FAST = 2000.0
SLOW = 0.1
"""Characters spoken a second: none to wait for, and none that a test will wait for."""


@asynccontextmanager
async def talking(
    service: ServiceProcess, script: Script, rate: float, seed: int = 1
) -> AsyncIterator[tuple[TalkApp, Pilot[None]]]:
    async with (
        Client(service.address, resume_timeout_s=2.0) as client,
        call_of(client, script, hearing := Hearing(), temperature=0.0, seed=seed) as call,
    ):
        app = TalkApp(call, script, rate, hearing)
        async with app.run_test(size=(120, 40)) as pilot:
            yield app, pilot


async def until(pilot: Pilot[None], done: Callable[[], bool]) -> None:
    for _ in range(600):
        if done():
            return
        await pilot.pause(0.05)
    raise AssertionError("it does not come to that")


async def enter(pilot: Pilot[None], text: str) -> None:
    """Type it key by key, and Enter."""
    await pilot.press(*(("space" if key == " " else key) for key in text), "enter")


async def say(app: TalkApp, pilot: Pilot[None], text: str) -> TurnRow:
    """A whole turn; its row, when the reply is there."""
    before = app.row
    await enter(pilot, text)
    await until(pilot, lambda: app.row is not before and app.row is not None and made(app.row))
    assert app.row is not None
    return app.row


def rows(app: TalkApp) -> list[TurnRow]:
    return list(app.query(TurnRow))


def drawn(row: TurnRow) -> set[str]:
    """Styles of the reply as it stands on the screen."""
    column = row.query_one(".said", Static).content.columns[1]
    return {str(span.style) for cell in column.cells for span in cell.spans}


def made(row: TurnRow) -> bool:
    return row.exchange.turn is not None and row.exchange.turn.over


def asked(app: TalkApp) -> bool:
    """The user is to type what a tool gives."""
    return app.query_one(Input).placeholder.endswith(") gives")


async def test_what_is_typed_is_answered(service: ServiceProcess, script: Script) -> None:
    async with talking(service, script, FAST) as (app, pilot):
        app.query_one(Input).value = "what about parking"
        await pilot.pause(1.0)  # for its hypothesis to be sent, and computed
        row = await say(app, pilot, "")
        assert row.exchange.line == "what about parking"
        assert row.exchange.text
        assert row.exchange.first_text_ms is not None
        assert app.query_one(Input).value == ""
        await until(pilot, lambda: not row.live)
        await pilot.pause(0.2)
        assert TO_COME not in drawn(row)
        assert row.exchange.held is None
        report = row.exchange.turn.report if row.exchange.turn else None
        assert report is not None
        assert report.usage.cached_tokens >= report.usage.prompt_tokens - 1  # the last one too where a reply was begun
        svg = app.svg()
        assert svg.startswith("<svg")
        assert "parking" in svg
        assert rows(app) == [row]


async def test_enter_while_a_reply_is_spoken_cuts_it_to_what_was_heard(service: ServiceProcess, script: Script) -> None:
    async with talking(service, script, 6.0) as (app, pilot):
        first = await say(app, pilot, script.lines[0])
        await until(pilot, lambda: first.heard >= 12)
        assert first.live
        assert TO_COME in drawn(first)
        second = await say(app, pilot, "stop")
        held, text = first.exchange.held, first.exchange.text
        assert held
        assert text.startswith(held)
        assert len(held) < len(text)
        assert second is not first
        assert second.exchange.text
        assert "spoken&#160;over" in app.svg()


async def test_escape_cuts_a_reply_that_nobody_heard_to_nothing(service: ServiceProcess, script: Script) -> None:
    async with talking(service, script, SLOW) as (app, pilot):
        row = await say(app, pilot, script.lines[0])
        await pilot.press("escape")
        await until(pilot, lambda: row.exchange.held is not None)
        assert row.exchange.held == ""
        assert not row.live
        await pilot.press("escape")  # nothing is being said
        again = await say(app, pilot, script.lines[0])
        assert again.exchange.text
        assert again.exchange.held is None


async def test_finals_on_each_others_heels_all_become_turns(service: ServiceProcess, script: Script) -> None:
    async with talking(service, script, FAST) as (app, pilot):
        for line in script.lines[:3]:
            app.query_one(Input).value = line
            await pilot.press("enter")
        await until(pilot, lambda: len(rows(app)) == 3 and all(made(row) for row in rows(app)))
        assert [row.exchange.line for row in rows(app)] == list(script.lines[:3])
        # So small a model, cut short wherever the caller happened to speak, may go on with a call that is none.
        assert {row.exchange.problem.partition(":")[0] for row in rows(app)} <= {"", "MALFORMED_TOOL_CALL"}
        assert all(row.exchange.turn is not None for row in rows(app))


async def test_a_tool_that_the_front_desk_does_not_know_is_answered_by_hand(
    service: ServiceProcess, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FrontDesk, "answer", lambda self, name: None)
    async with talking(service, script, FAST) as (app, pilot):
        for count, line in enumerate(script.lines, 1):
            app.query_one(Input).value = line
            await pilot.press("enter")
            await until(pilot, lambda: len(rows(app)) == count and (made(rows(app)[-1]) or asked(app)))  # noqa: B023
            if asked(app):
                break
        row = rows(app)[-1]
        assert row.exchange.tools[0].output is None
        await enter(pilot, '{"ok": true}')
        await until(pilot, lambda: made(row))
        assert row.exchange.tools[0].output == '{"ok": true}'
        assert not asked(app)


async def test_f2_saves_a_picture(
    service: ServiceProcess, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with talking(service, script, FAST) as (_, pilot):
        await pilot.press("f2")
        await pilot.pause()
    (picture,) = await asyncio.to_thread(lambda: list(tmp_path.glob("firstword-*.svg")))
    assert "<svg" in await asyncio.to_thread(picture.read_text)


async def test_a_call_that_breaks_is_said_and_takes_no_more(script: Script) -> None:
    with ServiceProcess({"FIRSTWORD_SERVER__STOP_GRACE_S": "0"}) as service:
        async with talking(service, script, FAST) as (app, pilot):
            service.process.kill()
            field = app.query_one(Input)
            await until(pilot, lambda: field.disabled)
            assert "the call is over" in field.placeholder


async def test_the_picture_of_a_recorded_call_shows_an_interruption(
    service: ServiceProcess, script: Script, tmp_path: Path
) -> None:
    path = tmp_path / "docs" / "conversation.svg"
    await draw(service.address, script, path)
    svg = await asyncio.to_thread(path.read_text)
    assert svg.startswith("<svg")
    assert "spoken&#160;over" in svg
    assert "text&#160;" in svg
    for line in script.lines[:5]:
        assert html.escape(line.split()[0]) in svg


def heard(app: TalkApp) -> str:
    return str(app.query_one("#hearing", Static).content)


async def test_what_is_typed_is_heard_and_a_pause_has_it_answered_ahead(service: ServiceProcess) -> None:
    async with talking(service, Script(system="You answer the phone."), FAST) as (app, pilot):
        await pilot.press(*"hello")
        await until(pilot, lambda: "heard: " in heard(app))
        await until(pilot, lambda: "made ahead: started" in heard(app))
        await pilot.press("space", *"you")
        await until(pilot, lambda: "made ahead: resumed" in heard(app))
        await until(pilot, lambda: "made ahead: started" in heard(app))
        await pilot.press("enter")
        await until(pilot, lambda: app.row is not None and made(app.row))
        assert app.row is not None and app.row.exchange.turn is not None
        report = app.row.exchange.turn.report
        assert report is not None and report.answered_ahead and report.usage.wasted_ahead_tokens > 0
        assert "made ahead: released" in heard(app)
