"""The store of many pods: Redis, written behind the calls' backs. The only module that knows redis-py.

One task writes what all calls of the process have to say, in pipelines, and says that the pod is there. Where Redis is
slow, away, full or not the one that it was, calls go on; what was not written is written when it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import redis.asyncio
from redis.exceptions import RedisError, ResponseError

from service.store import scripts
from service.store.directory import Directory, Pod
from service.store.log import Batch, WriteBehind
from service.store.protocol import CallKey, CallLog, Elsewhere, Ownership, StoreUnavailable, Superseded, Taken
from service.store.sealing import Sealer, Unsealable

log = logging.getLogger(__name__)

T = TypeVar("T")

BACKOFF_S, MAX_BACKOFF_S = 0.05, 1.0
BEHIND_AFTER_S = 1.0
"""A store that takes longer has fallen behind, and calls are told."""
MAX_CALLS_PER_PIPELINE = 64


@dataclass(frozen=True)
class RedisOptions:
    """timeout_s: for an answer, and for a connection. lease_s: silence after which a pod counts as gone. retention_s:
    how long a call is kept after it was last written. trust_after_s: as in ``WriteBehind``. name_keys: names in Redis
    are made with the last one, so that they tell nothing of callers; those of tenants, which pods compare, with each.
    """

    url: str
    timeout_s: float
    lease_s: float
    retention_s: float
    trust_after_s: float
    name_keys: tuple[bytes, ...]


class RedisStore:
    """A ``Store``. pod: this one, whose load the directory is told; its ``id`` is this process's alone."""

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
        self._directory = Directory(self._redis, pod, options.lease_s, self._tenant_names)
        self._logs: dict[CallKey, WriteBehind] = {}
        self._ending: list[WriteBehind] = []
        self._news = asyncio.Event()
        self._round = asyncio.Event()
        self._halted = False
        self._writer: asyncio.Task[None] | None = None
        self._next_beat = 0.0
        self._failing_since: float | None = None
        self.behind = False
        """Whether calls have been told that the store does not keep up."""
        self.on_written: Callable[[float], None] = lambda seconds: None
        """Told how long a pipeline of records has taken."""
        self.writes = 0
        self.failures = 0
        self.reconnects = 0
        """Times that it answered again after a failure."""
        self.fenced = 0
        """Writes that it refused, as a newer generation has the call."""
        self.leases_lost = 0
        """Calls that turned out to be another pod's."""
        self.memory = (0, 0)
        """Bytes that the store's server uses, and may use (0: no limit), at the last beat."""

    @property
    def pending(self) -> int:
        """Calls that have something to be written."""
        return sum(log.dirty for log in self._all)

    @property
    def unwritten(self) -> int:
        """Records that are to be written."""
        return sum(log.unwritten for log in self._all)

    @property
    def kept(self) -> int:
        """Records that may still be lost, and are kept here."""
        return sum(log.kept for log in self._all)

    @property
    def lag_s(self) -> float:
        """How long the oldest record has waited to be written."""
        since = [log.waiting_since for log in self._all if log.waiting_since is not None]
        return max(0.0, time.monotonic() - min(since)) if since else 0.0

    @property
    def _all(self) -> tuple[WriteBehind, ...]:
        return (*self._logs.values(), *self._ending)

    async def start(self) -> None:
        self._halted = False
        self._writer = asyncio.create_task(self._run(), name="store writer")

    async def stop(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.pending:
                    self._round.clear()
                    await self._round.wait()
        await self.halt()
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            await self._directory.leave()
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            await self._redis.aclose()

    async def halt(self) -> None:
        """Write nothing more. Idempotent."""
        writer, self._writer = self._writer, None
        if writer is not None:
            self._halted = True  # redis-py can swallow a cancellation, while it connects
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def drain(self) -> None:
        self._pod.draining = True
        self._next_beat = 0.0
        self._news.set()

    def begin(self, key: CallKey, ownership: Ownership) -> CallLog:
        if (old := self._logs.pop(key, None)) is not None:  # of a call of this name that is over, or was lost
            old.leave()
            self._ending.append(old)
        self._logs[key] = made = WriteBehind(key, ownership, self._options.trust_after_s, self._news.set)
        return made

    async def take(
        self, key: CallKey, generation: int, last_seq: int, *, insist: bool
    ) -> Taken | Elsewhere | Superseded | None:
        if not insist and (address := await self._asked(self._warm_elsewhere(key))):
            return Elsewhere(address)
        arguments = (generation, self._pod.id, last_seq, self._ttl_ms)
        taking = self._redis.eval(scripts.TAKE, 2, *self._names(key), *arguments)
        kind, held, stored = await self._asked(taking)
        if kind == b"gone":
            return None
        if kind == b"superseded":
            return Superseded(int(held))
        pairs = zip(stored[::2], stored[1::2], strict=True)
        return Taken(int(held), self._unsealed(key, {int(seq): record for seq, record in pairs}))

    def calls_elsewhere(self, tenant: str) -> int:
        return self._directory.calls_elsewhere(tenant)

    def opened(self, tenant: str) -> None:
        self._directory.opens.opened(tenant)

    def opens_elsewhere(self, tenant: str, since: float) -> Iterator[tuple[float, int]]:
        return self._directory.opens.elsewhere(tenant, since)

    async def successor(self) -> str:
        return await self._asked(self._directory.successor())

    async def forget(self, tenant: str, caller: str) -> int:
        index = self._caller_index(tenant, caller)
        names = await self._asked(self._redis.smembers(index))
        for name in names:
            lease, records = _keys(name_of(name))
            arguments = ("", "", self._ttl_ms, "forgotten")
            await self._asked(self._redis.eval(scripts.CLOSE, 2, lease, records, *arguments))
        await self._asked(self._redis.delete(index))
        return len(names)

    async def _asked(self, answer: Awaitable[T]) -> T:
        """Raises StoreUnavailable for whatever keeps Redis from answering in time."""
        try:
            async with asyncio.timeout(self._options.timeout_s):
                return await answer
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailable(type(error).__name__) from error

    async def _warm_elsewhere(self, key: CallKey) -> str:
        """Address of another pod that has the call and is there; empty where there is none."""
        lease, _ = self._names(key)
        (pod,) = await self._redis.hmget(lease, ["pod"])
        if pod is None or name_of(pod) == self._pod.id:
            return ""
        address = await self._directory.address_of(name_of(pod))
        return "" if address == self._pod.address else address  # of the process before this one

    def _unsealed(self, key: CallKey, stored: Mapping[int, bytes]) -> dict[int, bytes]:
        """What can be read; the rest is as if it had been lost."""
        found = {}
        for seq, sealed in stored.items():
            try:
                found[seq] = self._sealer.unseal(sealed, self._place(key, seq))
            except Unsealable as error:
                log.error("a record cannot be read", extra={"session": key.session, "seq": seq, "cause": str(error)})
        return found

    # Writing behind

    async def _run(self) -> None:
        backoff = BACKOFF_S
        while not self._halted:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self._next_beat - time.monotonic())):
                    await self._news.wait()
            self._news.clear()
            began = time.monotonic()
            try:
                await self._work()
            except (RedisError, OSError, TimeoutError) as error:
                self._failed(began, error)
                await asyncio.sleep(backoff * random.uniform(0.5, 1.0))
                backoff = min(backoff * 2, MAX_BACKOFF_S)
                self._news.set()
            except Exception:
                log.exception("the store's writer failed")
                await asyncio.sleep(MAX_BACKOFF_S)
                self._news.set()
            else:
                backoff = BACKOFF_S
                self._succeeded(began)

    async def _work(self) -> None:
        """One round: the heartbeat where it is due, then whatever there is to write."""
        if time.monotonic() >= self._next_beat:
            late = self._next_beat and time.monotonic() - self._next_beat > self._options.lease_s
            await self._directory.beat()
            await self._check_leases()
            await self._read_memory()
            if late:
                log.warning("the lease had run out", extra={"calls": len(self._logs)})
            self._next_beat = time.monotonic() + self._options.lease_s / 3
        for logs in (
            list(self._ending),
            list(self._logs.values()),
        ):  # what ends first: its name may be another's by now
            dirty = [log_ for log_ in logs if log_.dirty]
            for first in range(0, len(dirty), MAX_CALLS_PER_PIPELINE):
                await self._write(dirty[first : first + MAX_CALLS_PER_PIPELINE])
        self._settle()
        self._round.set()
        if self.pending:
            self._news.set()

    async def _write(self, logs: list[WriteBehind]) -> None:
        """One pipeline. What one call's records meet harms no other's."""
        batches = [(log, log.batch()) for log in logs]
        pipeline = self._redis.pipeline(transaction=False)
        for log_ in logs:
            if log_.ownership.caller:  # first, and each time: what is stored of a caller can always be found
                index = self._caller_index(log_.key.tenant, log_.ownership.caller)
                pipeline.sadd(index, self._name(log_.key))
                pipeline.pexpire(index, self._ttl_ms)
        for log_, batch in batches:
            pipeline.eval(scripts.APPEND, 2, *self._names(log_.key), *self._arguments(log_, batch))
        began = time.monotonic()
        answers = await pipeline.execute(raise_on_error=False)
        self.on_written(time.monotonic() - began)
        broken = next((answer for answer in answers if isinstance(answer, Exception)), None)
        for (log_, batch), answer in zip(batches, answers[-len(batches) :], strict=True):
            if not isinstance(answer, Exception):
                self.writes += 1
                await self._take_answer(log_, batch, answer[0], int(answer[1]))
        if broken is not None:
            raise broken

    async def _take_answer(self, log_: WriteBehind, batch: Batch, kind: bytes, number: int) -> None:
        match kind:
            case b"ok":
                log_.wrote(batch)
                if log_.closing and not log_.batch().entries:
                    await self._close(log_)
            case b"hole":
                log.warning("the store has lost records", extra={"session": log_.key.session, "top": number})
                log_.found_hole(number)
            case b"gone":
                log_.lose()
                log_.ownership.on_durable(False)
            case _:
                self.fenced += 1
                self._lose(log_, number)

    async def _close(self, log_: WriteBehind) -> None:
        arguments = (log_.ownership.generation, self._pod.id, self._ttl_ms, log_.closing)
        await self._redis.eval(scripts.CLOSE, 2, *self._names(log_.key), *arguments)
        log_.lose()

    def _lose(self, log_: WriteBehind, generation: int) -> None:
        log_.lose()
        self.leases_lost += 1
        log_.ownership.on_lost(generation > 1 or log_.ownership.generation > 1)

    async def _check_leases(self) -> None:
        """Of the calls that write nothing: which another pod has taken, and what the store has forgotten or lost."""
        logs = [log_ for log_ in self._logs.values() if not log_.dead]
        pipeline = self._redis.pipeline(transaction=False)
        for log_ in logs:
            lease, records = self._names(log_.key)
            pipeline.hmget(lease, ["gen", "pod", "top", "closed"])
            pipeline.exists(records)
        answers = await pipeline.execute() if logs else []
        for log_, (gen, pod, top, closed), there in zip(logs, answers[::2], answers[1::2], strict=True):
            mine = log_.ownership.generation
            if closed is not None:
                continue  # by whoever forgets a caller, or a call of the same name before this one: ``APPEND`` knows
            if gen is not None and (int(gen) > mine or (int(gen) == mine and name_of(pod) != self._pod.id)):
                self._lose(log_, int(gen))
            elif log_.seen(int(top or 0) if there else 0):
                log.warning("the store has lost records", extra={"session": log_.key.session})

    async def _read_memory(self) -> None:
        """For metrics alone: whoever may not ask knows nothing of it."""
        with contextlib.suppress(ResponseError):
            found = await self._redis.info("memory")
            self.memory = int(found.get("used_memory", 0)), int(found.get("maxmemory", 0))

    def _settle(self) -> None:
        """Calls that have left are kept until all of theirs is written."""
        for key, log_ in list(self._logs.items()):
            if log_.dead or log_.left or log_.closing:
                del self._logs[key]
                self._ending.append(log_)
        self._ending = [log_ for log_ in self._ending if log_.dirty]

    def _failed(self, began: float, error: Exception) -> None:
        self.failures += 1
        self._failing_since = self._failing_since or began
        if not self.behind and time.monotonic() - self._failing_since > BEHIND_AFTER_S:
            log.error("the store does not keep up", extra={"cause": f"{type(error).__name__}: {error}"})
            self._tell(False)

    def _succeeded(self, began: float) -> None:
        """A round has written all that was to be written when it began."""
        self.reconnects += self._failing_since is not None
        self._failing_since = None
        slow = time.monotonic() - began > BEHIND_AFTER_S
        if self.behind and not slow:
            log.info("the store has caught up")
            self._tell(True)
        elif not self.behind and slow:
            log.error("the store does not keep up", extra={"cause": "slow"})
            self._tell(False)

    def _tell(self, durable: bool) -> None:
        self.behind = not durable
        for log_ in list(self._logs.values()):
            if not log_.dead:
                log_.ownership.on_durable(durable)

    def _arguments(self, log_: WriteBehind, batch: Batch) -> list[Any]:
        own, whole = log_.ownership, "1" if batch.whole else "0"
        found: list[Any] = [own.generation, self._pod.id, own.base, batch.after, self._ttl_ms, whole]
        for seq, record in batch.entries:
            found += [seq, self._sealer.seal(record, self._place(log_.key, seq))]
        return found

    # Names

    @property
    def _ttl_ms(self) -> int:
        return round(self._options.retention_s * 1000)

    def _names(self, key: CallKey) -> tuple[str, str]:
        return _keys(self._name(key))

    def _name(self, key: CallKey) -> str:
        return self._hidden("call", key.tenant, key.session)

    def _caller_index(self, tenant: str, caller: str) -> str:
        return f"firstword:caller:{self._hidden('caller', tenant, caller)}"

    def _tenant_names(self, tenant: str) -> list[str]:
        return [_hidden(key, "tenant", tenant) for key in self._options.name_keys]

    def _hidden(self, *parts: str) -> str:
        return _hidden(self._options.name_keys[-1], *parts)

    def _place(self, key: CallKey, seq: int) -> bytes:
        return f"{self._name(key)}:{seq}".encode()


def _hidden(key: bytes, *parts: str) -> str:
    return hmac.new(key, "\0".join(parts).encode(), hashlib.sha256).hexdigest()[:40]


def _keys(name: str) -> tuple[str, str]:
    """Of the lease and of the log, in one slot of a cluster."""
    return f"firstword:{{{name}}}:lease", f"firstword:{{{name}}}:log"


def name_of(value: bytes | str) -> str:
    """What Redis calls something."""
    return value.decode() if isinstance(value, bytes) else value


def new_pod_id() -> str:
    """Of one process; one that is started again is another pod."""
    return secrets.token_hex(8)
