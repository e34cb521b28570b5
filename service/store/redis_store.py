"""The store of many pods: Redis, written behind the calls' backs. This and what it is put together of know redis-py."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import redis.asyncio
from redis.exceptions import RedisError

from service.portions import in_portions
from service.store import scripts
from service.store.demotion import leave_if_demoted
from service.store.directory import Directory, Pod, spread
from service.store.naming import Naming, keys_of, moment, name_of
from service.store.protocol import CallKey, CallLog, Elsewhere, Ownership, StoreUnavailable, Superseded, Taken
from service.store.sealing import Sealer, Unsealable
from service.store.writer import Writer

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class RedisOptions:
    """timeout_s: for an answer, and for a connection. lease_s: silence after which a pod counts as gone. retention_s:
    how long a call is kept after it was last written. trust_after_s: as in ``WriteBehind``. name_keys: names in Redis
    are made with the last one, so that they tell nothing of callers; those of tenants, which pods compare, with each.
    """

    url: str = field(repr=False)
    timeout_s: float
    lease_s: float
    retention_s: float
    trust_after_s: float
    name_keys: tuple[bytes, ...] = field(repr=False)


class RedisStore:
    """A ``Store``. pod: this one, whose load the directory is told; its ``id`` is this process's alone. writer: writes
    what calls have to say.
    """

    keeps = True

    def __init__(self, options: RedisOptions, pod: Pod, sealer: Sealer) -> None:
        self._options = options
        self._pod = pod
        self._sealer = sealer
        self._redis = redis.asyncio.Redis.from_url(
            options.url,
            socket_timeout=options.timeout_s,
            socket_connect_timeout=options.timeout_s,
            retry=None,  # what failed is tried again here, where more may have come meanwhile
            protocol=2,
        )
        self._naming = Naming(options.name_keys)
        self._directory = Directory(self._redis, pod, options.lease_s, self._naming.tenants)
        self.writer = Writer(
            self._redis,
            self._directory,
            self._naming,
            sealer,
            pod.id,
            lease_s=options.lease_s,
            retention_s=options.retention_s,
            trust_after_s=options.trust_after_s,
        )

    async def start(self) -> None:
        self.writer.start()

    async def stop(self, timeout_s: float) -> None:
        await self.writer.finish(timeout_s)
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            await self._directory.leave()
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            await self._redis.aclose()

    async def halt(self) -> None:
        """Write nothing more. Idempotent."""
        await self.writer.halt()

    async def drain(self) -> None:
        self._pod.draining = True
        self.writer.beat_now()

    def begin(self, key: CallKey, ownership: Ownership) -> CallLog:
        return self.writer.begin(key, ownership)

    async def take(
        self, key: CallKey, generation: int, last_seq: int, *, insist: bool, opened_at: float = 0.0
    ) -> Taken | Elsewhere | Superseded | None:
        if not insist and (address := await self._asked(self._warm_elsewhere(key))):
            return Elsewhere(address)
        arguments = (generation, self._pod.id, last_seq, self._ttl_ms, moment(opened_at))
        taking = self._redis.eval(scripts.TAKE, 2, *self._naming.keys_of(key), *arguments)
        kind, held, stored = await self._asked(taking)
        match kind:
            case b"taken":
                pairs = zip(stored[::2], stored[1::2], strict=True)
                return Taken(int(held), await self._unsealed(key, {int(seq): record for seq, record in pairs}))
            case b"superseded":
                return Superseded(int(held))
            case b"gone":
                return None
        raise StoreUnavailable(f"{kind!r} is no answer")

    async def release(self, key: CallKey, generation: int) -> None:
        await self._asked(self._redis.eval(scripts.RELEASE, 2, *self._naming.keys_of(key), generation, self._pod.id))

    def calls_elsewhere(self, tenant: str) -> int:
        return self._directory.calls_elsewhere(tenant)

    def opened(self, tenant: str) -> None:
        self._directory.opens.opened(tenant)

    def opens_elsewhere(self, tenant: str, since: float) -> Iterator[tuple[float, int]]:
        return self._directory.opens.elsewhere(tenant, since)

    async def successors(self) -> Iterator[str]:
        return spread(await self._asked(self._directory.rooms()))

    async def forget(self, tenant: str, caller: str) -> int:
        index = self._naming.callers(tenant, caller)
        forgotten = 0
        for name in await self._asked(self._redis.smembers(index)):
            lease, records = keys_of(name_of(name))
            arguments = ("", "", self._ttl_ms, "forgotten", index)  # the name may be another caller's call's by now
            forgotten += int(await self._asked(self._redis.eval(scripts.CLOSE, 2, lease, records, *arguments)))
        await self._asked(self._redis.delete(index))
        return forgotten

    async def _asked(self, answer: Awaitable[T]) -> T:
        """Raises StoreUnavailable for whatever keeps Redis from answering in time."""
        try:
            async with asyncio.timeout(self._options.timeout_s):
                return await answer
        except (RedisError, OSError, TimeoutError) as error:
            await leave_if_demoted(self._redis, error)
            raise StoreUnavailable(type(error).__name__) from error

    async def _warm_elsewhere(self, key: CallKey) -> str:
        """Address of another pod that has the call and is there; empty where there is none."""
        lease, _ = self._naming.keys_of(key)
        (pod,) = await self._redis.hmget(lease, ["pod"])
        if pod is None or name_of(pod) == self._pod.id:
            return ""
        address = await self._directory.address_of(name_of(pod))
        return "" if address == self._pod.address else address  # of the process before this one

    async def _unsealed(self, key: CallKey, stored: Mapping[int, bytes]) -> dict[int, bytes]:
        """What can be read; the rest is as if it had been lost."""
        found = {}
        async for seq, sealed in in_portions(stored.items()):
            try:
                found[seq] = self._sealer.unseal(sealed, self._naming.place(key, seq))
            except Unsealable as error:
                log.error("a record cannot be read", extra={"session": key.session, "seq": seq, "cause": str(error)})
        return found

    @property
    def _ttl_ms(self) -> int:
        return round(self._options.retention_s * 1000)
