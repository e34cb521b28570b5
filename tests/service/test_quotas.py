"""What a tenant may hold counts on all servers of a store, which hear of each other's calls in the background."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
import redis

from firstword import Client, ServiceBusy
from service.store import RedisStore, Store
from tests.e2e.pods import SECRET
from tests.firstword.receptionist import LINES, SYSTEM
from tests.service.pods import LocalPod, client_of, local_pods
from tests.service.store.test_redis_store import Pods
from tests.service.store.valkey import Valkey, valkey
from tests.service.waiting import until

TENANT = "a tenant's name"


@pytest.fixture
def server() -> Iterator[Valkey]:
    with valkey() as running:
        yield running


def beats(store: Store) -> bool:
    """Whether it has heard of all that was opened before, at its last beat."""
    assert isinstance(store, RedisStore)
    return store._directory.opens._known is not None


def heard(store: Store, tenant: str) -> int:
    """How many calls it knows to have been opened at other pods in the last minute."""
    return sum(number for _, number in store.opens_elsewhere(tenant, float("-inf")))


async def test_pods_hear_what_the_others_hold_as_long_as_these_are_there(server: Valkey) -> None:
    held = {TENANT: 3, "": 1}
    async with Pods(server.url) as pods:
        one = await pods.pod(tenants={TENANT: 8})
        other, third = await pods.pod(tenants=held), await pods.pod(tenants={TENANT: 2})
        await until(lambda: one.calls_elsewhere(TENANT) == 5)
        await until(lambda: third.calls_elsewhere(TENANT) == 11)
        await until(lambda: third.calls_elsewhere("") == 1)
        assert one.calls_elsewhere("who has none") == 0
        held.clear()
        await until(lambda: one.calls_elsewhere(TENANT) == 2 and one.calls_elsewhere("") == 0)
        held[TENANT] = 4
        await until(lambda: one.calls_elsewhere(TENANT) == 6)
        await other.halt()  # as one that dies: it is forgotten with its lease
        await until(lambda: one.calls_elsewhere(TENANT) == 2)
        await third.stop(0.0)
        await until(lambda: one.calls_elsewhere(TENANT) == 0)


async def test_a_store_that_is_away_counts_nobody(server: Valkey) -> None:
    async with Pods(server.url) as pods:
        one, _ = await pods.pod(), await pods.pod(tenants={TENANT: 3})
        await until(lambda: one.calls_elsewhere(TENANT) == 3)
        server.kill()
        await until(lambda: one.calls_elsewhere(TENANT) == 0)
        server.start()
        await until(lambda: one.calls_elsewhere(TENANT) == 3)


async def test_counts_agree_while_keys_rotate(server: Valkey) -> None:
    """Some servers have the new list of keys, some the one before: first with a key more, then without the oldest."""
    lists = (b"old",), (b"new", b"old"), (b"new",)
    for before, after in pairwise(lists):
        async with Pods(server.url, name_keys=before) as old, Pods(server.url, name_keys=after) as new:
            one, other = await old.pod(tenants={TENANT: 3}), await new.pod(tenants={TENANT: 5})
            await until(lambda: one.calls_elsewhere(TENANT) == 5 and other.calls_elsewhere(TENANT) == 3)  # noqa: B023
            await until(lambda: beats(one) and beats(other))  # noqa: B023
            one.opened(TENANT)
            await until(lambda: heard(other, TENANT) == 1)  # noqa: B023
            other.opened(TENANT)
            await until(lambda: heard(one, TENANT) == 1)  # noqa: B023
            assert heard(other, TENANT) == 1


async def test_the_ids_of_dead_servers_leave_the_store(server: Valkey) -> None:
    async with Pods(server.url) as pods:
        one, other, third = await pods.pod(), await pods.pod(), await pods.pod(tenants={TENANT: 1})
        with redis.Redis.from_url(server.url) as client:
            await until(lambda: client.scard("firstword:pods") == 3)
            await other.halt()
            await until(lambda: client.smembers("firstword:pods") == {p._pod.id.encode() for p in (one, third)})
            await third.stop(0.0)
            await until(lambda: client.smembers("firstword:pods") == {one._pod.id.encode()})
            assert not client.keys(f"firstword:pod:{third._pod.id}*")
            await other.start()  # as one that was frozen
            await until(lambda: client.scard("firstword:pods") == 2)


async def test_no_tenants_name_is_in_the_store(server: Valkey) -> None:
    async with Pods(server.url) as pods:
        one, _ = await pods.pod(), await pods.pod(tenants={TENANT: 3})
        await until(lambda: one.calls_elsewhere(TENANT) == 3)
        one.opened(TENANT)
        with redis.Redis.from_url(server.url) as client:
            await until(lambda: bool(client.keys("firstword:opens:*")))
            hashes = [*client.keys("*:tenants"), *client.keys("firstword:opens:*")]
            found = b" ".join([*client.keys(), *(field for key in hashes for field in client.hgetall(key))])
        assert b":tenants" in found and TENANT.encode() not in found


async def test_a_limit_holds_for_all_servers_together_and_keeps_nobody_from_coming_back(server: Valkey) -> None:
    sections = {"admission": {"max_calls_per_tenant": 2}, "resume": {"keep_s": 60.0}}
    async with (
        local_pods(2, server.url, lease_s=0.6, sections=sections) as (one, other),
        client_of([one]) as at_one,
        client_of([other]) as at_other,
        client_of([one, other], resume_timeout_s=30.0) as anywhere,
        at_other.call(system=SYSTEM),
        anywhere.call(system=SYSTEM, seed=5, max_tokens=8) as moving,
    ):
        await until(lambda: one.store.calls_elsewhere("") + len(one.sessions) == 2)
        with pytest.raises(ServiceBusy, match="2 calls of this tenant are open, of at most 2") as refused:
            await at_one.call(system=SYSTEM).__aenter__()
        assert refused.value.reason == "TENANT_TOO_MANY_CALLS"
        held_at, goes_to = (one, other) if moving.opened.session_id in one.sessions else (other, one)
        await until(lambda: goes_to.store.calls_elsewhere("") > 0)
        held_at.lines.lead_to(0)
        held_at.lines.cut_all()  # its calls still count there
        turn = await moving.final(LINES[0])
        await turn.run()
        assert moving.opened.session_id in goes_to.sessions and moving.resumes


@asynccontextmanager
async def two_that_count(server: Valkey, max_opens: int) -> AsyncIterator[tuple[Sequence[LocalPod], Sequence[Client]]]:
    """Pods that let in so many opens a minute and have heard of each other, and a client of each."""
    sections = {"admission": {"max_opens_per_minute_per_tenant": max_opens}}
    async with (
        local_pods(2, server.url, lease_s=0.6, sections=sections) as pods,
        client_of([pods[0]]) as at_one,
        client_of([pods[1]]) as at_other,
    ):
        await until(lambda: all(beats(pod.store) for pod in pods))
        yield pods, (at_one, at_other)


async def test_opens_a_minute_are_counted_on_all_servers_together(server: Valkey) -> None:
    async with two_that_count(server, max_opens=3) as ((one, other), (at_one, at_other)):
        for _ in range(2):
            async with at_other.call(system=SYSTEM):
                pass
        await until(lambda: heard(one.store, "") == 2)
        async with at_one.call(system=SYSTEM):
            pass
        with pytest.raises(ServiceBusy, match="more than 3 calls a minute") as refused:
            await at_one.call(system=SYSTEM).__aenter__()
        assert refused.value.reason == "TENANT_TOO_MANY_OPENS"
        await until(lambda: heard(other.store, "") == 1)  # a refused one is not told, nor what is one's own
        with pytest.raises(ServiceBusy, match="more than 3 calls a minute"):
            await at_other.call(system=SYSTEM).__aenter__()


async def test_while_the_store_is_away_each_server_counts_its_own_opens(server: Valkey) -> None:
    async with two_that_count(server, max_opens=1) as ((one, other), (at_one, at_other)):
        server.kill()
        for client in (at_one, at_other):
            async with client.call(system=SYSTEM):
                pass
            with pytest.raises(ServiceBusy, match="more than 1 calls a minute"):
                await client.call(system=SYSTEM).__aenter__()
        server.start()
        await until(lambda: beats(one.store) and beats(other.store))


async def test_opens_are_heard_by_each_pod_once_and_not_by_one_that_comes_later(server: Valkey) -> None:
    async with Pods(server.url) as pods:
        one, other = await pods.pod(), await pods.pod()
        await until(lambda: beats(one) and beats(other))
        for pod in (one, one, other):
            pod.opened(TENANT)
        one.opened("another")
        await until(lambda: heard(other, TENANT) == 2 and heard(one, TENANT) == 1 and heard(other, "another") == 1)
        later = await pods.pod()
        await until(lambda: beats(later))
        other.opened(TENANT)
        await until(lambda: heard(later, TENANT) == 1 and heard(one, TENANT) == 2)
        assert heard(other, TENANT) == 2 and heard(one, "another") == 0


async def test_a_call_that_is_refused_all_the_same_costs_nobody_theirs(server: Valkey) -> None:
    """Whoever may come back gives way to a new call only where that finds room by it."""
    sections = {"admission": {"max_calls_per_tenant": 2}, "resume": {"keep_s": 60.0}}
    async with (
        local_pods(1, server.url, lease_s=0.6, sections=sections) as (one,),
        Pods(server.url, name_keys=(SECRET.encode(),)) as pods,
        client_of([one]) as client,
        client_of([one], resume_timeout_s=0.0) as leaving,
    ):
        held: dict[str, int] = {"": 2}
        async with leaving.call(system=SYSTEM):
            one.lines.cut_all()
            await until(lambda: [call.attended for call in one.services.live.values()] == [False])  # type: ignore[union-attr]
            await pods.pod(tenants=held)
            await until(lambda: one.store.calls_elsewhere("") == 2)
            with pytest.raises(ServiceBusy):
                await client.call(system=SYSTEM).__aenter__()
            assert one.sessions
            held[""] = 1
            await until(lambda: one.store.calls_elsewhere("") == 1)
            async with client.call(system=SYSTEM) as call:
                assert one.sessions == {call.opened.session_id}
