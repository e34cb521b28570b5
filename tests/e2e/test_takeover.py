"""A server dies, leaves or freezes in the middle of a word, and whoever iterates over the turn does not notice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from firstword import Call, CallFailed, Client, Notice, TextDelta, Turn
from firstword.books import Books
from firstword.v1 import call_service_pb2 as call_pb
from tests.e2e.lines import Lines
from tests.e2e.pods import Pod, client_of, pods, serving
from tests.e2e.server import resume_with
from tests.firstword.receptionist import LINES, SYSTEM
from tests.service.store.valkey import Valkey, valkey

LONG = {"system": SYSTEM, "seed": 11, "temperature": 0.9, "max_tokens": 120}
LEASE_S = 2.0


@pytest.fixture(scope="module")
def store() -> Iterator[Valkey]:
    with valkey(persistent=True) as running:
        yield running


@pytest.fixture(scope="module")
def shared(store: Valkey) -> Iterator[list[Pod]]:
    settings = {
        "FIRSTWORD_STORE__URL": store.url,
        "FIRSTWORD_STORE__LEASE_S": str(LEASE_S),
        "FIRSTWORD_STORE__TRUST_AFTER_S": "0.2",
        "FIRSTWORD_SERVER__STOP_GRACE_S": "20",
    }
    with pods(2, settings) as made:
        yield made


@pytest.fixture
def two(shared: list[Pod]) -> Iterator[list[Pod]]:
    """Both there, whatever the test before has done to them."""
    yield shared
    for pod in shared:
        if pod.process.process.poll() is not None:
            pod.start_again()
            pod.wait_until_serving()


async def told(call: Call, line: str, *, after: int = -1, do: Callable[[], Any] = lambda: None) -> Turn:
    """A whole turn; ``do`` is done when so many deltas have come."""
    turn = await call.final(line)
    deltas = 0
    async for event in turn:
        if isinstance(event, TextDelta):
            deltas += 1
            if deltas == after:
                do()
    assert turn.report is not None
    assert turn.report.text == turn.text
    return turn


async def conversation(client: Client, *, after: int = -1, do: Callable[[Call], Any] = lambda call: None) -> list[str]:
    """Two turns, the first of which something is done in; and the whole history as the service has it."""
    async with client.call(**LONG) as call:
        first = await told(call, LINES[0], after=after, do=lambda: do(call))
        second = await told(call, LINES[1])
        assert after < 0 or call.resumes > 0
        assert second.report is not None
        return [first.text, second.text, str(second.report.used_tokens)]


async def test_a_server_is_killed_in_the_middle_of_a_word(two: list[Pod]) -> None:
    addresses = [pod.address for pod in two]
    async with client_of(addresses) as client:
        wanted = await conversation(client)
        found = await conversation(client, after=3, do=lambda call: serving(two, call.opened.session_id).kill())
    assert found == wanted


async def test_a_line_is_cut_and_the_warm_server_is_found_again(two: list[Pod]) -> None:
    """The next try may reach the other server, which names the one that is warm. Where a try broke off without an
    answer, that one begins a new generation of the call that it has.
    """
    lines = [Lines(), Lines()]
    for line, pod in zip(lines, two, strict=True):
        line.lead_to(pod.port)
    listening = [await line.listen() for line in lines]
    async with client_of([line.address for line in lines]) as client:
        wanted = await conversation(client)
        async with client.call(**LONG) as call:
            warm = serving(two, call.opened.session_id)
            turn = await call.final(LINES[0])
            deltas = 0
            async for event in turn:
                if isinstance(event, TextDelta):
                    deltas += 1
                    if deltas in (2, 5, 8):
                        for line in lines:
                            line.cut_all()
            assert turn.text == wanted[0]
            assert call.resumes >= 1
            assert serving(two, call.opened.session_id) is warm, "somebody took the call from a server that was there"
    for server in listening:
        server.close()


async def test_a_server_that_is_asked_to_leave_hands_its_calls_over(two: list[Pod]) -> None:
    notices: list[Notice] = []
    async with client_of([pod.address for pod in two]) as client:
        wanted = await conversation(client)
        async with client.call(**LONG, on_notice=lambda n: isinstance(n, Notice) and notices.append(n)) as call:
            leaving = serving(two, call.opened.session_id)
            first = await told(call, LINES[0], after=2, do=leaving.terminate)
            await asyncio.to_thread(leaving.process.process.wait, 20)
            assert leaving.process.process.returncode == 0
            second = await told(call, LINES[1])
            assert [first.text, second.text] == wanted[:2]
            assert call.resumes == 1
    (draining,) = [notice for notice in notices if notice.kind == "draining"]
    (other,) = [pod for pod in two if pod is not leaving]
    assert draining.details["successor_address"] == other.address


async def test_a_frozen_server_is_left_and_says_no_more(two: list[Pod]) -> None:
    async with client_of([pod.address for pod in two]) as client:
        wanted = await conversation(client)
        frozen: list[Pod] = []

        def freeze(call: Call) -> None:
            frozen.append(serving(two, call.opened.session_id))
            frozen[0].freeze()

        async with client.call(**LONG) as call:
            first = await told(call, LINES[0], after=3, do=lambda: freeze(call))
            assert call._stream.books.generation == 2
            await asyncio.sleep(LEASE_S)
            frozen[0].thaw()
            second = await told(call, LINES[1])
            assert [first.text, second.text] == wanted[:2]
            await asyncio.to_thread(frozen[0].process.wait_for, "call ended", session=call.opened.session_id)
            # Whichever it notices first when it wakes: that another has the call, that the client is gone, or that
            # the client has not taken an event for so long.
            assert frozen[0].events("call ended")[-1]["cause"] in ("MOVED", "closed", "CLIENT_NOT_READING")


async def test_the_store_is_away_and_then_the_server_dies(two: list[Pod], store: Valkey) -> None:
    notices: list[Notice] = []
    async with client_of([pod.address for pod in two]) as client:
        wanted = await conversation(client)
        async with client.call(**LONG, on_notice=lambda n: isinstance(n, Notice) and notices.append(n)) as call:
            store.kill()
            victim = serving(two, call.opened.session_id)
            returning: list[asyncio.Task[None]] = []

            async def come_back() -> None:
                await asyncio.sleep(1.0)
                await asyncio.to_thread(store.start)

            def both_gone() -> None:
                victim.kill()
                returning.append(asyncio.create_task(come_back()))

            first = await told(call, LINES[0], after=3, do=both_gone)
            second = await told(call, LINES[1])
            await returning[0]  # or the tests after this one would have no store
            assert [first.text, second.text] == wanted[:2]


async def test_without_any_store_the_client_holds_the_call() -> None:
    with pods(2) as two:
        async with client_of([pod.address for pod in two]) as client:
            wanted = await conversation(client)
            found = await conversation(client, after=3, do=lambda call: serving(two, call.opened.session_id).kill())
    assert found == wanted


# What is refused


async def test_a_token_or_a_record_that_was_changed_is_refused(two: list[Pod]) -> None:
    async with client_of([two[0].address]) as client, client.call(**LONG) as call:
        await told(call, LINES[0])
        books = Books()
        books.token, books.seq = b"x" + call.opened.resume_token, call._stream.books.seq
        assert await resume_with(two[1].address, books) is grpc.StatusCode.PERMISSION_DENIED
        books.token = call.opened.resume_token
        record = next(iter(call.records.values()), None) or b"forged"
        books.records[1] = record[:-1] + b"!"
        assert await resume_with(two[1].address, books) is grpc.StatusCode.PERMISSION_DENIED
        assert (await told(call, LINES[1])).report is not None


async def test_a_call_that_is_over_is_not_found(two: list[Pod]) -> None:
    async with client_of([two[0].address]) as client:
        async with client.call(**LONG) as call:
            pass
        books = Books()
        books.token, books.seq = call.opened.resume_token, 1
        status = None
        for _ in range(40):  # the store is told behind the call's back
            status = await resume_with(two[1].address, books)
            if status is grpc.StatusCode.NOT_FOUND:
                break
            await asyncio.sleep(0.5)
        assert status is grpc.StatusCode.NOT_FOUND


async def test_a_client_that_does_not_want_to_be_resumed(two: list[Pod]) -> None:
    async with client_of([two[0].address], resume_timeout_s=0.0) as client:
        with pytest.raises(CallFailed) as failed:
            async with client.call(**LONG) as call:
                await told(call, LINES[0], after=1, do=two[0].kill)
        assert failed.value.code is grpc.StatusCode.UNAVAILABLE


def test_what_is_not_known_of_an_event_does_not_break_the_books() -> None:
    books = Books()
    assert books.take(call_pb.CallResponse(generation=1, seq=1, record=b"a"))
    assert not books.take(call_pb.CallResponse(generation=1, seq=1, record=b"again"))
    assert books.take(call_pb.CallResponse(generation=2, seq=2))
    assert not books.take(call_pb.CallResponse(generation=1, seq=3, record=b"stale"))
    assert books.records == {1: b"a"}
