"""A caller who is heard by LiveKit's own pipeline: partials, replies that are made ahead, and second thoughts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from livekit.agents import Agent, AgentSession

from firstword import Client
from firstword.livekit import LLM
from tests.e2e.server import ServiceProcess
from tests.firstword.receptionist import LINES, SYSTEM
from tests.livekit.agents import GREEDY, model, said, texts, until
from tests.livekit.recogniser import Kind, Recogniser, Silence


@asynccontextmanager
async def heard(llm: LLM) -> AsyncIterator[tuple[AgentSession[None], Recogniser]]:
    """A session whose caller's turns end where the recogniser says so."""
    recogniser = Recogniser()
    handling = {"turn_detection": "stt", "endpointing": {"min_delay": 0.0, "max_delay": 0.0}}
    async with AgentSession[None](llm=llm, stt=recogniser, vad=None, turn_handling=handling) as session:  # type: ignore
        llm.attach(session)
        session.input.audio = Silence()
        await session.start(Agent(instructions=SYSTEM), record=False)
        yield session, recogniser


def turns(llm: LLM) -> int:
    """How many replies were asked of the session's call."""
    turn = llm._conversation.turn
    return 0 if turn is None else turn.id


async def test_what_is_heard_is_prefilled_before_the_turn_is_complete(service: ServiceProcess) -> None:
    wanted = await said(service.address, LINES[0], system=SYSTEM)
    async with model(service.address) as llm, heard(llm) as (session, recogniser):
        recogniser.hear(Kind.START_OF_SPEECH)
        recogniser.hear(Kind.INTERIM_TRANSCRIPT, LINES[0])
        await asyncio.sleep(1.0)
        recogniser.hear(Kind.FINAL_TRANSCRIPT, LINES[0])
        recogniser.hear(Kind.END_OF_SPEECH)
        await until(lambda: len(texts(session)) == 2)
        assert texts(session) == [("user", LINES[0]), ("assistant", wanted)]
        turn = llm._conversation.turn
        assert turn is not None and turn.report is not None
        assert turn.report.usage.prefilled_ahead_tokens > len(LINES[0].split())


async def test_a_reply_made_ahead_is_taken_and_stays_warm(service: ServiceProcess) -> None:
    """The final transcript differs in case and punctuation: LiveKit takes the reply, and it stays as it was."""
    eager = LINES[0].rstrip(".!?").lower()
    async with Client(service.address) as client, client.call(system=SYSTEM, **GREEDY) as call:
        first, second = await call.ask(eager), await call.ask(LINES[1])
    wanted = first.text
    async with model(service.address) as llm, heard(llm) as (session, recogniser):
        recogniser.hear(Kind.START_OF_SPEECH)
        recogniser.hear(Kind.PREFLIGHT_TRANSCRIPT, eager)
        await until(lambda: turns(llm) == 1)
        made = llm._conversation.turn
        assert made is not None
        await until(lambda: made.report is not None and not llm._conversation.replying)
        recogniser.hear(Kind.FINAL_TRANSCRIPT, LINES[0])
        recogniser.hear(Kind.END_OF_SPEECH)
        await until(lambda: len(texts(session)) == 2)
        assert texts(session) == [("user", LINES[0]), ("assistant", wanted)]
        assert turns(llm) == 1
        await session.run(user_input=LINES[1])
        assert texts(session)[-1] == ("assistant", second.text)
        turn = llm._conversation.turn
        assert turn is not None and turn.id == 2 and turn.report and made.report and first.report and second.report
        changes = turn.report.history_version - made.report.history_version
        assert changes == second.report.history_version - first.report.history_version  # nothing was edited


async def test_a_reply_made_ahead_that_is_dropped_leaves_nothing(service: ServiceProcess) -> None:
    wanted = await said(service.address, LINES[0], system=SYSTEM)
    begin = " ".join(LINES[0].split()[:4])
    async with model(service.address) as llm, heard(llm) as (session, recogniser):
        recogniser.hear(Kind.START_OF_SPEECH)
        recogniser.hear(Kind.PREFLIGHT_TRANSCRIPT, begin)
        await until(lambda: turns(llm) == 1)
        await until(lambda: not llm._conversation.replying)
        recogniser.hear(Kind.INTERIM_TRANSCRIPT, LINES[0])
        await until(lambda: llm._conversation.turn is None)  # what is heard is prefilled behind the history without it
        recogniser.hear(Kind.PREFLIGHT_TRANSCRIPT, LINES[0])
        recogniser.hear(Kind.FINAL_TRANSCRIPT, LINES[0])
        recogniser.hear(Kind.END_OF_SPEECH)
        await until(lambda: len(texts(session)) == 2)
        assert texts(session) == [("user", LINES[0]), ("assistant", wanted)]
