"""Batches of many calls' records on their way to Redis, and its answers to them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import redis.asyncio
from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.store import scripts
from service.store.log import Batch, WriteBehind
from service.store.naming import Naming, moment
from service.store.sealing import Sealer

MAX_CALLS_PER_PIPELINE = 64
MIN_PIPELINE_BYTES, MAX_PIPELINE_BYTES = 16 << 10, 512 << 10
"""Of records. One that takes longer than the store may take is tried again with half as many, and later ones grow."""
MAX_BATCH_BYTES = 64 << 10
"""Of one call in a pipeline."""
SEALED_AT_ONCE_BYTES = 64 << 10
"""What is sealed before others have their turn in the event loop."""


class Sealed(NamedTuple):
    """What a call has to say, as it goes to the store. script: ``APPEND``, or ``CLOSE``, with its arguments."""

    log: WriteBehind
    batch: Batch
    script: str
    arguments: Sequence[Any]


class Pipelines:
    """ttl_ms: how long a call is kept after it was last written. has_its_name: whether no later call has the name of
    this one here. on_written: told how long a pipeline has taken, in seconds.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        naming: Naming,
        sealer: Sealer,
        pod_id: str,
        ttl_ms: int,
        *,
        has_its_name: Callable[[WriteBehind], bool],
        on_written: Callable[[float], None],
    ) -> None:
        self._redis = client
        self._naming = naming
        self._sealer = sealer
        self._pod_id = pod_id
        self._ttl_ms = ttl_ms
        self._has_its_name = has_its_name
        self._on_written = on_written
        self._room = MAX_PIPELINE_BYTES
        """What a pipeline may hold now."""
        self.failed_together: frozenset[WriteBehind] = frozenset()
        """Those of the last pipeline that failed as a whole."""

    async def next(self, due: deque[WriteBehind], refused: dict[WriteBehind, Exception]) -> list[Sealed]:
        """What goes into one pipeline. A whole call begins another one, as it takes long to be written down, and may be
        more than the store takes in time, which is to hold nobody else up. A call that cannot be written down is added
        to ``refused``.
        """
        found: list[Sealed] = []
        size = at_once = 0
        while due and size < self._room and len(found) < MAX_CALLS_PER_PIPELINE:
            if not due[0].dirty:  # any more
                due.popleft()
                continue
            if found and due[0].to_be_whole:
                break
            log_ = due.popleft()
            try:
                sealed = self._sealed(log_, min(MAX_BATCH_BYTES, self._room - size))
            except Exception as error:  # a fault of this call alone, for which no other one is to wait
                refused[log_] = error
                await asyncio.sleep(0)
                continue
            found.append(sealed)
            size += sealed.batch.size
            at_once += sealed.batch.size
            if at_once >= SEALED_AT_ONCE_BYTES:
                at_once = 0
                await asyncio.sleep(0)
        return found

    async def write(self, batches: Sequence[Sealed], refused: dict[WriteBehind, Exception]) -> list[tuple[Sealed, Any]]:
        """One pipeline; returns what the store answers. What it answers to one call with an error harms no other: it is
        added to ``refused``.
        """
        pipeline, owners = self._redis.pipeline(transaction=False), list[WriteBehind]()
        for log_, _, script, _ in batches:
            if script == scripts.APPEND and log_.ownership.caller:
                # First, and each time: what is stored of a caller can always be found.
                index = self._naming.callers(log_.key.tenant, log_.ownership.caller)
                pipeline.sadd(index, self._naming.call(log_.key))
                pipeline.pexpire(index, self._ttl_ms)
                owners += [log_, log_]
        for log_, _, script, arguments in batches:
            pipeline.eval(script, 2, *self._naming.keys_of(log_.key), *arguments)
            owners.append(log_)
        answers = await self._answers(pipeline, batches)
        refused |= {
            owner: answer for owner, answer in zip(owners, answers, strict=True) if isinstance(answer, Exception)
        }
        taken = zip(batches, answers[-len(batches) :], strict=True)
        return [(sealed, answer) for sealed, answer in taken if sealed.log not in refused]

    async def close(self, log_: WriteBehind) -> bool:
        """Close a call by itself; false: another pod has it."""
        keys, arguments = self._naming.keys_of(log_.key), self._closing_arguments(log_)
        return bool(await self._redis.eval(scripts.CLOSE, 2, *keys, *arguments))

    def closes(self, log_: WriteBehind) -> bool:
        """Whether it is closed next. Where a later call has its name here, only ``APPEND`` knows whose the place is."""
        return log_.to_be_closed and self._has_its_name(log_)

    async def _answers(self, pipeline: Pipeline, batches: Sequence[Sealed]) -> list[Any]:
        """Those of the store; from how long they take it is known how much may be asked of it at once."""
        size, began = sum(sealed.batch.size for sealed in batches), time.monotonic()
        try:
            answers = await pipeline.execute(raise_on_error=False)
        except (RedisError, OSError, TimeoutError) as error:
            self.failed_together = frozenset(log_ for log_, *_ in batches)
            if isinstance(error, (RedisTimeoutError, TimeoutError)):
                self._room = max(min(self._room, size) // 2, MIN_PIPELINE_BYTES)
            raise
        if size * 2 > self._room:
            self._room = min(self._room + MIN_PIPELINE_BYTES, MAX_PIPELINE_BYTES)
        self._on_written(time.monotonic() - began)
        return answers

    def _sealed(self, log_: WriteBehind, max_bytes: int) -> Sealed:
        if self.closes(log_):
            return Sealed(log_, Batch(0, ()), scripts.CLOSE, self._closing_arguments(log_))
        batch = log_.batch(max_bytes)
        return Sealed(log_, batch, scripts.APPEND, self._arguments(log_, batch))

    def _closing_arguments(self, log_: WriteBehind) -> Sequence[Any]:
        return log_.ownership.generation, self._pod_id, self._ttl_ms, log_.closing

    def _arguments(self, log_: WriteBehind, batch: Batch) -> list[Any]:
        own, whole, after = log_.ownership, "1" if batch.whole else "0", batch.after
        if not self._has_its_name(log_):
            after = max(after, 0)  # a later call has its name here, whose place it must not take
        opened, index = moment(own.opened_at), self._naming.callers(log_.key.tenant, own.caller) if own.caller else ""
        found: list[Any] = [own.generation, self._pod_id, own.base, after, self._ttl_ms, whole, opened, index]
        for seq, record in batch.entries:
            found += [seq, self._sealer.seal(record, self._naming.place(log_.key, seq))]
        return found
