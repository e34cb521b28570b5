"""Servers die, leave and are cut off while a turn is read, and whoever reads it does not notice."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
import redis.asyncio

from firstword import Call, CallFailed, Client, Notice, Sampling, ServiceBusy, TextDelta, Turn
from firstword.books import RECORDS_LOST, Books
from firstword.line import Line
from firstword.stream import CallStream
from firstword.v1 import call_service_pb2 as call_pb
from firstword.v1 import call_service_pb2_grpc
from service import call_records, portions
from service.admission import Admission
from service.config import AdmissionConfig
from service.servicer import CallServicer
from service.signing import Signing
from service.telemetry import Telemetry, names
from tests.e2e.server import resume_with
from tests.firstword.receptionist import LINES, SYSTEM
from tests.service.calls import MODEL
from tests.service.pods import LocalPod, client_of, local_pods
from tests.service.recorded import Recorded
from tests.service.store.valkey import Valkey, valkey
from tests.service.waiting import Turns, until

LONG: dict[str, Any] = {"system": SYSTEM, "seed": 11, "temperature": 0.9, "max_tokens": 40}


@pytest.fixture
def store() -> Iterator[Valkey]:
    with valkey(persistent=True) as running:
        yield running


@pytest.fixture
async def two(store: Valkey) -> AsyncIterator[list[LocalPod]]:
    async with local_pods(2, store.url) as pods:
        yield pods


def holder(pods: list[LocalPod], call: Call) -> LocalPod:
    """The one that has the call, and serves it last."""
    held = [pod for pod in pods if call.opened.session_id in pod.sessions]
    return max(held, key=lambda pod: max(one.generation for one in pod.services.live.values()))  # type: ignore[union-attr]


async def told(call: Call, line: str, *, after: int = -1, do: Callable[[], Awaitable[Any]] | None = None) -> Turn:
    """A whole turn; ``do`` is done when so many deltas have come."""
    turn, deltas = await call.final(line), 0
    async for event in turn:
        if isinstance(event, TextDelta):
            deltas += 1
            if deltas == after and do is not None:
                await do()
    assert turn.report is not None
    assert turn.report.text == turn.text
    return turn


async def conversation(
    client: Client, *, after: int = -1, do: Callable[[Call], Awaitable[Any]] | None = None, **given: Any
) -> list[Any]:
    """Two turns, in the first of which something is done; and how many tokens the whole has in the end."""
    async with client.call(**LONG, **given) as call:
        first = await told(call, LINES[0], after=after, do=None if do is None else lambda: do(call))
        second = await told(call, LINES[1])
        assert second.report is not None
        return [first.text, second.text, second.report.used_tokens]


async def killed(pods: list[LocalPod], call: Call) -> None:
    if not any(call.opened.session_id in pod.sessions for pod in pods):
        return  # it is between two of them
    pod = holder(pods, call)
    await pod.kill()
    await pod.start()


async def test_a_server_is_killed_in_the_middle_of_a_word(two: list[LocalPod]) -> None:
    async with client_of(two) as client:
        wanted = await conversation(client)
        for after in (1, 4):
            assert await conversation(client, after=after, do=lambda call: killed(two, call)) == wanted


async def test_others_have_their_turn_while_records_are_read(
    two: list[LocalPod], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the store, and those that the client holds."""
    turns, read = Turns(), call_records.read

    def counted(signing: Signing, record: bytes) -> call_records.Record:
        turns.done(1)
        return read(signing, record)

    monkeypatch.setattr(call_records, "read", counted)
    monkeypatch.setattr(portions, "PORTION", 1)
    async with client_of(two) as client, client.call(**LONG) as call:
        await told(call, LINES[0])
        await told(call, LINES[1], after=1, do=lambda: killed(two, call))
        assert call.resumes > 0
    assert turns.most == 1
    turns.stop()


async def test_without_a_store_the_client_holds_the_call() -> None:
    async with local_pods(2) as two, client_of(two) as client:
        wanted = await conversation(client)
        assert await conversation(client, after=3, do=lambda call: killed(two, call)) == wanted


async def test_a_call_survives_all_its_servers(two: list[LocalPod]) -> None:
    """One after the other, at every delta of a reply."""
    async with client_of(two) as client:
        wanted = await conversation(client)
        async with client.call(**LONG) as call:
            turn, deltas = await call.final(LINES[0]), 0
            async for event in turn:
                if isinstance(event, TextDelta) and (deltas := deltas + 1) % 3 == 0:
                    await killed(two, call)
            assert turn.text == wanted[0]
            assert call.resumes >= 1  # a busy machine sends few deltas, and many tokens in each
            assert call._stream.books.generation > call.resumes


async def test_a_line_is_cut_and_the_warm_server_is_found_again(
    two: list[LocalPod], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next try may reach the other server, which names the one that is warm. A busy machine may have said all
    before the line is cut, or not have written yet who is warm.
    """
    monkeypatch.setattr("firstword.stream.WARM_TIMEOUT_S", 60.0)
    monkeypatch.setattr("firstword.stream.OPENED_TIMEOUT_S", 60.0)

    async def cut(call: Call) -> None:
        for pod in two:
            pod.lines.cut_all()

    async with client_of(two) as client:
        wanted = await conversation(client)
        for after in (1, 3, 5):
            found = list[tuple[int, int]]()
            while not any(resumes >= 1 and generation == 1 for resumes, generation in found):
                assert len(found) < 5, f"somebody took the call from a server that was there: {found}"
                async with client.call(**LONG) as call:
                    first = await told(call, LINES[0], after=after, do=lambda: cut(call))
                    assert first.text == wanted[0]
                    found.append((call.resumes, call._stream.books.generation))


async def test_a_server_that_leaves_hands_its_calls_over(two: list[LocalPod]) -> None:
    notices: list[Notice] = []
    leaving: list[asyncio.Task[None]] = []

    def note(notice: object) -> None:
        if isinstance(notice, Notice):
            notices.append(notice)

    async def leave(call: Call) -> None:
        leaving.append(asyncio.create_task(holder(two, call).leave()))

    async with client_of(two) as client:
        wanted = await conversation(client)
        async with client.call(**LONG, on_notice=note) as call:
            first = holder(two, call)
            (other,) = (pod for pod in two if pod is not first)
            assert [(await told(call, LINES[0], after=2, do=lambda: leave(call))).text] == wanted[:1]
            assert (await told(call, LINES[1])).text == wanted[1]
            await until(lambda: call.resumes == 1)  # some time after the turn in which it was told
            assert call.opened.session_id in other.sessions
            await leaving[0]
            await call.say("Goodbye.")
            assert call.resumes == 1
    (draining,) = [notice for notice in notices if notice.kind == "draining"]
    assert draining.details["successor_address"] == other.address


@pytest.mark.parametrize("resume_timeout_s", [60.0, 0.0])
async def test_a_servers_calls_go_to_all_the_others_and_not_at_once(
    store: Valkey, monkeypatch: pytest.MonkeyPatch, resume_timeout_s: float
) -> None:
    grace_s, left, move = 20.0, list[float](), CallStream._move

    def noted(self: CallStream, line: Line) -> None:
        left.append(time.monotonic())
        move(self, line)

    monkeypatch.setattr(CallStream, "_move", noted)

    async with (
        local_pods(3, store.url, sections={"server": {"stop_grace_s": grace_s}}) as (leaving, *others),
        client_of([leaving], resume_timeout_s=resume_timeout_s) as client,
        AsyncExitStack() as stack,
    ):
        calls = [await stack.enter_async_context(client.call(**LONG)) for _ in range(8)]
        began = time.monotonic()
        await leaving.leave()
        assert len(left) == 8 and left[-1] - left[0] > 1.0
        assert left[-1] - began < grace_s / 2
        await until(lambda: [len(pod.sessions) for pod in others] == [4, 4])
        assert len({(await call.ask(LINES[0])).text for call in calls}) == 1


async def test_the_store_is_away_and_then_the_server_dies(two: list[LocalPod], store: Valkey) -> None:
    async def both(call: Call) -> None:
        await killed(two, call)
        asyncio.get_running_loop().call_later(1.0, store.start)

    notices: list[str] = []
    async with client_of(two) as client:
        wanted = await conversation(client)
        async with client.call(**LONG, on_notice=lambda n: notices.append(getattr(n, "kind", ""))) as call:
            first = await told(call, LINES[0])
            await asyncio.to_thread(store.kill)
            second = await told(call, LINES[1], after=2, do=lambda: both(call))
            assert [first.text, second.text] == wanted[:2]


async def test_calls_are_told_whether_the_store_keeps_up(two: list[LocalPod], store: Valkey) -> None:
    durable: list[bool] = []

    def note(notice: object) -> None:
        if isinstance(notice, Notice) and notice.kind == "durability":
            durable.append(notice.details["durable"])

    async def safe() -> bool:
        await asyncio.sleep(0.3)
        await call.say("One moment.")
        return len(call.records) < 3

    async with client_of(two) as client, client.call(**LONG, on_notice=note) as call:
        await told(call, LINES[0])
        await until(safe)
        await asyncio.to_thread(store.kill)
        await call.say("Still there?")
        await until(lambda: durable[-1:] == [False])
        kept = len(call.records)
        await call.say("Yes, still there.")
        assert len(call.records) > kept
        await asyncio.to_thread(store.start)
        await until(lambda: durable[-1])


# What is refused


async def test_a_token_or_a_record_that_was_changed_is_refused(two: list[LocalPod]) -> None:
    async with client_of(two[:1]) as client, client.call(**LONG) as call:
        await told(call, LINES[0])
        books = Books()
        books.token, books.seq = b"x" + call.opened.resume_token, call._stream.books.seq
        assert await resume_with(two[1].address, books) is grpc.StatusCode.PERMISSION_DENIED
        books.token = call.opened.resume_token
        books.records[1] = b"forged.record"
        assert await resume_with(two[1].address, books) is grpc.StatusCode.PERMISSION_DENIED
        assert (await told(call, LINES[1])).report is not None
        assert call.resumes == 0


async def test_a_call_that_is_over_is_not_found(two: list[LocalPod]) -> None:
    async with client_of(two[:1]) as client:
        async with client.call(**LONG) as call:
            pass
        await until(lambda: not two[0].store.writer.pending)  # type: ignore[attr-defined]
        books = Books()
        books.token, books.seq = call.opened.resume_token, 1
        assert await resume_with(two[1].address, books) is grpc.StatusCode.NOT_FOUND


async def test_a_client_that_does_not_want_to_be_resumed(two: list[LocalPod]) -> None:
    async with client_of(two, resume_timeout_s=0.0) as client:
        with pytest.raises(CallFailed) as failed:
            async with client.call(**LONG) as call:
                await told(call, LINES[0], after=1, do=lambda: killed(two, call))
        assert failed.value.code is grpc.StatusCode.UNAVAILABLE


async def test_a_client_gives_up_where_nobody_answers(two: list[LocalPod]) -> None:
    async with client_of(two, resume_timeout_s=1.0) as client:
        with pytest.raises(CallFailed) as failed:
            async with client.call(**LONG) as call:
                for pod in two:
                    await pod.kill()
                await told(call, LINES[0])
        assert failed.value.code is grpc.StatusCode.UNAVAILABLE


async def test_a_call_is_kept_for_a_while_and_then_no_more(two: list[LocalPod]) -> None:
    """The pages of a call whose client does not come back are somebody else's."""
    async with client_of(two, resume_timeout_s=0.0) as client:
        call = client.call(**LONG)
        await call.__aenter__()
        pod = holder(two, call)
        (held,) = pod.services.live.values()  # type: ignore[union-attr]
        pod.lines.cut_all()
        await until(lambda: not held.attended)
        assert pod.sessions
        held.disconnect()
        assert not pod.sessions
        pod.engine.run()
        assert pod.engine.pages_in_use == 0


# What the client keeps


def test_what_was_sent_is_kept_until_a_later_record() -> None:
    books = Books()
    for event in ({"open": {}}, {"final": {"turn_id": 1}}, {"interrupt": {"turn_id": 1}}):
        books.number(**event)
    assert books.take(call_pb.CallResponse(generation=1, seq=1, client_seq=1, opened={"resume_token": {"token": b"t"}}))
    assert books.take(call_pb.CallResponse(generation=1, seq=2, client_seq=2, record=b"a"))
    again = books.resumed(call_pb.CallResponse(generation=2, seq=2, client_seq=1))
    assert [request.client_seq for request in again] == [2, 3]
    assert books.take(call_pb.CallResponse(generation=2, seq=3, client_seq=3, record=b"b"))
    again = books.resumed(call_pb.CallResponse(generation=3, seq=3, client_seq=2))
    assert [request.client_seq for request in again] == [3]
    with pytest.raises(CallFailed) as lost:
        books.resumed(call_pb.CallResponse(generation=4, seq=3, client_seq=1))
    assert (lost.value.code, lost.value.reason) == (grpc.StatusCode.DATA_LOSS, RECORDS_LOST)


def test_the_newest_hypothesis_is_sent_again_and_the_others_are_not() -> None:
    books = Books()
    books.number(open={})
    for revision in (1, 2, 3):
        books.number(partial={"turn_id": 1, "revision": revision, "text": "a" * revision})
    again = books.resumed(call_pb.CallResponse(generation=2, seq=1, client_seq=1))
    assert [request.partial.revision for request in again] == [3]
    again = books.resumed(call_pb.CallResponse(generation=2, seq=1, client_seq=9))
    assert [(request.client_seq, request.partial.revision) for request in again] == [(0, 3)]
    books.number(final={"turn_id": 1, "text": "aaa"})
    assert books.resumed(call_pb.CallResponse(generation=2, seq=1, client_seq=9)) == []


def test_what_an_old_server_says_and_what_is_said_twice_is_no_news() -> None:
    books = Books()
    assert books.take(call_pb.CallResponse(generation=1, seq=1, record=b"a"))
    assert not books.take(call_pb.CallResponse(generation=1, seq=1, record=b"again"))
    assert books.take(call_pb.CallResponse(generation=2, seq=2))
    assert not books.take(call_pb.CallResponse(generation=1, seq=3, record=b"stale"))
    assert books.records == {1: b"a"}
    first, second = (books.resume(take_over=False).open.resume for _ in range(2))
    assert (first.last_generation, second.last_generation, first.last_seq) == (2, 3, 2)
    books.refused()  # nobody took it up then
    assert books.resume(take_over=False).open.resume.last_generation == 3


async def test_a_call_that_is_back_is_not_ended_by_the_stream_that_it_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was to be written there when the line went silent is given up at last: it ends the old stream alone."""
    stuck, write, contexts = set[Any](), CallServicer._write, list[Any]()

    async def stuck_write(self: CallServicer, context: Any, envelope: Any) -> None:
        contexts.append(context)
        if context in stuck:  # as in a full window of a line that is dead
            await asyncio.Event().wait()
        await write(self, context, envelope)

    monkeypatch.setattr(CallServicer, "_write", stuck_write)
    soon = (("grpc.keepalive_time_ms", 1000), ("grpc.http2.ping_timeout_ms", 1000))
    async with (
        local_pods(1, sections={"server": {"unread_s": 5.0}}) as (pod,),
        Client(pod.address, options=soon) as client,
        client.call(**LONG) as call,
    ):

        async def silence() -> None:
            stuck.add(contexts[-1])
            pod.lines.silence_those_there_are()

        await told(call, LINES[0], after=2, do=silence)
        assert call.resumes == 1
        await asyncio.sleep(6.0)
        assert call.failure is None
        await told(call, LINES[1])
        assert call.resumes == 1


async def test_a_server_without_room_takes_no_call_from_the_one_that_is_warm(store: Valkey) -> None:
    """The client asks the full one now and then, for it cannot tell them apart, and stays where it is."""
    async with local_pods(2, store.url, lease_s=1.0) as (warm, full):
        full._servicer.admission = Admission(AdmissionConfig(max_calls=1), lambda: None, 16, Telemetry(MODEL))
        channels = [grpc.aio.insecure_channel(pod.address) for pod in (full, warm)]
        stubs = [call_service_pb2_grpc.CallServiceStub(channel) for channel in channels]
        async with (
            channels[0],
            channels[1],
            client_of([full]) as one,
            one.call(**LONG),
            client_of([warm]) as first,
            first.call(**LONG) as call,
        ):
            call._stream._dial = lambda address: rotating(stubs)
            for number in range(4):
                warm.lines.cut_all()
                await told(call, LINES[number % 2])
                assert call.opened.session_id not in full.sessions
            assert call.failure is None and call._stream.books.generation == 1


async def test_a_store_that_came_back_without_what_was_said_has_nothing_said_again(store: Valkey) -> None:
    """It had told that all was safe, so the client let go of it, and then the server dies too: the call has failed."""
    async with (
        local_pods(2, store.url, lease_s=6.0, trust_after_s=0.1) as two,
        client_of(two) as client,
        redis.asyncio.Redis.from_url(store.url) as stored,
        client.call(**LONG, progress_notices=True) as call,
    ):
        await told(call, LINES[0])
        for heard in ("My name", "My name is", "My name is John"):
            await asyncio.sleep(0.3)
            await call.partial(heard)
        await until(lambda: len(call._stream.books.records) <= 1)
        pod = holder(two, call)
        await pod._stop_working()
        (log,) = await stored.keys("firstword:*:log")
        seqs = sorted(map(int, await stored.hkeys(log)))
        await stored.hdel(log, *(seq for seq in seqs if seq > seqs[2]))
        await stored.hset(log[: -len("log")] + b"lease", "top", seqs[2])
        await pod.kill()
        with pytest.raises(CallFailed) as failed:
            await call.ask(LINES[1])
        assert failed.value.code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.DATA_LOSS)


async def test_a_server_that_leaves_costs_no_new_call_anything() -> None:
    """Calls are spread over all that the name has, and one of these is about to stop."""
    async with local_pods(2) as (leaving, staying), client_of([leaving, staying]) as client:
        leaving._servicer._draining = True
        for _ in range(6):
            async with client.call(**LONG) as call:
                assert call.opened.session_id in staying.sessions
        staying._servicer._draining = True
        with pytest.raises(ServiceBusy) as busy:
            async with client.call(**LONG):
                pass
        assert busy.value.reason == "DRAINING"


@pytest.mark.parametrize("told_first", [True, False])
async def test_a_call_that_comes_to_a_server_which_begins_to_leave_meanwhile_moves_on(
    two: list[LocalPod], monkeypatch: pytest.MonkeyPatch, told_first: bool
) -> None:
    """The others are told to leave while the store is asked for this one, or after it."""
    monkeypatch.setattr("firstword.stream.MOVED_WITHIN_S", 0.5)
    named: list[str] = []

    def note(notice: object) -> None:
        if isinstance(notice, Notice) and notice.kind == "draining":
            named.append(notice.details["successor_address"])

    async with client_of(two) as client:
        wanted = await conversation(client)
        async with client.call(**LONG, on_notice=note) as call:
            first = holder(two, call)
            (leaving,) = (pod for pod in two if pod is not first)
            assert (await told(call, LINES[0])).text == wanted[0]
            asked, answered = asyncio.Event(), asyncio.Event()
            take, successors = leaving.store.take, leaving.store.successors

            async def slow_take(*given: Any, insist: bool, **also: Any) -> Any:
                if insist:  # before that the client asks the one that was killed
                    asked.set()
                    if told_first:
                        await answered.wait()
                return await take(*given, insist=insist, **also)

            async def slow_successors() -> Iterator[str]:
                if not told_first:
                    await until(lambda: call.opened.session_id in leaving.sessions)
                found = await successors()
                asyncio.get_running_loop().call_later(0.1, answered.set)
                return found

            monkeypatch.setattr(leaving.store, "take", slow_take)
            monkeypatch.setattr(leaving.store, "successors", slow_successors)
            await first.kill()
            await asked.wait()
            await first.start()
            began = time.monotonic()
            await leaving.leave()
            assert time.monotonic() - began < 20.0
            await until(lambda: call.opened.session_id in first.sessions)
            assert named == [first.address]
            assert (await told(call, LINES[1])).text == wanted[1]
            assert call.resumes == 2


async def leaving_still(pod: LocalPod, call: Call, patch: pytest.MonkeyPatch) -> asyncio.Task[None]:
    """Have a server leave, and make nothing until the patch is undone. Returns when it is time for the call to move."""
    patch.setattr("firstword.stream.MOVED_WITHIN_S", 0.0)
    patch.setattr(pod.engine, "step", lambda: False)
    leaving = asyncio.create_task(pod.leave())
    await until(lambda: call._stream._due is not None and call._stream._due is call._stream._line)
    return leaving


async def test_a_call_that_has_left_a_server_that_goes_leaves_the_next_one_too(
    two: list[LocalPod], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first server's time is up while a reply of the second one is to be waited for."""
    async with client_of(two) as client, client.call(**LONG) as call:
        await told(call, LINES[0])
        left = call._stream._line
        await killed(two, call)
        await until(lambda: call.resumes == 1)
        turn = await call.final(LINES[1])
        with monkeypatch.context() as still:
            leaving = await leaving_still(holder(two, call), call, still)
            call._stream._come_due(left)
        await turn.run()
        await until(lambda: call.resumes == 2, 5.0)
        await leaving


async def test_a_call_whose_last_answer_is_to_a_side_question_leaves_at_once(
    two: list[LocalPod], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asked has not run yet when the answer is there, and nothing follows it."""
    async with client_of(two) as client, client.call(**LONG) as call:
        await told(call, LINES[0])
        question = asyncio.create_task(call.generate("What does the caller want?", sampling=Sampling(max_tokens=4)))
        await asyncio.sleep(0)
        with monkeypatch.context() as still:
            leaving = await leaving_still(holder(two, call), call, still)
        await question
        await until(lambda: call.resumes == 1, 3.0)
        await leaving


def rotating(stubs: list[Any]) -> Any:
    stubs.append(stubs.pop(0))
    return stubs[-1]


async def test_a_takeover_where_no_store_is_counts_as_one_without(recorded: Recorded) -> None:
    async with local_pods(2) as two, client_of(two) as client, client.call(**LONG) as call:
        await told(call, LINES[0])
        await killed(two, call)
        await told(call, LINES[1])
        points = recorded.metrics()[names.RESUMED]
        assert {point.attributes[names.RESUME] for point in points if point.value} == {"without_store"}


def counts(recorded: Recorded, name: str, by: str) -> dict[str, int]:
    return {point.attributes[by]: point.value for point in recorded.metrics()[name] if point.value}


async def test_a_call_that_a_server_has_no_pages_for_is_no_takeover(store: Valkey, recorded: Recorded) -> None:
    async with local_pods(2, store.url) as (pod, full), client_of([pod]) as client, client.call(**LONG) as call:
        await told(call, LINES[0])
        beat = dataclasses.replace(full.engine.beat, pages_total=1, host_pages=0)
        full._servicer.admission = Admission(AdmissionConfig(), lambda: beat, 16, Telemetry(MODEL))
        books = call._stream.books
        await pod.kill()
        assert await resume_with(full.address, books) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert counts(recorded, names.RESUME_REFUSED, names.ERROR)["PAGES_COMMITTED"] == 1
        assert not counts(recorded, names.RESUMED, names.RESUME) and full._servicer.admission.seats == 0
        await pod.start()
        assert (await told(call, LINES[1])).text


async def test_takeovers_are_counted_by_kind_and_refusals_by_reason(store: Valkey, recorded: Recorded) -> None:
    async with local_pods(2, store.url) as two, client_of(two) as client, client.call(**LONG) as call:
        await told(call, LINES[0])
        holder(two, call).lines.cut_all()
        await told(call, LINES[1])
        assert "taken_over" not in counts(recorded, names.RESUMED, names.RESUME)
        await killed(two, call)
        await told(call, LINES[1])
        found = counts(recorded, names.RESUMED, names.RESUME)
        assert found["here"] >= 1 and sum(found.values()) - found["here"] >= 1
        forged = Books()
        forged.token = b"x" + call.opened.resume_token
        assert await resume_with(two[0].address, forged) is grpc.StatusCode.PERMISSION_DENIED
        assert counts(recorded, names.RESUME_REFUSED, names.ERROR)["FORGED"] == 1
