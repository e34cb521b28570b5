"""The store against a real server: what is written is there, whoever dies; and who lost a call writes no more."""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import Any

import pytest
import redis.asyncio

from service.portions import PORTION
from service.store import (
    AesGcm,
    CallKey,
    CallLog,
    Elsewhere,
    MemoryStore,
    Ownership,
    Pod,
    RedisOptions,
    RedisStore,
    Store,
    StoreUnavailable,
    Superseded,
    Taken,
    new_pod_id,
    parking,
    pipelines,
    scripts,
)
from service.store.directory import spread
from service.store.log import WriteBehind
from service.store.naming import Naming
from tests.service.store.valkey import Valkey, slow_proxy, valkey
from tests.service.waiting import Turns, until

KEY = CallKey("", "call-1")


@pytest.fixture
def server() -> Iterator[Valkey]:
    with valkey() as running:
        yield running


@dataclass
class Told:
    """What a call is told by the store."""

    lost: list[bool] = field(default_factory=list)
    durable: list[bool] = field(default_factory=list)
    checkpoints: Iterator[int] = field(default_factory=lambda: count())
    at: int = 0

    def checkpoint(self) -> tuple[int, bytes]:
        next(self.checkpoints)
        return self.at, b"whole %d" % self.at

    def ownership(
        self, generation: int = 1, base: int = 0, stored: int = 0, caller: str = "", opened_at: float = 0.0
    ) -> Ownership:
        told = self.checkpoint, self.lost.append, self.durable.append
        return Ownership(generation, base, stored, caller, *told, opened_at)


def index(caller: str) -> bytes:
    """The end of the name of a caller's index."""
    return Naming((b"k",)).callers("", caller).rpartition(":")[2].encode()


class Pods:
    """Stores of several pods on one server."""

    def __init__(self, url: str, **options: Any) -> None:
        self._url = url
        self._options = {
            "timeout_s": 0.5,
            "lease_s": 0.6,
            "retention_s": 60.0,
            "trust_after_s": 0.0,
            "name_keys": (b"k",),
            **options,
        }
        self._stack = AsyncExitStack()

    async def pod(
        self,
        address: str = "",
        *,
        keys: tuple[str, ...] = (),
        load: tuple[int, int] = (0, 8),
        tenants: Mapping[str, int] | None = None,
    ) -> RedisStore:
        pod = Pod(new_pod_id(), address, lambda: load, lambda: tenants or {})
        store = RedisStore(RedisOptions(self._url, **self._options), pod, AesGcm(keys))
        await store.start()
        self._stack.push_async_callback(store.stop, 0.0)
        return store

    async def __aenter__(self) -> Pods:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()


async def written(log: CallLog, seq: int) -> None:
    await until(lambda: log.durable_seq >= seq)


GENERATIONS = count(2)


async def taken(store: RedisStore, last_seq: int = 1000) -> Taken:
    """Take the call over, above whoever has it."""
    found = await store.take(KEY, next(GENERATIONS), last_seq, insist=True)
    assert isinstance(found, Taken)
    return found


def fill(log: CallLog, seqs: range) -> dict[int, bytes]:
    records = {seq: b"record %d" % seq for seq in seqs}
    for seq, record in records.items():
        log.append(seq, record)
    return records


async def begun(store: RedisStore, told: Told, key: CallKey = KEY) -> CallLog:
    """A call of which two records are written."""
    log = store.begin(key, told.ownership())
    fill(log, range(1, 3))
    await written(log, 2)
    return log


async def test_another_pod_finds_what_was_written(server: Valkey) -> None:
    async with Pods(server.url) as pods:
        one, other = await pods.pod(), await pods.pod()
        log = one.begin(KEY, Told().ownership())
        records = fill(log, range(1, 200))
        await written(log, 199)
        assert (await taken(other)).records == records


async def test_others_have_their_turn_while_a_long_call_is_taken_over(
    server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Pods(server.url) as pods:
        one, other, turns = await pods.pod(), await pods.pod(), Turns()
        sealer, unseal = other._sealer, other._sealer.unseal

        def counted(stored: bytes, place: bytes) -> bytes:
            turns.done(1)
            return unseal(stored, place)

        monkeypatch.setattr(sealer, "unseal", counted)
        log = one.begin(KEY, Told().ownership())
        records = fill(log, range(1, 200))
        await written(log, 199)
        assert (await taken(other)).records == records
        assert 0 < turns.most <= PORTION
        turns.stop()


async def test_what_the_client_has_not_received_is_void(server: Valkey) -> None:
    async with Pods(server.url) as pods:
        one, other = await pods.pod(), await pods.pod()
        log = one.begin(KEY, Told().ownership())
        records = fill(log, range(1, 10))
        await written(log, 9)
        first = await taken(other, last_seq=6)
        assert first.records == {seq: records[seq] for seq in range(1, 7)}
        again = other.begin(KEY, Told().ownership(first.generation, 6, 6))
        again.append(7, b"another seven")
        await written(again, 7)
        assert (await taken(one)).records == {**first.records, 7: b"another seven"}


async def test_a_request_that_comes_late_takes_nothing(server: Valkey) -> None:
    """A server that was frozen does at last what its client has long asked of another one."""
    async with Pods(server.url) as pods:
        one, other, late, told = await pods.pod(), await pods.pod(), await pods.pod(), Told()
        log = one.begin(KEY, Told().ownership())
        records = fill(log, range(1, 4))
        await written(log, 3)
        assert isinstance(await other.take(KEY, 3, 3, insist=True), Taken)
        again = other.begin(KEY, told.ownership(3, 3, 3))
        for generation in (2, 3):
            assert await late.take(KEY, generation, 2, insist=True) == Superseded(3)
        records |= fill(again, range(4, 6))
        await written(again, 5)
        assert not told.lost
        assert await late.take(KEY, 4, 5, insist=True) == Taken(4, records)


async def test_an_old_generation_is_refused_and_told(server: Valkey) -> None:
    async with Pods(server.url) as pods:
        one, other, told = await pods.pod(), await pods.pod(), Told()
        log = one.begin(KEY, told.ownership())
        records = fill(log, range(1, 4))
        await written(log, 3)
        second = await taken(other, last_seq=3)
        log.append(4, b"from the dead")
        await until(lambda: bool(told.lost))
        assert told.lost == [True]
        assert log.durable_seq == 0
        log.append(5, b"from the dead")
        await asyncio.sleep(0.1)
        assert (await taken(one)).records == records
        assert second.generation > 1


async def test_a_pod_that_writes_nothing_learns_that_it_lost_the_call(server: Valkey) -> None:
    async with Pods(server.url) as pods:
        one, other, told = await pods.pod(), await pods.pod(), Told()
        log = one.begin(KEY, told.ownership())
        fill(log, range(1, 2))
        await written(log, 1)
        await taken(other)
        await until(lambda: bool(told.lost))


async def test_two_calls_of_one_name(server: Valkey) -> None:
    """Neither knows of the other when it begins; the second one is told, and the first goes on."""
    async with Pods(server.url) as pods:
        one, other, told = await pods.pod(), await pods.pod(), Told()
        log = one.begin(KEY, Told().ownership())
        records = fill(log, range(1, 2))
        await written(log, 1)
        other.begin(KEY, told.ownership()).append(1, b"another call")
        await until(lambda: bool(told.lost))
        assert told.lost == [False]
        records |= fill(log, range(2, 3))
        await written(log, 2)
        assert (await taken(one)).records == records


EARLIER, LATER = 1700000000.25, 1700000300.5
"""When two calls of one name were opened."""


async def test_a_call_is_not_taken_by_whoever_had_an_earlier_one_of_its_name(server: Valkey) -> None:
    async with Pods(server.url) as pods:
        one, other, told = await pods.pod("10.0.0.1:1"), await pods.pod(), Told()
        log = one.begin(KEY, told.ownership(opened_at=LATER))
        records = fill(log, range(1, 4))
        await written(log, 3)
        assert await other.take(KEY, 2, 1, insist=True, opened_at=EARLIER) is None
        records |= fill(log, range(4, 6))
        await written(log, 5)
        beats = one.writer._next_beat
        await until(lambda: one.writer._next_beat > beats + 0.3)
        assert not told.lost and not told.durable
        assert await other.take(KEY, 2, 5, insist=True, opened_at=LATER) == Taken(2, records)


async def test_a_second_call_of_a_name_is_told_so_however_often_the_first_was_taken_over(server: Valkey) -> None:
    async with Pods(server.url) as pods:
        one, other = await pods.pod(), await pods.pod()
        assert isinstance(await one.take(KEY, 7, 0, insist=True, opened_at=EARLIER), Taken)
        first, second, third = Told(), Told(), Told()
        log = one.begin(KEY, first.ownership(7, opened_at=EARLIER))
        records = fill(log, range(1, 4))
        await written(log, 3)
        other.begin(KEY, second.ownership(opened_at=LATER)).append(1, b"another call")
        await until(lambda: bool(second.lost))
        # Gone on with while the store was away, which now shows what it has: that is not its own.
        other.begin(KEY, third.ownership(9, 2, opened_at=LATER)).append(3, b"another call")
        await until(lambda: bool(third.lost))
        assert second.lost == third.lost == [False] and not first.lost
        assert other.writer.fenced == 0
        assert await one.take(KEY, 10, 9, insist=True, opened_at=EARLIER) == Taken(10, records)


async def test_a_silent_call_hears_that_another_one_has_its_name(server: Valkey) -> None:
    """What it had stored ran out while it was silent, and the name was free."""
    async with Pods(server.url, lease_s=60.0) as pods, redis.asyncio.Redis.from_url(server.url) as client:
        one, other, told = await pods.pod(), await pods.pod(), Told()
        log = one.begin(KEY, told.ownership(3, opened_at=EARLIER))
        fill(log, range(1, 4))
        await written(log, 3)
        await client.delete(*await client.keys("firstword:*lease"), *await client.keys("firstword:*log"))
        another = other.begin(KEY, Told().ownership(opened_at=LATER))
        fill(another, range(1, 3))
        await written(another, 2)
        one.writer.beat_now()
        await until(lambda: bool(told.lost))
        assert told.lost == [False]


async def test_a_name_that_its_own_server_holds_no_more_is_free_there(server: Valkey) -> None:
    """The client of the first call had vanished, and opens another one; the first is over with that."""
    async with Pods(server.url) as pods:
        one, told, earlier = await pods.pod(), Told(), Told()
        log = one.begin(KEY, earlier.ownership(5, opened_at=EARLIER))
        fill(log, range(1, 9))
        await written(log, 8)
        log.append(9, b"on its way")
        log.leave()
        again = one.begin(KEY, told.ownership(opened_at=LATER))
        records = fill(again, range(1, 3))
        await written(again, 2)
        assert not told.lost
        assert await one.take(KEY, 9, 9, insist=True, opened_at=EARLIER) is None
        assert await one.take(KEY, 9, 9, insist=True, opened_at=LATER) == Taken(9, records)


@pytest.mark.parametrize("forget", [False, True])
async def test_a_call_that_comes_late_does_not_end_the_later_one_of_its_name(server: Valkey, forget: bool) -> None:
    """Its own pod had meant to write it first, and that failed."""
    async with Pods(server.url) as pods:
        one, told = await pods.pod(), Told()
        late = WriteBehind(KEY, Told().ownership(opened_at=EARLIER), 0.0, lambda log: None)
        late.leave()
        log = one.begin(KEY, told.ownership(opened_at=LATER))
        records = fill(log, range(1, 3))
        await written(log, 2)
        late.append(1, b"late")
        if forget:
            late.close(forget=True)
        one.writer._logs._ending.append(late)
        records |= fill(log, range(3, 5))
        await written(log, 4)
        assert late.dead and not told.lost
        assert await one.take(KEY, 9, 9, insist=True, opened_at=LATER) == Taken(9, records)


async def test_leases_of_servers_that_do_not_say_when_a_call_was_opened(server: Valkey) -> None:
    """Their calls may be the one: it is taken, said of from then on, and goes back to such a server."""
    async with Pods(server.url) as pods:
        one, other, told = await pods.pod(), await pods.pod(), Told()
        log = one.begin(KEY, Told().ownership())
        records = fill(log, range(1, 4))
        await written(log, 3)
        assert await other.take(KEY, 2, 3, insist=True, opened_at=EARLIER) == Taken(2, records)
        again = other.begin(KEY, told.ownership(2, 3, 3, opened_at=EARLIER))
        records |= fill(again, range(4, 6))
        await written(again, 5)
        assert await one.take(KEY, 3, 5, insist=True, opened_at=LATER) is None
        assert await one.take(KEY, 3, 5, insist=True) == Taken(3, records)
        await until(lambda: told.lost == [True])


async def test_the_name_of_a_call_that_is_over_is_free(server: Valkey) -> None:
    async with Pods(server.url) as pods:
        one, told = await pods.pod(), Told()
        log = one.begin(KEY, Told().ownership())
        fill(log, range(1, 9))
        log.close(forget=False)
        await until(lambda: not one.writer.pending)
        assert await one.take(KEY, 2, 100, insist=True) is None
        again = one.begin(KEY, told.ownership())
        records = fill(again, range(1, 3))
        await written(again, 2)
        assert (await taken(one)).records == records
        assert not told.lost


async def test_a_name_is_used_again_at_once(server: Valkey) -> None:
    """Before anything of the first call was written."""
    async with Pods(server.url) as pods:
        one = await pods.pod()
        log = one.begin(KEY, Told().ownership())
        fill(log, range(1, 9))
        log.close(forget=False)
        again = one.begin(KEY, Told().ownership())
        records = fill(again, range(1, 3))
        await written(again, 2)
        assert (await taken(one)).records == records


async def test_a_pod_that_is_warm_is_named_unless_it_is_gone(server: Valkey) -> None:
    async with Pods(server.url) as pods:
        one, other = await pods.pod("10.0.0.1:50051"), await pods.pod("10.0.0.2:50051")
        await begun(one, Told())
        assert await other.take(KEY, 2, 2, insist=False) == Elsewhere("10.0.0.1:50051")
        await one.drain()

        async def one_is_draining() -> bool:
            async with redis.asyncio.Redis.from_url(server.url) as client:
                names = await client.keys("firstword:pod:*")
                return [await client.hget(name, "draining") for name in names].count(b"1") == 1

        await until(one_is_draining)
        assert isinstance(await other.take(KEY, 2, 2, insist=False), Taken)


@pytest.mark.parametrize("full", [False, True])
async def test_a_call_that_its_taker_cannot_go_on_with_is_anybodys_again(server: Valkey, full: bool) -> None:
    """Nobody is sent to the pod that could not; those before it stay out; and its name is not free."""
    async with Pods(server.url, lease_s=60.0) as pods, redis.asyncio.Redis.from_url(server.url) as client:
        one, two, three = [await pods.pod(f"10.0.0.{number}:1") for number in (1, 2, 3)]
        first, second = Told(), Told()
        log = one.begin(KEY, first.ownership(opened_at=EARLIER))
        records = fill(log, range(1, 4))
        await written(log, 3)
        assert await two.take(KEY, 2, 3, insist=True, opened_at=EARLIER) == Taken(2, records)
        if full:
            await client.config_set("maxmemory", "1")
        await two.release(KEY, 1)  # of another generation
        await three.release(KEY, 2)  # by another pod
        assert await three.take(KEY, 3, 3, insist=False, opened_at=EARLIER) == Elsewhere("10.0.0.2:1")
        await two.release(KEY, 2)
        await client.config_set("maxmemory", "0")
        log.append(4, b"from the dead")
        two.begin(KEY, second.ownership(opened_at=LATER)).append(1, b"another call")
        await until(lambda: bool(first.lost and second.lost))
        assert (first.lost, second.lost) == ([True], [False])
        assert await three.take(KEY, 2, 3, insist=False, opened_at=EARLIER) == Superseded(2)
        assert await three.take(KEY, 3, 3, insist=False, opened_at=EARLIER) == Taken(3, records)


async def test_of_a_call_of_which_nothing_is_stored_nothing_is_written_by_who_asks(server: Valkey) -> None:
    """Its name is another one's, or its own when somebody goes on with it: the newest of those."""
    async with Pods(server.url) as pods, redis.asyncio.Redis.from_url(server.url) as client:
        one, other, late, told = await pods.pod(), await pods.pod(), Told(), Told()
        for pod in (one, other):
            assert await pod.take(KEY, 2, 5, insist=False, opened_at=EARLIER) == Taken(2, {})
        assert await client.keys("firstword:{*") == []
        log = other.begin(KEY, told.ownership(3, 5, opened_at=EARLIER))
        log.append(5, b"whole 5")
        await written(log, 5)
        one.begin(KEY, late.ownership(2, 5, opened_at=EARLIER)).append(6, b"from the dead")
        await until(lambda: late.lost == [True])
        assert not told.lost
        assert await one.take(KEY, 4, 5, insist=True, opened_at=EARLIER) == Taken(4, {5: b"whole 5"})


@pytest.mark.parametrize("keeps", [True, False])
async def test_a_call_that_was_released_may_be_taken_again(server: Valkey, keeps: bool) -> None:
    """From a store that keeps nothing, too."""
    async with Pods(server.url) as pods:
        store: Store = await pods.pod() if keeps else MemoryStore()
        for generation in (2, 3):
            assert await store.take(KEY, generation, 5, insist=False) == Taken(generation, {})
            await store.release(KEY, generation)


async def test_a_silent_pod_is_forgotten(server: Valkey) -> None:
    async with Pods(server.url) as pods:
        one, other = await pods.pod("10.0.0.1:50051"), await pods.pod("10.0.0.2:50051")
        await begun(one, Told())
        await one.halt()  # as a frozen process

        async def is_taken() -> bool:
            return isinstance(await other.take(KEY, 2, 2, insist=False), Taken)

        await until(is_taken)


async def test_calls_go_to_all_pods_with_room_by_the_room_that_they_have(server: Valkey) -> None:
    async with Pods(server.url) as pods:
        one = await pods.pod("10.0.0.1:1", load=(0, 100))
        assert next(await one.successors()) == ""
        await pods.pod("10.0.0.2:1", load=(7, 8))
        await pods.pod("10.0.0.3:1", load=(2, 8))
        full = await pods.pod("10.0.0.4:1", load=(8, 8))
        await pods.pod("", load=(0, 8))

        async def chosen(pod: RedisStore, calls: int) -> dict[str, int]:
            return dict(Counter(islice(await pod.successors(), calls)))

        async def all_known() -> bool:
            return await chosen(one, 7) == {"10.0.0.2:1": 1, "10.0.0.3:1": 6}

        await until(all_known)
        assert await chosen(full, 107) == {"10.0.0.1:1": 100, "10.0.0.2:1": 1, "10.0.0.3:1": 6}


def test_pods_that_go_together_do_not_begin_with_the_same_one() -> None:
    rooms = {f"10.0.0.{number}:1": 8 for number in range(4)}
    assert {next(spread(rooms)) for _ in range(200)} == set(rooms)


# When the store has its own troubles


async def test_a_store_that_is_away_is_told_and_catches_up(server: Valkey) -> None:
    async with Pods(server.url) as pods:
        one, told = await pods.pod(), Told()
        log = one.begin(KEY, told.ownership())
        records = fill(log, range(1, 5))
        await written(log, 4)
        server.kill()
        records |= fill(log, range(5, 9))
        await until(lambda: told.durable == [False])
        assert log.durable_seq == 4
        with pytest.raises(StoreUnavailable):
            await one.take(KEY, 2, 9, insist=True)
        told.at = 8
        server.start()  # without what it had
        await until(lambda: told.durable == [False, True])
        await written(log, 8)
        assert (await taken(one)).records == {8: b"whole 8"}


async def test_a_store_that_kept_what_it_had_gets_the_rest(tmp_path: Any) -> None:
    with valkey(persistent=True) as server:
        async with Pods(server.url) as pods:
            one, told = await pods.pod(), Told()
            log = one.begin(KEY, told.ownership())
            records = fill(log, range(1, 5))
            await written(log, 4)
            server.kill()
            records |= fill(log, range(5, 9))
            server.start()
            await written(log, 8)
            assert (await taken(one)).records == records
            assert next(told.checkpoints) == 0


async def test_a_failover_that_loses_what_was_acknowledged(server: Valkey) -> None:
    """The new server has the log as it was a moment ago: what is missing is written again, nothing is claimed."""
    async with Pods(server.url, trust_after_s=60.0) as pods:
        one, told = await pods.pod(), Told()
        log = one.begin(KEY, told.ownership())
        records = fill(log, range(1, 5))
        async with redis.asyncio.Redis.from_url(server.url) as client:
            await until(lambda: not one.writer.pending)
            (lease,) = await client.keys("firstword:*:lease")
            old = {lease: await client.dump(lease), (book := lease[:-5] + b"log"): await client.dump(book)}
            records |= fill(log, range(5, 9))
            await until(lambda: not one.writer.pending)
            assert log.durable_seq == 0  # it may still be lost, and the client keeps it
            for key, value in old.items():
                await client.restore(key, 0, value, replace=True)
        records |= fill(log, range(9, 11))
        await until(lambda: not one.writer.pending)
        assert (await taken(one)).records == records
        assert next(told.checkpoints) == 0


@pytest.mark.parametrize("speaks", [True, False])
async def test_a_failover_that_demotes_the_old_server_in_place(server: Valkey, speaks: bool) -> None:
    """Behind one address. Connections to the old one stay open, and it says that it is read only; also to a takeover on
    a pod whose calls say nothing.
    """
    async with AsyncExitStack() as stack:
        proxy, new = await stack.enter_async_context(slow_proxy(server.port)), stack.enter_context(valkey())
        old_one = await stack.enter_async_context(redis.asyncio.Redis.from_url(server.url))
        new_one = await stack.enter_async_context(redis.asyncio.Redis.from_url(new.url))
        pods = await stack.enter_async_context(Pods(proxy.url, lease_s=0.6 if speaks else 60.0))
        one, other = await pods.pod(), await pods.pod()
        log = one.begin(KEY, Told().ownership())
        records = fill(log, range(1, 5))
        await written(log, 4)
        await old_one.config_set("repl-diskless-sync-delay", "0")
        await new_one.replicaof("127.0.0.1", server.port)

        async def is_copied() -> bool:
            return bool(await new_one.keys("*:log"))

        await until(is_copied)
        proxy.to_port = new.port
        await new_one.replicaof("NO", "ONE")
        await old_one.replicaof("127.0.0.1", new.port)
        if speaks:
            records |= fill(log, range(5, 9))
            await until(lambda: log.durable_seq >= 8, timeout_s=5.0)

        async def is_taken() -> bool:
            try:
                return (await taken(other)).records == records
            except StoreUnavailable:
                return False

        await until(is_taken, timeout_s=5.0)


async def test_who_was_frozen_drops_what_others_have_before_it_says_that_it_is_there(server: Valkey) -> None:
    """Its calls that write nothing, too."""
    async with Pods(server.url) as pods:
        one, other, told = await pods.pod(), await pods.pod(), Told()
        there: list[bool] = []
        with redis.Redis.from_url(server.url) as client:
            pod = f"firstword:pod:{one._pod.id}"
            ownership = replace(told.ownership(), on_lost=lambda taken: there.append(bool(client.exists(pod))))
            log = one.begin(KEY, ownership)
            fill(log, range(1, 3))
            await written(log, 2)
            await one.halt()  # as a frozen process
            await taken(other)
            await until(lambda: not client.exists(pod))
            await one.start()
            await until(lambda: bool(there))
            await until(lambda: bool(client.exists(pod)))
    assert there == [False]


async def test_a_whole_that_comes_late_leaves_no_hole(server: Valkey) -> None:
    """It timed out, was sent again with more in it, and is done at last behind that."""
    async with redis.asyncio.Redis.from_url(server.url) as client:

        async def append(after: int, whole: str, seq: int, record: str) -> list[Any]:
            return await client.eval(
                scripts.APPEND, 2, "{c}lease", "{c}log", 1, "p", 0, after, 60_000, whole, "", "", seq, record
            )

        assert await append(-1, "0", 1, "one") == [b"ok", 1]
        assert await append(1, "1", 12, "whole 12") == [b"ok", 12]
        assert await append(1, "1", 10, "whole 10") == [b"ok", 12]
        assert await append(12, "0", 13, "thirteen") == [b"ok", 13]
        kept = await client.hgetall("{c}log")
        assert kept == {b"1": b"one", b"10": b"whole 10", b"12": b"whole 12", b"13": b"thirteen"}


@pytest.mark.parametrize("lost", ["firstword:*:log", "firstword:*"])
@pytest.mark.parametrize("speaks", [False, True])
async def test_what_the_store_loses_is_written_again(server: Valkey, lost: str, speaks: bool) -> None:
    """The log alone, as by eviction, or all of it; also of a caller who is on hold."""
    async with Pods(server.url) as pods, redis.asyncio.Redis.from_url(server.url) as client:
        one, told = await pods.pod(), Told()
        log = one.begin(KEY, told.ownership())
        fill(log, range(1, 5))
        await written(log, 4)
        told.at = 4
        await client.delete(*await client.keys(lost))
        if speaks:
            log.append(5, b"record 5")
            told.at = 5

        async def is_whole() -> bool:
            return told.at in {int(seq) for name in await client.keys("*:log") for seq in await client.hkeys(name)}

        await until(is_whole)
        await written(log, told.at)
        assert (await taken(one)).records == {told.at: b"whole %d" % told.at}


async def test_what_was_forgotten_is_not_written_again(server: Valkey) -> None:
    """Not by whoever looks for losses, and not by whoever had found one before."""
    async with Pods(server.url) as pods, redis.asyncio.Redis.from_url(server.url) as client:
        one, told = await pods.pod(), Told()
        log = one.begin(KEY, told.ownership(caller="anna"))
        fill(log, range(1, 4))
        await written(log, 3)
        assert await one.forget("", "anna") == 1
        beats = one.writer._next_beat
        await until(lambda: one.writer._next_beat > beats + 0.3)
        assert await client.keys("*:log") == []
        assert isinstance(log, WriteBehind)
        log.found_hole(0)
        log.append(4, b"still speaking")
        await until(lambda: told.durable == [False])
        assert await client.keys("*:log") == []


async def test_a_store_that_is_back_has_caught_up_though_calls_go_on(server: Valkey) -> None:
    async with slow_proxy(server.port) as proxy, Pods(proxy.url, lease_s=6.0) as pods:
        proxy.delay_s = 0.003
        one, tolds = await pods.pod(), [Told() for _ in range(40)]
        logs = [one.begin(CallKey("", f"call-{at}"), told.ownership()) for at, told in enumerate(tolds)]

        async def speak() -> None:
            for seq in count(1):
                for at, log in enumerate(logs):
                    log.append(seq, b"a word")
                    if at % 4 == 0:
                        await asyncio.sleep(0.002)

        speaking = asyncio.create_task(speak())
        await until(lambda: one.writer.writes > 100)
        server.freeze()
        await until(lambda: one.writer.behind)
        server.thaw()
        await until(lambda: not one.writer.behind)
        assert all(told.durable == [False, True] for told in tolds)
        speaking.cancel()


async def test_a_caller_is_found_as_long_as_anything_of_theirs(server: Valkey) -> None:
    async with Pods(server.url) as pods, redis.asyncio.Redis.from_url(server.url) as client:
        one = await pods.pod()
        log = one.begin(KEY, Told().ownership(caller="anna"))
        fill(log, range(1, 3))
        await written(log, 2)
        (index,) = await client.keys("firstword:caller:*")
        await client.pexpire(index, 500)
        log.append(3, b"much later")
        await written(log, 3)
        assert await client.pttl(index) > 30_000


async def test_a_store_that_is_full(server: Valkey) -> None:
    async with Pods(server.url) as pods, redis.asyncio.Redis.from_url(server.url) as client:
        one, told = await pods.pod(), Told()
        log = await begun(one, told)
        await client.config_set("maxmemory", "1")
        log.append(3, b"no room")
        await until(lambda: told.durable == [False])
        assert log.durable_seq == 2
        await client.config_set("maxmemory", "0")
        await until(lambda: told.durable == [False, True])
        await written(log, 3)


async def test_a_store_that_is_full_gives_up_calls_and_deletes_them(server: Valkey) -> None:
    async with Pods(server.url) as pods, redis.asyncio.Redis.from_url(server.url) as client:
        one, other = await pods.pod(), await pods.pod()
        log = one.begin(KEY, Told().ownership(caller="anna"))
        records = fill(log, range(1, 4))
        await written(log, 3)
        await client.config_set("maxmemory", "1")
        assert await other.take(KEY, 2, 3, insist=True) == Taken(2, records)
        assert await other.forget("", "anna") == 1
        assert await client.keys("*:log") == []
        assert await other.take(KEY, 3, 3, insist=True) is None


@pytest.mark.parametrize("behind", [False, True])
async def test_a_call_is_forgotten_when_it_closes_though_the_store_is_full(server: Valkey, behind: bool) -> None:
    """With more to say that was not written; also where the heartbeat has been refused already."""
    lease_s = 0.6 if behind else 60.0
    async with Pods(server.url, lease_s=lease_s) as pods, redis.asyncio.Redis.from_url(server.url) as client:
        one, told = await pods.pod(), Told()
        log, silent = one.begin(KEY, Told().ownership(caller="anna")), one.begin(CallKey("", "2"), told.ownership())
        for each in (log, silent):
            fill(each, range(1, 4))
            await written(each, 3)
        await client.config_set("maxmemory", "1")
        if behind:
            await until(lambda: one.writer.behind)
        log.append(4, b"the last word")
        log.close(forget=True)
        await until(lambda: not one.writer.pending)
        assert len(await client.keys("*:log")) == 1
        assert await one.take(KEY, 2, 4, insist=True) is None
        assert told.durable == [False] * behind
        await client.config_set("maxmemory", "0")
        silent.append(4, b"more of it")
        await written(silent, 4)
        assert len(await client.keys("*:log")) == 1


async def refusing(client: redis.asyncio.Redis) -> bytes:
    """Make the store refuse whatever is said of the one call that it has; the key that is to be deleted again."""
    (lease,) = await client.keys("firstword:*:lease")
    await client.set(lease, "no hash")
    return bytes(lease)


async def test_a_call_that_the_store_refuses_harms_no_other(server: Valkey) -> None:
    """More of them than one pipeline has, and the refused one is the oldest."""
    async with Pods(server.url) as pods, redis.asyncio.Redis.from_url(server.url) as client:
        one, refused, others = await pods.pod(), Told(), [Told() for _ in range(pipelines.MAX_CALLS_PER_PIPELINE + 6)]
        log = await begun(one, refused)
        lease = await refusing(client)
        logs = [one.begin(CallKey("", f"other-{at}"), told.ownership()) for at, told in enumerate(others)]
        for seq in range(3, 18):  # for longer than a store may fail before all are told
            for each in (log, *logs):
                each.append(seq, b"a word")
            await asyncio.sleep(0.1)
        for each in logs:
            await written(each, 17)
        assert refused.durable == [False] and not any(told.durable for told in others) and not one.writer.behind
        beats = one.writer._next_beat
        await until(lambda: one.writer._next_beat > beats)
        refused.at = 17
        await client.delete(lease)
        await written(log, 17)
        assert refused.durable == [False, True] and not log.refusals  # type: ignore[attr-defined]


async def test_a_call_that_cannot_be_written_down_harms_no_other(
    server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither whole nor record by record. It alone is told, also where there is no other, and counted as a failure."""
    async with Pods(server.url) as pods:
        one, broken, unsealed, other = await pods.pod(), Told(), Told(), Told()
        sealer, seal, faults = one._sealer, one._sealer.seal, [ValueError("no")]

        def checkpoint() -> tuple[int, bytes]:
            if faults:
                raise faults[0]
            return broken.checkpoint()

        def sealing(record: bytes, place: bytes) -> bytes:
            if faults and record == b"not to be sealed":
                raise faults[0]
            return seal(record, place)

        monkeypatch.setattr(sealer, "seal", sealing)
        log = one.begin(KEY, replace(broken.ownership(), checkpoint=checkpoint))
        log.append(1, bytes(pipelines.MAX_BATCH_BYTES * 17))  # more than is kept: all of it is to be written
        await until(lambda: broken.durable == [False] and one.writer.failures > 0)
        secret = one.begin(CallKey("", "call-2"), unsealed.ownership())
        secret.append(1, b"not to be sealed")
        healthy = one.begin(CallKey("", "call-3"), other.ownership())
        for seq in range(1, 16):
            healthy.append(seq, b"a word")
            await written(healthy, seq)
            await asyncio.sleep(0.1)
        assert broken.durable == unsealed.durable == [False] and not other.durable and not one.writer.behind
        broken.at = 1
        faults.clear()
        await written(log, 1)
        await written(secret, 1)
        assert broken.durable == unsealed.durable == [False, True]


async def test_a_fault_in_the_writer_is_told(server: Valkey) -> None:
    async with Pods(server.url) as pods:
        one, told = await pods.pod(), Told()
        await begun(one, told)
        load, one._pod.load = one._pod.load, lambda: (0, "many")  # type: ignore[assignment, return-value]
        await until(lambda: told.durable == [False] and one.writer.failures > 0)
        one._pod.load = load
        await until(lambda: told.durable == [False, True])


@pytest.mark.parametrize("ended", [False, True])
async def test_a_refused_call_where_nobody_else_writes_is_no_fault_of_the_store(server: Valkey, ended: bool) -> None:
    async with Pods(server.url) as pods, redis.asyncio.Redis.from_url(server.url) as client:
        one, refused, silent = await pods.pod(), Told(), Told()
        log = await begun(one, refused)
        lease = await refusing(client)
        await begun(one, silent, CallKey("", "other"))
        log.append(3, b"a word")
        if ended:
            log.close(forget=False)
        await until(lambda: log.refusals > 5)  # type: ignore[attr-defined]
        assert refused.durable == [False] and not silent.durable and not one.writer.behind
        assert one.writer.parked == 1
        await client.delete(lease)
        await until(lambda: not one.writer.pending)
        assert one.writer.parked == 0


async def test_a_store_that_takes_heartbeats_alone_is_behind(server: Valkey) -> None:
    """Also where the one call that has something to say was refused for itself before."""
    async with Pods(server.url) as pods, redis.asyncio.Redis.from_url(server.url) as client:
        one, refused, silent = await pods.pod(), Told(), Told()
        log = await begun(one, refused)
        lease = await refusing(client)
        await begun(one, silent, CallKey("", "other"))
        log.append(3, b"a word")
        await until(lambda: one.writer.parked == 1)
        await client.execute_command("ACL", "SETUSER", "default", "-eval")  # type: ignore[no-untyped-call]
        await until(lambda: one.writer.behind)
        assert silent.durable == [False]
        await client.execute_command("ACL", "SETUSER", "default", "+eval")  # type: ignore[no-untyped-call]
        await client.delete(lease)
        await until(lambda: silent.durable == refused.durable == [False, True])


async def test_what_the_store_refuses_of_a_call_that_ends_is_given_up(
    server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Pods(server.url) as pods, redis.asyncio.Redis.from_url(server.url) as client:
        one = await pods.pod()
        log = await begun(one, Told())
        await refusing(client)
        other = one.begin(CallKey("", "other"), Told().ownership())
        log.append(3, b"the last word")
        log.close(forget=False)
        other.append(1, b"another word")
        await until(lambda: log.refusals > 0)  # type: ignore[attr-defined]
        began = time.monotonic()
        await one.writer.finish(10.0)
        assert time.monotonic() - began < 5.0 and one.writer.pending == 1
        monkeypatch.setattr(parking, "MAX_REFUSALS", 4)
        await one.start()
        await until(lambda: not one.writer.pending)
        other.append(2, b"more of it")
        await written(other, 2)


async def test_answers_that_nobody_knows_take_no_call_from_its_pod(server: Valkey) -> None:
    """As where something in between gives them another form. The store is behind then, and calls go on."""
    async with Pods(f"{server.url}?decode_responses=true", lease_s=60.0) as pods:
        one, told = await pods.pod(), Told()
        fill(one.begin(KEY, told.ownership()), range(1, 3))
        await until(lambda: told.durable == [False])
        assert not told.lost and one.writer.failures > 1 and one.writer.pending == 1
        assert (one.writer.fenced, one.writer.leases_lost) == (0, 0)
        with pytest.raises(StoreUnavailable):
            await one.take(KEY, 2, 2, insist=True)


async def test_what_is_to_be_forgotten_is_not_given_up(server: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "MAX_REFUSALS", 2)
    async with Pods(server.url) as pods, redis.asyncio.Redis.from_url(server.url) as client:
        one = await pods.pod()
        log = await begun(one, Told())
        lease = await refusing(client)
        other = one.begin(CallKey("", "other"), Told().ownership())
        log.close(forget=True)
        failures = one.writer.failures
        for seq in count(1):
            other.append(seq, b"a word")
            await written(other, seq)
            if one.writer.failures > failures + 4:
                break
        assert len(await client.keys("*:log")) == 2
        await client.delete(lease)
        await until(lambda: not one.writer.pending)
        assert len(await client.keys("*:log")) == 1


async def test_a_call_that_another_pod_has_is_not_closed(server: Valkey) -> None:
    async with Pods(server.url, lease_s=60.0) as pods:
        one, other = await pods.pod(), await pods.pod()
        log = one.begin(KEY, Told().ownership())
        records = fill(log, range(1, 4))
        await written(log, 3)
        await taken(other)
        log.close(forget=True)
        await until(lambda: not one.writer.pending)
        assert (await taken(one)).records == records
        assert (one.writer.fenced, one.writer.leases_lost) == (1, 1)


async def test_a_store_that_is_slow(server: Valkey) -> None:
    async with slow_proxy(server.port) as proxy, Pods(proxy.url, timeout_s=5.0) as pods:
        one, told = await pods.pod(), Told()
        log = await begun(one, told)
        proxy.delay_s = 0.6
        records = fill(log, range(3, 50))
        await until(lambda: bool(told.durable))
        proxy.delay_s = 0.0
        await until(lambda: told.durable[-1])
        await written(log, max(records))


async def test_calls_that_have_nothing_to_say_cost_the_writer_nothing(
    server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Pods(server.url, lease_s=60.0) as pods:
        one = await pods.pod()
        logs = [one.begin(CallKey("", f"call-{at}"), Told().ownership()) for at in range(100)]
        for log in logs:
            log.append(1, b"a word")
        for log in logs:
            await written(log, 1)
        is_dirty, looked = WriteBehind.dirty.fget, Counter[WriteBehind]()

        def looking(log: WriteBehind) -> bool:
            looked[log] += 1
            return bool(is_dirty(log))

        monkeypatch.setattr(WriteBehind, "dirty", property(looking))
        for seq in range(2, 12):
            logs[50].append(seq, b"a word")
            await written(logs[50], seq)
        assert list(looked) == [logs[50]]


async def test_that_a_store_is_slow_is_told_before_all_is_written(server: Valkey) -> None:
    """A round of many calls takes long, though each of its pipelines is taken in time."""
    async with slow_proxy(server.port) as proxy, Pods(proxy.url, timeout_s=5.0, lease_s=6.0) as pods:
        one, unwritten = await pods.pod(), list[int]()
        ownership = replace(Told().ownership(), on_durable=lambda durable: unwritten.append(one.writer.unwritten))
        logs = [one.begin(CallKey("", f"call-{at}"), ownership) for at in range(150)]
        proxy.rate = 1.5e6
        for log in logs:
            log.append(1, bytes(pipelines.MAX_BATCH_BYTES))
        await until(lambda: bool(unwritten))
        assert unwritten[0] > len(logs) / 2 and not one.writer.failures


@pytest.mark.parametrize("rate", [8e5, 1e5])
async def test_a_slow_link_is_caught_up_with(server: Valkey, rate: float) -> None:
    """Over which what waits of one call takes longer than the store may; over the slower one what goes in one piece."""
    async with slow_proxy(server.port) as proxy, Pods(proxy.url, lease_s=6.0) as pods, Pods(server.url) as near:
        one, other = await pods.pod(), await near.pod()
        logs = [one.begin(key, Told().ownership()) for key in (KEY, *(CallKey("", f"other-{at}") for at in range(3)))]
        for log in logs:
            fill(log, range(1, 3))
            await written(log, 2)
        proxy.rate = rate
        long = {seq: bytes(round(rate / 20)) for seq in range(3, 19)}
        for log in logs:
            for seq, record in long.items():
                log.append(seq, record)
        await until(lambda: all(log.durable_seq == 18 for log in logs))
        assert (await taken(other)).records == {1: b"record 1", 2: b"record 2", **long}


async def test_calls_go_on_while_what_waited_is_written(server: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sealed at once is bounded; and of calls that the store has lost one is written down at once."""
    async with Pods(server.url) as pods, redis.asyncio.Redis.from_url(server.url) as client:
        one, sealed, wholes = await pods.pod(), Turns(), Turns()
        sealer, seal = one._sealer, one._sealer.seal

        def counted(record: bytes, place: bytes) -> bytes:
            sealed.done(len(record))
            return seal(record, place)

        def checkpoint() -> tuple[int, bytes]:
            wholes.done(1)
            return 30, b"whole"

        monkeypatch.setattr(sealer, "seal", counted)
        ownership = replace(Told().ownership(), checkpoint=checkpoint)
        logs = [one.begin(CallKey("", f"call-{at}"), ownership) for at in range(40)]
        for log in logs:
            for seq in range(1, 31):
                log.append(seq, bytes(8 * 1024))
        await until(lambda: all(log.durable_seq == 30 for log in logs))
        assert 0 < sealed.most <= 2 * pipelines.MAX_BATCH_BYTES
        await client.flushall()
        await until(lambda: not one.writer.pending and wholes.most > 0)
        await until(lambda: all(log.durable_seq == 30 for log in logs))
        assert wholes.most == 1
        for turns in (sealed, wholes):
            turns.stop()


async def overflow(server: Valkey, log: CallLog, told: Told, seqs: range) -> None:
    """While the store is away more is said than is kept for it: the whole call is written when it is back."""
    server.freeze()
    for seq in seqs:
        log.append(seq, bytes(64 * 1024))
    told.at = seqs[-1]
    server.thaw()
    await written(log, seqs[-1])


async def test_what_is_never_written_does_not_grow_for_ever(server: Valkey) -> None:
    async with Pods(server.url) as pods:
        one, told = await pods.pod(), Told()
        log = await begun(one, told)
        await overflow(server, log, told, range(3, 40))
        assert (await taken(one)).records == {1: b"record 1", 2: b"record 2", 39: b"whole 39"}


async def test_a_client_that_has_not_received_the_whole_goes_on_from_before_it(server: Valkey) -> None:
    """It holds what came after the last record that it knew to be durable, which must still be there."""
    async with Pods(server.url) as pods:
        one, told = await pods.pod(), Told()
        log = one.begin(KEY, told.ownership())
        records = fill(log, range(1, 9))
        await written(log, 8)
        await overflow(server, log, told, range(9, 46))
        assert (await taken(one, last_seq=44)).records == records


# What is kept, and how


async def test_nothing_of_a_call_can_be_read_without_its_key(server: Valkey) -> None:
    old, new = (base64.b64encode(secrets.token_bytes(32)).decode() for _ in range(2))
    secret = b"my card number is 1234"
    async with Pods(server.url) as pods, redis.asyncio.Redis.from_url(server.url) as client:
        one = await pods.pod(keys=(old,))
        log = one.begin(CallKey("", "call-1"), Told().ownership(caller="+4912345"))
        log.append(1, secret)
        await written(log, 1)
        dumps = [await client.dump(key) for key in await client.keys("*")]
        names = b" ".join(await client.keys("*"))
        assert not any(word in b" ".join(dumps) + names for word in (secret, b"call-1", b"+4912345"))
        assert (await taken(await pods.pod(keys=(new, old)))).records == {1: secret}
        assert (await taken(await pods.pod(keys=(new,)))).records == {}


async def test_a_caller_is_forgotten(server: Valkey) -> None:
    async with Pods(server.url) as pods, redis.asyncio.Redis.from_url(server.url) as client:
        one, told = await pods.pod(), Told()
        log = one.begin(KEY, told.ownership(caller="anna"))
        other = one.begin(CallKey("", "call-2"), Told().ownership(caller="otto"))
        for book in (log, other):
            fill(book, range(1, 4))
            await written(book, 3)
        assert await one.forget("", "anna") == 1
        assert await one.forget("", "nobody") == 0
        assert len(await client.keys("*:log")) == 1
        log.append(4, b"still speaking")
        await until(lambda: told.durable == [False])
        assert not told.lost
        assert len(await client.keys("*:log")) == 1
        assert await one.forget("", "anna") == 0
        assert await one.take(KEY, 2, 9, insist=True) is None


@pytest.mark.parametrize("other", ["otto", ""])
async def test_a_caller_whose_call_is_over_takes_no_others_with_its_name(server: Valkey, other: str) -> None:
    """Nor does one who has only tried to have it."""
    async with Pods(server.url) as pods, redis.asyncio.Redis.from_url(server.url) as client:
        one, two, told, late = await pods.pod(), await pods.pod(), Told(), Told()
        log = one.begin(KEY, Told().ownership(caller="anna", opened_at=EARLIER))
        fill(log, range(1, 4))
        log.close(forget=False)
        await until(lambda: not one.writer.pending)
        again = two.begin(KEY, told.ownership(caller=other, opened_at=LATER))
        records = fill(again, range(1, 4))
        await written(again, 3)
        one.begin(KEY, late.ownership(caller="anna", opened_at=EARLIER)).append(1, b"another call")
        await until(lambda: late.lost == [False])
        assert await one.forget("", "anna") == 0
        assert await client.keys("firstword:caller:*") == ([b"firstword:caller:" + index(other)] if other else [])
        records |= fill(again, range(4, 6))
        await written(again, 5)
        assert not told.durable and not told.lost
        assert await one.take(KEY, 2, 5, insist=True, opened_at=LATER) == Taken(2, records)
        assert await one.forget("", other) == bool(other)


async def test_a_lease_that_does_not_say_whose_call_it_is_may_be_any_callers(server: Valkey) -> None:
    """As one that an earlier version wrote; the next write says it."""
    async with Pods(server.url) as pods, redis.asyncio.Redis.from_url(server.url) as client:
        one = await pods.pod()
        log = one.begin(KEY, Told().ownership(caller="anna"))
        fill(log, range(1, 4))
        await written(log, 3)
        (lease,) = await client.keys("firstword:*:lease")
        said = await client.hget(lease, "caller")
        assert said == b"firstword:caller:" + index("anna")
        await client.hdel(lease, "caller")
        log.append(4, b"a word")
        await written(log, 4)
        assert await client.hget(lease, "caller") == said
        await client.hdel(lease, "caller")
        assert await one.forget("", "anna") == 1
        assert await client.keys("*:log") == [] and set(await client.hgetall(lease)) == {
            b"gen",
            b"pod",
            b"top",
            b"closed",
        }


async def test_what_was_forgotten_before_its_writer_knew_that_it_is_stored(server: Valkey) -> None:
    """The answer to its first write was lost, and it is written again. A later call of its name is stored."""
    async with Pods(server.url) as pods, redis.asyncio.Redis.from_url(server.url) as client:
        one, told = await pods.pod(), Told()
        log = one.begin(KEY, Told().ownership(caller="anna", opened_at=EARLIER))
        fill(log, range(1, 4))
        await written(log, 3)
        assert await one.forget("", "anna") == 1
        again = one.begin(KEY, told.ownership(caller="anna", opened_at=EARLIER))
        fill(again, range(1, 4))
        await until(lambda: told.durable == [False])
        assert await client.keys("*:log") == []
        assert await client.keys("firstword:caller:*") == []
        later = one.begin(KEY, Told().ownership(caller="anna", opened_at=LATER))
        fill(later, range(1, 4))
        await written(later, 3)
        assert await one.forget("", "anna") == 1


async def test_a_call_is_forgotten_when_it_closes(server: Valkey) -> None:
    async with Pods(server.url) as pods, redis.asyncio.Redis.from_url(server.url) as client:
        one = await pods.pod()
        log = one.begin(KEY, Told().ownership())
        fill(log, range(1, 4))
        log.close(forget=True)
        await until(lambda: not one.writer.pending)
        assert await client.keys("*:log") == []


async def test_everything_expires(server: Valkey) -> None:
    async with Pods(server.url, retention_s=0.3) as pods, redis.asyncio.Redis.from_url(server.url) as client:
        one = await pods.pod()
        log = one.begin(KEY, Told().ownership(caller="anna"))
        fill(log, range(1, 4))
        await written(log, 3)
        log.leave()

        async def all_gone() -> bool:
            return not set(await client.keys("firstword:*")) - set(await client.keys("firstword:pod*"))

        await until(all_gone)


async def test_the_store_keeps_figures_of_itself(server: Valkey) -> None:
    async with Pods(server.url, trust_after_s=30.0) as pods:
        one, other, times, told = await pods.pod(), await pods.pod(), list[float](), Told()
        one.writer.on_written = times.append
        log = one.begin(KEY, told.ownership())
        fill(log, range(1, 4))
        assert (one.writer.unwritten, one.writer.kept) == (3, 3) and one.writer.lag_s >= 0
        await until(lambda: one.writer.unwritten == 0)
        assert one.writer.kept == 3 and one.writer.lag_s == 0 and times and min(times) > 0
        await until(lambda: one.writer.memory[0] > 0)
        server.kill()
        log.append(4, b"while it is away")
        await until(lambda: one.writer.failures > 0)
        first = one.writer.lag_s
        assert one.writer.unwritten == 1 and 0 < first <= one.writer.lag_s
        server.start()
        await until(lambda: one.writer.unwritten == 0 and one.writer.reconnects == 1)
        assert one.writer.lag_s == 0
        await taken(other)
        log.append(9, b"from the dead")
        await until(lambda: one.writer.leases_lost == 1)
        assert one.writer.fenced <= 1 and told.lost == [True] and one.writer.kept == 0


async def test_a_write_that_is_refused_is_counted(server: Valkey) -> None:
    async with Pods(server.url, lease_s=60.0) as pods:  # no heartbeat finds it first
        one, other, told = await pods.pod(), await pods.pod(), Told()
        log = one.begin(KEY, told.ownership())
        fill(log, range(1, 4))
        await written(log, 3)
        await taken(other)
        log.append(4, b"from the dead")
        await until(lambda: bool(told.lost))
        assert (one.writer.fenced, one.writer.leases_lost, other.writer.fenced) == (1, 1, 0)


async def test_a_call_that_comes_back_to_the_pod_it_has_left_is_not_counted_as_lost(server: Valkey) -> None:
    async with Pods(server.url, lease_s=60.0) as pods:
        one, told = await pods.pod(), Told()
        log = one.begin(KEY, told.ownership())
        fill(log, range(1, 4))
        await written(log, 3)
        assert isinstance(await one.take(KEY, 2, 3, insist=True), Taken)
        log.append(4, b"behind the place from which its client goes on")
        again = one.begin(KEY, Told().ownership(2, 3, 3))
        again.append(4, b"another four")
        await written(again, 4)
        assert not one.writer.pending and isinstance(log, WriteBehind) and log.dead
        assert (one.writer.fenced, one.writer.leases_lost) == (0, 0)


async def test_a_store_that_does_not_say_its_memory_is_used_all_the_same(server: Valkey) -> None:
    async with redis.asyncio.Redis.from_url(server.url) as client:
        await client.execute_command("ACL", "SETUSER", "default", "-info")
    async with Pods(server.url) as pods:
        one = await pods.pod()
        log = one.begin(KEY, Told().ownership())
        fill(log, range(1, 4))
        await written(log, 3)
        assert one.writer.memory == (0, 0) and not one.writer.failures


def test_what_is_written_again_counts_as_waiting() -> None:
    for trust_after_s in (0.0, 30.0):  # the whole call is written then; or those records that it has lost
        log = WriteBehind(KEY, Told().ownership(), trust_after_s, lambda log: None)
        fill(log, range(1, 4))
        log.wrote(log.batch(1 << 20))
        assert log.waiting_since is None
        assert log.seen(1) and log.waiting_since is not None
        log.wrote(log.batch(1 << 20))
        assert log.waiting_since is None and not log.dirty
