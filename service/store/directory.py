"""Which pods there are, as they say themselves: address, load, whether they will go. Silent ones are forgotten."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis.asyncio

PODS = "firstword:pods"


@dataclass
class Pod:
    """address: at which clients reach this pod and no other; empty: they cannot. load: (calls that it holds, calls that
    it can hold).
    """

    id: str
    address: str
    load: Callable[[], tuple[int, int]]
    draining: bool = False


class Directory:
    """lease_s: silence after which a pod is forgotten."""

    def __init__(self, client: redis.asyncio.Redis, pod: Pod, lease_s: float) -> None:
        self._redis = client
        self._pod = pod
        self._lease_ms = round(lease_s * 1000)

    async def beat(self) -> None:
        """Say that this pod is there."""
        calls, most = self._pod.load()
        name = _name(self._pod.id)
        told: dict[Any, Any] = {
            "address": self._pod.address,
            "calls": calls,
            "room": most - calls,
            "draining": int(self._pod.draining),
        }
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.hset(name, mapping=told)
        pipeline.pexpire(name, self._lease_ms)
        pipeline.sadd(PODS, self._pod.id)
        await pipeline.execute()

    async def leave(self) -> None:
        """This pod is going."""
        await self._redis.delete(_name(self._pod.id))
        await self._redis.srem(PODS, self._pod.id)

    async def address_of(self, pod: str) -> str:
        """Empty where the pod is gone, is about to go, or cannot be reached by itself."""
        address, draining = await self._redis.hmget(_name(pod), ["address", "draining"])
        return "" if address is None or _text(draining) != "0" else _text(address)

    async def successor(self) -> str:
        """Address of the pod with the most room but for this one; empty where there is none."""
        pods = sorted(await self._redis.smembers(PODS))
        pipeline = self._redis.pipeline(transaction=False)
        for pod in pods:
            pipeline.hmget(_name(_text(pod)), ["address", "draining", "room"])
        best, most = "", 0
        for pod, (address, draining, room) in zip(pods, await pipeline.execute() if pods else (), strict=True):
            if address is None:
                await self._redis.srem(PODS, pod)
            elif _text(draining) == "0" and int(room) > most and _text(pod) != self._pod.id:
                best, most = _text(address), int(room)
        return best


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""


def _name(pod: str) -> str:
    return f"firstword:pod:{pod}"
