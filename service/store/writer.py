"""What the calls of this process have to say, on its way to Redis.

One task writes for all of them, in pipelines, and says that the pod is there. Where Redis is slow, away, full or not
the one that it was, calls go on; what was not written is written when it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from math import inf

import redis.asyncio
from redis.exceptions import RedisError, ResponseError

from service.store import scripts
from service.store.demotion import leave_if_demoted
from service.store.directory import Directory
from service.store.log import Batch, WriteBehind
from service.store.logs import Logs
from service.store.naming import Naming, moment, name_of
from service.store.parking import BACKOFF_S, Doubts, let_go_on, put_off
from service.store.pipelines import Pipelines, Sealed
from service.store.protocol import CallKey, CallLog, Ownership
from service.store.sealing import Sealer

log = logging.getLogger(__name__)

MAX_BACKOFF_S = 1.0
BEHIND_AFTER_S = 1.0
"""A store that takes longer has fallen behind, and calls are told."""


class Writer:
    """Of one process. pod_id, lease_s, retention_s, trust_after_s: as in ``RedisOptions`` and ``Pod``."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        directory: Directory,
        naming: Naming,
        sealer: Sealer,
        pod_id: str,
        *,
        lease_s: float,
        retention_s: float,
        trust_after_s: float,
    ) -> None:
        self._redis = client
        self._directory = directory
        self._naming = naming
        self._pod_id = pod_id
        self._lease_s = lease_s
        self._news = asyncio.Event()
        self._logs = Logs(trust_after_s, self._news.set)
        self._doubts = Doubts(client, pod_id, lease_s)
        self._pipelines = Pipelines(
            client,
            naming,
            sealer,
            pod_id,
            round(retention_s * 1000),
            has_its_name=self._logs.has_its_name,
            on_written=lambda seconds: self.on_written(seconds),
        )
        self._round = asyncio.Event()
        self._halted = False
        self._task: asyncio.Task[None] | None = None
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
        return sum(log.dirty for log in self._logs.all)

    @property
    def parked(self) -> int:
        """Calls that alone cannot be written, and are tried again by themselves."""
        return sum(bool(log.refusals) and log.dirty for log in self._logs.all)

    @property
    def unwritten(self) -> int:
        """Records that are to be written."""
        return sum(log.unwritten for log in self._logs.all)

    @property
    def kept(self) -> int:
        """Records that may still be lost, and are kept here."""
        return sum(log.kept for log in self._logs.all)

    @property
    def lag_s(self) -> float:
        """How long the oldest record has waited to be written."""
        since = [log.waiting_since for log in self._logs.all if log.waiting_since is not None]
        return max(0.0, time.monotonic() - min(since)) if since else 0.0

    def start(self) -> None:
        """Begin to write."""
        self._halted = False
        self._task = asyncio.create_task(self._run(), name="store writer")

    async def finish(self, timeout_s: float) -> None:
        """Write what there is to be written, in so much time, and then nothing more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while any(not log_.refusals for log_ in self._due()):
                    self._round.clear()
                    await self._round.wait()
        await self.halt()

    async def halt(self) -> None:
        """Write nothing more. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            self._halted = True  # redis-py can swallow a cancellation, while it connects
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def beat_now(self) -> None:
        """What the directory says of this pod has changed."""
        self._next_beat = 0.0
        self._news.set()

    def begin(self, key: CallKey, ownership: Ownership) -> CallLog:
        """As of ``Store``."""
        return self._logs.begin(key, ownership)

    async def _run(self) -> None:
        backoff = BACKOFF_S
        while not self._halted:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self._wake_at() - time.monotonic())):
                    await self._news.wait()
            self._news.clear()
            began = time.monotonic()
            try:
                await self._work()
            except (RedisError, OSError, TimeoutError) as error:
                self._failed(began, error)
                await leave_if_demoted(self._redis, error)
                await asyncio.sleep(backoff * random.uniform(0.5, 1.0))
                backoff = min(backoff * 2, MAX_BACKOFF_S)
                self._news.set()
            except Exception as error:
                log.exception("the store's writer failed")
                self._failed(began, error)
                await asyncio.sleep(MAX_BACKOFF_S)
                self._news.set()
            else:
                backoff = BACKOFF_S
                self._succeeded(began)

    async def _work(self) -> None:
        """One round: the heartbeat where it is due, then something of each call that has anything to be written."""
        try:
            await self._beat_if_due()
        except ResponseError:
            await self._only_close()
            raise
        due, refused, taken = deque(self._due()), dict[WriteBehind, Exception](), 0
        while batches := await self._pipelines.next(due, refused):
            taken += await self._write(batches, refused)
            if taken and self._is_slow():
                self._fall_behind("slow")
            await self._beat_if_due()
        self._pipelines.failed_together = frozenset()
        self._logs.settle()
        self._round.set()
        await self._park(refused, others_went=taken > 0)
        if self._due():
            self._news.set()

    async def _only_close(self) -> None:
        """Close what is to be closed, and no more: a store that is full deletes all the same."""
        due = deque(log_ for log_ in self._due() if self._pipelines.closes(log_))
        while batches := await self._pipelines.next(due, {}):
            await self._write(batches, {})
        self._logs.settle()

    async def _beat_if_due(self) -> None:
        if time.monotonic() < self._next_beat:
            return
        late = self._next_beat and time.monotonic() - self._next_beat > self._lease_s
        await self._check_leases()  # first: a pod that was frozen is there again without the calls that others have
        await self._directory.beat()
        await self._read_memory()
        if late:
            log.warning("the lease had run out", extra={"calls": len(self._logs.live)})
        self._next_beat = time.monotonic() + self._lease_s / 3

    def _due(self) -> list[WriteBehind]:
        """What is to be written now. What failed last time comes last, so that it keeps nobody from being written."""
        now = time.monotonic()
        due = [log_ for log_ in self._logs.oldest() if not log_.refusals or log_.retry_at <= now]
        return sorted(due, key=lambda log_: bool(log_.refusals) or log_ in self._pipelines.failed_together)

    def _wake_at(self) -> float:
        """When something is to be done, whether there is news or not."""
        return min((self._next_beat, *(log_.retry_at for log_ in self._logs.oldest() if log_.refusals)))

    async def _write(self, batches: Sequence[Sealed], refused: dict[WriteBehind, Exception]) -> int:
        """One pipeline; returns of how many of its calls the store took records. What it refuses is added to
        ``refused``.
        """
        taken = 0
        for (log_, batch, script, _), answer in await self._pipelines.write(batches, refused):
            self.writes += 1
            if script == scripts.CLOSE:  # which says nothing of what the store takes
                self._closed(log_, bool(answer))
            else:
                taken += answer[0] == b"ok"
                try:
                    await self._take_answer(log_, batch, answer[0], int(answer[1]))
                except ResponseError as error:  # to its being closed, or one that is not known
                    refused[log_] = error
        return taken

    async def _park(self, refused: Mapping[WriteBehind, Exception], *, others_went: bool) -> None:
        """What is refused of single calls waits by itself. Raises where it is the store."""
        fault = await self._doubts.fault(refused.values(), others_went=others_went)
        for log_, error in refused.items():
            if fault is None or not isinstance(error, RedisError):
                self.failures += 1
                put_off(log_, error, tell=not self.behind)
        if fault is not None:
            raise fault

    async def _take_answer(self, log_: WriteBehind, batch: Batch, kind: bytes, number: int) -> None:
        match kind:
            case b"ok":
                log_.wrote(batch)
                if log_.closing and not log_.unwritten:
                    self._closed(log_, await self._pipelines.close(log_))
                let_go_on(log_, tell=not self.behind)
            case b"hole":
                log.warning("the store has lost records", extra={"session": log_.key.session, "top": number})
                log_.found_hole(number)
            case b"gone":
                if number and log_.ownership.caller:  # there is nothing of it to be found any more
                    index = self._naming.callers(log_.key.tenant, log_.ownership.caller)
                    await self._redis.srem(index, self._naming.call(log_.key))
                log_.lose()
                log_.ownership.on_durable(False)
            case b"exists":
                self._lose(log_, taken_over=False)
            case b"lost":
                self.fenced += not log_.left
                self._lose(log_, taken_over=number > 1 or log_.ownership.generation > 1)
            case _:  # of whom nobody knows who has it
                raise ResponseError(f"{kind!r} is no answer")

    def _closed(self, log_: WriteBehind, done: bool) -> None:
        if done:
            log_.lose()
        else:
            self.fenced += not log_.left
            self._lose(log_, taken_over=log_.ownership.generation > 1)

    def _lose(self, log_: WriteBehind, *, taken_over: bool) -> None:
        """Another pod has the call, or, where it was not taken over, another call of its name. One that has
        left is not counted: it may have come back to this pod.
        """
        log_.lose()
        self.leases_lost += not log_.left
        log_.ownership.on_lost(taken_over)

    async def _check_leases(self) -> None:
        """Of the calls that write nothing: which another pod has taken, and what the store has forgotten or lost."""
        logs = [log_ for log_ in self._logs.live if not log_.dead]
        pipeline = self._redis.pipeline(transaction=False)
        for log_ in logs:
            lease, records = self._naming.keys_of(log_.key)
            pipeline.hmget(lease, ["gen", "pod", "top", "closed", "opened"])
            pipeline.exists(records)
        answers = await pipeline.execute(raise_on_error=False) if logs else []
        for log_, held, there in zip(logs, answers[::2], answers[1::2], strict=True):
            if isinstance(held, Exception):
                continue  # where it is not this call alone, the heartbeat fails too
            gen, pod, top, closed, opened = held
            mine, here = log_.ownership.generation, pod is not None and name_of(pod) == self._pod_id
            own = moment(log_.ownership.opened_at)
            another = opened is not None and own != "" and name_of(opened) != own
            if closed is not None or (another and here):
                continue  # by whoever forgets a caller, or a call of the same name before this one: ``APPEND`` knows
            if gen is not None and (another or int(gen) > mine or (int(gen) == mine and not here)):
                self._lose(log_, taken_over=not another and (int(gen) > 1 or mine > 1))
            elif log_.seen(int(top or 0) if there else 0):
                log.warning("the store has lost records", extra={"session": log_.key.session})

    async def _read_memory(self) -> None:
        """For metrics alone: whoever may not ask knows nothing of it."""
        with contextlib.suppress(ResponseError):
            found = await self._redis.info("memory")
            self.memory = int(found.get("used_memory", 0)), int(found.get("maxmemory", 0))

    def _failed(self, began: float, error: Exception) -> None:
        self.failures += 1
        self._failing_since = self._failing_since or began
        if time.monotonic() - self._failing_since > BEHIND_AFTER_S:
            self._fall_behind(f"{type(error).__name__}: {error}")

    def _succeeded(self, began: float) -> None:
        """A round has written something of each call; what is left may have waited for long."""
        self.reconnects += self._failing_since is not None
        self._failing_since = None
        if self._is_slow() or time.monotonic() - began > BEHIND_AFTER_S:
            self._fall_behind("slow")
        elif self.behind:
            log.info("the store has caught up")
            self._tell(True)

    def _is_slow(self) -> bool:
        """Whether anything has waited for too long that the store has not refused."""
        waiting = (log_.waiting_since for log_ in self._logs.oldest() if not log_.refusals)
        return min((since for since in waiting if since is not None), default=inf) < time.monotonic() - BEHIND_AFTER_S

    def _fall_behind(self, cause: str) -> None:
        if not self.behind:
            log.error("the store does not keep up", extra={"cause": cause})
            self._tell(False)

    def _tell(self, durable: bool) -> None:
        self.behind = not durable
        for log_ in self._logs.live:
            if not (log_.dead or log_.refusals):  # those that are refused have been told
                log_.ownership.on_durable(durable)
