"""Calls that are given one name, one after the other or at once, at servers that share a store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
import redis.asyncio

from firstword import CallFailed
from firstword.books import Books
from service.problems import Reason
from service.store import CallKey, Taken
from tests.e2e.server import resume_with
from tests.firstword.receptionist import LINES
from tests.service.pods import LocalPod, client_of, local_pods
from tests.service.store.valkey import Valkey, valkey
from tests.service.test_takeover import LONG, killed, told
from tests.service.waiting import until

ANNA = {**LONG, "session_id": "anna"}


@pytest.fixture
def store() -> Iterator[Valkey]:
    with valkey(persistent=True) as running:
        yield running


@pytest.fixture
async def two(store: Valkey) -> AsyncIterator[list[LocalPod]]:
    async with local_pods(2, store.url, trust_after_s=60.0) as pods:
        yield pods


async def test_a_client_of_an_earlier_call_takes_nothing_of_a_later_one(two: list[LocalPod]) -> None:
    """It is told that its call is over, and the later one goes on, also from what the store has of it."""
    async with client_of(two[:1]) as one, client_of(two[1:]) as other:
        stale = Books()
        async with one.call(**ANNA) as call:
            wanted = [(await told(call, line)).text for line in LINES[:2]]
            stale.token, stale.seq, stale.generation = call.opened.resume_token, 1, 1
        await until(lambda: not two[0].store.writer.pending)  # type: ignore[attr-defined]
        async with other.call(**ANNA) as call:
            first = await told(call, LINES[0])
            assert await resume_with(two[0].address, stale) is grpc.StatusCode.NOT_FOUND
            second = await told(call, LINES[1], after=3, do=lambda: killed(two[1:], call))
            assert [first.text, second.text] == wanted


async def test_a_second_call_of_a_name_leaves_one_alone_that_was_taken_over(two: list[LocalPod]) -> None:
    async with client_of(two[:1]) as one, client_of(two[1:]) as other, one.call(**ANNA) as call:
        await told(call, LINES[0], after=2, do=lambda: killed(two[:1], call))
        assert call._stream.books.generation > 1
        with pytest.raises(CallFailed) as refused:
            async with other.call(**ANNA) as second:
                await until(lambda: second.failure is not None)
                await second.ask(LINES[0])
        assert refused.value.reason == Reason.SESSION_EXISTS.value
        resumes = call.resumes
        assert (await told(call, LINES[1])).text
        assert call.resumes == resumes and call.failure is None


async def test_the_name_of_a_call_of_which_nothing_is_known_is_free(two: list[LocalPod], store: Valkey) -> None:
    """Though its client has asked for it, here and there."""
    async with client_of(two[:1], resume_timeout_s=0.0) as one, client_of(two[1:]) as other:
        lost = one.call(**ANNA)
        await lost.__aenter__()
        await until(lambda: not two[0].store.writer.pending)  # type: ignore[attr-defined]
        await two[0].kill()
        async with redis.asyncio.Redis.from_url(store.url) as stored:
            await stored.flushall()
        await two[0].start()
        lost._stream.books.records.clear()
        for pod in (two[1], two[0]):
            assert await resume_with(pod.address, lost._stream.books) is grpc.StatusCode.NOT_FOUND
        async with other.call(**ANNA) as call:
            await told(call, LINES[0])
            await until(lambda: not two[1].store.writer.pending)  # type: ignore[attr-defined]
            assert call.failure is None and call.resumes == 0


async def test_the_name_of_a_call_whose_server_is_gone_is_not_given_away(store: Valkey) -> None:
    """For its client may be on its way to another server; and one that opens it anew takes another name."""
    async with (
        local_pods(2, store.url, lease_s=0.6) as two,
        client_of(two[:1], resume_timeout_s=0.0) as one,
        client_of(two[1:]) as other,
        redis.asyncio.Redis.from_url(store.url) as stored,
    ):
        early = one.call(**ANNA)
        await early.__aenter__()
        await until(lambda: not two[0].store.writer.pending)  # type: ignore[attr-defined]
        await two[0].kill()

        async def is_gone() -> bool:
            return len(await stored.keys("firstword:pod:*")) == 1

        await until(is_gone)
        with pytest.raises(CallFailed) as refused:
            async with other.call(**ANNA) as second:
                await until(lambda: second.failure is not None)
                await second.ask(LINES[0])
        assert refused.value.reason == Reason.SESSION_EXISTS.value
        async with other.call(**LONG) as third:
            await told(third, LINES[0])
        found = await two[1].store.take(CallKey("", "anna"), 2, early._stream.books.seq, insist=True)
        assert isinstance(found, Taken) and found.records


async def test_a_client_is_not_sent_to_a_server_that_could_not_go_on_with_its_call(
    two: list[LocalPod], store: Valkey
) -> None:
    async with (
        local_pods(1, store.url) as (third,),
        client_of([third], resume_timeout_s=0.0) as client,
    ):
        early = client.call(**ANNA)
        await early.__aenter__()
        await until(lambda: not third.store.writer.pending)  # type: ignore[attr-defined]
        await third.kill()
        able, books = two[0].services, early._stream.books
        assert able is not None
        two[0]._servicer.services = replace(able, model="another one")
        assert await resume_with(two[0].address, books) is grpc.StatusCode.INVALID_ARGUMENT
        two[0]._servicer.services = able
        assert isinstance(await two[1].store.take(CallKey("", "anna"), 9, books.seq, insist=False), Taken)


async def test_a_silent_call_that_the_store_lost_is_its_new_servers_there_too(
    two: list[LocalPod], store: Valkey
) -> None:
    """Which had it from its client's records; another call of its name, opened elsewhere, does not get its place."""
    async with client_of(two[:1]) as one, client_of(two[1:]) as other, one.call(**ANNA) as call:
        await told(call, LINES[0])
        await until(lambda: not two[0].store.writer.pending)  # type: ignore[attr-defined]
        async with redis.asyncio.Redis.from_url(store.url) as stored:
            await two[0].kill()
            await stored.flushall()
            await two[0].start()
            await until(lambda: call.resumes > 0)
            await until(lambda: not two[0].store.writer.pending)  # type: ignore[attr-defined]
            assert len(await stored.keys("firstword:{*")) == 2
        with pytest.raises(CallFailed) as refused:
            async with other.call(**ANNA) as second:
                await until(lambda: second.failure is not None)
                await second.ask(LINES[0])
        assert refused.value.reason == Reason.SESSION_EXISTS.value
        assert (await told(call, LINES[1])).text and call.failure is None


async def test_a_call_that_is_opened_while_an_earlier_one_is_asked_for_is_left_alone(
    two: list[LocalPod], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, asked, opened = two[0].store, asyncio.Event(), asyncio.Event()
    take = store.take

    async def slow(*given: Any, **named: Any) -> Any:
        found = await take(*given, **named)
        asked.set()
        await opened.wait()
        return found

    monkeypatch.setattr(store, "take", slow)
    async with client_of(two[:1]) as one, client_of(two[1:], resume_timeout_s=0.0) as other:
        early = other.call(**ANNA)
        await early.__aenter__()
        await until(lambda: not two[1].store.writer.pending)  # type: ignore[attr-defined]
        stale = early._stream.books
        await two[1].kill()
        resuming = asyncio.create_task(resume_with(two[0].address, stale))
        await asked.wait()
        async with one.call(**ANNA) as call:
            opened.set()
            assert await resuming is grpc.StatusCode.NOT_FOUND
            assert (await told(call, LINES[0])).text
            assert call.resumes == 0
