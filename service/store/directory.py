"""Which pods there are, as they say themselves: address, load, whether they will go. Silent ones are forgotten.

With their load pods say whose calls they hold and how many they open, so that a tenant's limits hold for all of them
together. Nobody waits for that where a call is opened: what others hold is known from the last beat.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis.asyncio

from service.store.opens import SharedOpens

PODS = "firstword:pods"


@dataclass
class Pod:
    """address: at which clients reach this pod and no other; empty: they cannot. load: (calls that it holds, calls that
    it can hold). tenants: how many it holds of each tenant.
    """

    id: str
    address: str
    load: Callable[[], tuple[int, int]]
    tenants: Callable[[], Mapping[str, int]] = dict
    draining: bool = False


class Directory:
    """lease_s: silence after which a pod is forgotten. names: those of a tenant in Redis, as in ``SharedOpens``."""

    def __init__(
        self, client: redis.asyncio.Redis, pod: Pod, lease_s: float, names: Callable[[str], Sequence[str]]
    ) -> None:
        self._redis = client
        self._pod = pod
        self._lease_s = lease_s
        self._lease_ms = round(lease_s * 1000)
        self._names = names
        self.opens = SharedOpens(names)
        self._elsewhere: list[dict[str, int]] = []
        """What each other pod holds, by the names of tenants."""
        self._counted_at = float("-inf")

    def calls_elsewhere(self, tenant: str) -> int:
        """How many calls of a tenant the other pods held at the last beat; 0 where that is too long ago."""
        if time.monotonic() - self._counted_at > self._lease_s:
            return 0
        names = self._names(tenant)
        return sum(max(held.get(name, 0) for name in names) for held in self._elsewhere)

    async def beat(self) -> None:
        """Say that this pod is there, and hear what the others hold."""
        calls, most = self._pod.load()
        name = _name(self._pod.id)
        told: dict[Any, Any] = {
            "address": self._pod.address,
            "calls": calls,
            "room": most - calls,
            "draining": int(self._pod.draining),
        }
        held: dict[Any, Any] = {
            name: count for tenant, count in self._pod.tenants().items() for name in self._names(tenant)
        }
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.hset(name, mapping=told)
        pipeline.pexpire(name, self._lease_ms)
        pipeline.delete(_tenants(self._pod.id))
        if held:
            pipeline.hset(_tenants(self._pod.id), mapping=held)
            pipeline.pexpire(_tenants(self._pod.id), self._lease_ms)
        pipeline.sadd(PODS, self._pod.id)
        pipeline.smembers(PODS)
        self.opens.ask(pipeline)
        *_, pods, before, now = await pipeline.execute()
        self.opens.answered((before, now))
        await self._count({_text(pod) for pod in pods} - {self._pod.id})

    async def _count(self, pods: set[str]) -> None:
        """Hear what these pods hold, and forget those that are gone: each would be asked for with every beat."""
        pipeline = self._redis.pipeline(transaction=False)
        for pod in pods:
            pipeline.exists(_name(pod))
            pipeline.hgetall(_tenants(pod))
        answers = await pipeline.execute() if pods else []
        elsewhere = [{_text(tenant): int(count) for tenant, count in held.items()} for held in answers[1::2] if held]
        self._elsewhere, self._counted_at = elsewhere, time.monotonic()
        if gone := [pod for pod, there in zip(pods, answers[::2], strict=True) if not there]:
            await self._redis.srem(PODS, *gone)  # one that was only silent comes back with its next beat

    async def leave(self) -> None:
        """This pod is going."""
        await self._redis.delete(_name(self._pod.id), _tenants(self._pod.id))
        await self._redis.srem(PODS, self._pod.id)

    async def address_of(self, pod: str) -> str:
        """Empty where the pod is gone, is about to go, or cannot be reached by itself."""
        address, draining = await self._redis.hmget(_name(pod), ["address", "draining"])
        return "" if address is None or _text(draining) != "0" else _text(address)

    async def rooms(self) -> dict[str, int]:
        """How many calls there is room for at each address but this pod's, where there is any."""
        pods = sorted(await self._redis.smembers(PODS))
        pipeline = self._redis.pipeline(transaction=False)
        for pod in pods:
            pipeline.hmget(_name(_text(pod)), ["address", "draining", "room"])
        rooms = {}
        for pod, (address, draining, room) in zip(pods, await pipeline.execute() if pods else (), strict=True):
            if address is None:
                await self._redis.srem(PODS, pod)
            elif address and _text(draining) == "0" and int(room) > 0 and _text(pod) != self._pod.id:
                rooms[_text(address)] = int(room)
        return rooms


def spread(rooms: Mapping[str, int]) -> Iterator[str]:
    """Addresses for one call after the other, without an end, each as often as its part of the room; empty ones where
    there is none. By D'Hondt's method: no address has more than it has room for while another has some.
    """
    order, given = random.sample(sorted(rooms), len(rooms)), Counter[str]()  # pods that go together begin anywhere
    while order:
        best = max(order, key=lambda address: rooms[address] / (given[address] + 1))
        given[best] += 1
        yield best
    while True:
        yield ""


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""


def _name(pod: str) -> str:
    return f"firstword:pod:{pod}"


def _tenants(pod: str) -> str:
    return f"firstword:pod:{pod}:tenants"
