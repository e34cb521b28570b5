"""Edits of a call's history over a real socket."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from firstword import CallError, CallFailed, Client, HistoryCause, Message, Sampling, Tool, TurnOptions
from tests.e2e.server import ServiceProcess
from tests.firstword.receptionist import LINES, SYSTEM

SHORT = TurnOptions(Sampling(max_tokens=12))
OTHER = "You answer the phone for Bo's Bikes. Be short."


async def test_a_hand_off_and_a_view_of_the_clients_own(service: ServiceProcess) -> None:
    async with Client(service.address) as client:
        async with client.call(
            system=OTHER, seed=5, items=[Message("user", "Hi."), Message("assistant", "Hello.")]
        ) as c:
            wanted = await c.ask(LINES[0], options=SHORT)
        async with client.call(system=SYSTEM, seed=5) as call:
            turn = await call.final(LINES[0], options=SHORT)
            waiting = asyncio.create_task(call.update(system=OTHER, tools=[Tool("look", "Look.")]))
            await turn.run()
            change = await waiting
            assert change.cause is HistoryCause.UPDATE and len(change.item_ids) == 2
            assert change.history_version > call.opened.history_version
            change = await call.update(tools=[])
            assert change.kept_tokens > 0
            view = [Message("user", "Hi.", item_id="one"), Message("assistant", "Hello.", item_id="two")]
            change = await call.items(view, history_version=change.history_version)
            assert change.cause is HistoryCause.ITEMS and change.item_ids == ("one", "two")
            again = await call.items(view)
            assert again.history_version == change.history_version and again.kept_tokens == change.used_tokens
            with pytest.raises(CallError) as stale:
                await call.items([], history_version=1)
            assert stale.value.code is grpc.StatusCode.ABORTED and stale.value.reason == "STALE_HISTORY"
            with pytest.raises(CallError) as full:
                await call.update(system="word " * 3000)
            assert full.value.reason == "CONTEXT_FULL"
            assert (await call.ask(LINES[0], options=SHORT)).text == wanted.text


async def test_an_edit_of_a_call_that_is_over(service: ServiceProcess) -> None:
    async with Client(service.address) as client, client.call(system=SYSTEM) as call:
        await call.final(LINES[0])
        waiting = asyncio.create_task(call.update(system=OTHER))
        await asyncio.sleep(0)
        await call.close()
        with pytest.raises(CallFailed):
            await waiting
