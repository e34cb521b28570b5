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
from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Any, NamedTuple

import redis.asyncio
from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.store import scripts
from service.store.demotion import DEMOTED, leave_if_demoted
from service.store.directory import Directory
from service.store.log import Batch, WriteBehind
from service.store.naming import Naming, moment, name_of
from service.store.protocol import CallKey, CallLog, Ownership
from service.store.sealing import Sealer

log = logging.getLogger(__name__)

BACKOFF_S, MAX_BACKOFF_S = 0.05, 1.0
BEHIND_AFTER_S = 1.0
"""A store that takes longer has fallen behind, and calls are told."""
MAX_CALLS_PER_PIPELINE = 64
MIN_PIPELINE_BYTES, MAX_PIPELINE_BYTES = 16 << 10, 512 << 10
"""Of records. One that takes longer than the store may take is tried again with half as many, and later ones grow."""
MAX_BATCH_BYTES = 64 << 10
"""Of one call in a pipeline."""
SEALED_AT_ONCE_BYTES = 64 << 10
"""What is sealed before others have their turn in the event loop."""
MAX_PARKED_S = 10.0
"""At most so long a call waits whose records alone the store refuses."""
MAX_REFUSALS = 30
"""After which what is left of a call that has ended here is given up, unless it is to be deleted."""


class _Sealed(NamedTuple):
    """What a call has to say, as it goes to the store. script: ``APPEND``, or ``CLOSE``, with its arguments."""

    log: WriteBehind
    batch: Batch
    script: str
    arguments: Sequence[Any]


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
        self._sealer = sealer
        self._pod_id = pod_id
        self._lease_s = lease_s
        self._ttl_ms = round(retention_s * 1000)
        self._trust_after_s = trust_after_s
        self._logs: dict[CallKey, WriteBehind] = {}
        self._ending: list[WriteBehind] = []
        self._woken: dict[WriteBehind, None] = {}
        """Those among ``_logs`` that may have something to be written, or be over: others cost a round nothing. In
        order.
        """
        self._failed_together: frozenset[WriteBehind] = frozenset()
        """Those of the last pipeline that failed as a whole."""
        self._room = MAX_PIPELINE_BYTES
        """What a pipeline may hold now."""
        self._news = asyncio.Event()
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
        return sum(log.dirty for log in self._all)

    @property
    def parked(self) -> int:
        """Calls that alone cannot be written, and are tried again by themselves."""
        return sum(bool(log.refusals) and log.dirty for log in self._all)

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
        if (old := self._logs.pop(key, None)) is not None:  # of a call of this name that is over, or was lost
            self._woken.pop(old, None)
            self._ending.append(old)
            old.leave()
        self._logs[key] = made = WriteBehind(key, ownership, self._trust_after_s, self._wake)
        return made

    def _wake(self, log_: WriteBehind) -> None:
        if self._logs.get(log_.key) is log_:
            self._woken[log_] = None
        self._news.set()

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
        while batches := await self._next_batches(due, refused):
            taken += await self._write(batches, refused)
            if taken and self._is_slow():
                self._fall_behind("slow")
            await self._beat_if_due()
        self._failed_together = frozenset()
        self._settle()
        self._round.set()
        await self._park(refused, others_went=taken > 0)
        if self._due():
            self._news.set()

    async def _only_close(self) -> None:
        """Close what is to be closed, and no more: a store that is full deletes all the same."""
        due = deque(log_ for log_ in self._due() if self._closes(log_))
        while batches := await self._next_batches(due, {}):
            await self._write(batches, {})
        self._settle()

    async def _beat_if_due(self) -> None:
        if time.monotonic() < self._next_beat:
            return
        late = self._next_beat and time.monotonic() - self._next_beat > self._lease_s
        await self._check_leases()  # first: a pod that was frozen is there again without the calls that others have
        await self._directory.beat()
        await self._read_memory()
        if late:
            log.warning("the lease had run out", extra={"calls": len(self._logs)})
        self._next_beat = time.monotonic() + self._lease_s / 3

    def _due(self) -> list[WriteBehind]:
        """What is to be written now. What failed last time comes last, so that it keeps nobody from being written."""
        now = time.monotonic()
        due = [log_ for log_ in self._oldest() if not log_.refusals or log_.retry_at <= now]
        return sorted(due, key=lambda log_: bool(log_.refusals) or log_ in self._failed_together)

    def _oldest(self) -> Iterable[WriteBehind]:
        """Of each name what has to be written first: what ends, as the name may be another's by now."""
        oldest: dict[CallKey, WriteBehind] = {}
        for log_ in (*self._ending, *self._woken):
            if log_.dirty:
                oldest.setdefault(log_.key, log_)
        return oldest.values()

    def _wake_at(self) -> float:
        """When something is to be done, whether there is news or not."""
        return min((self._next_beat, *(log_.retry_at for log_ in self._oldest() if log_.refusals)))

    async def _next_batches(self, due: deque[WriteBehind], refused: dict[WriteBehind, Exception]) -> list[_Sealed]:
        """What goes into one pipeline. A whole call begins another one, as it takes long to be written down, and may be
        more than the store takes in time, which is to hold nobody else up. A call that cannot be written down is added
        to ``refused``.
        """
        found: list[_Sealed] = []
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

    async def _write(self, batches: Sequence[_Sealed], refused: dict[WriteBehind, Exception]) -> int:
        """One pipeline; returns of how many of its calls the store took records. What those of one call meet harms no
        other's: it is added to ``refused``.
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
        taken = 0
        for (log_, batch, script, _), answer in zip(batches, answers[-len(batches) :], strict=True):
            if log_ in refused:
                continue
            self.writes += 1
            if script == scripts.CLOSE:  # which says nothing of what the store takes
                self._closed(log_, bool(answer))
            else:
                taken += answer[0] == b"ok"
                try:
                    await self._take_answer(log_, batch, answer[0], int(answer[1]))
                except ResponseError as error:  # to its being closed
                    refused[log_] = error
        return taken

    async def _answers(self, pipeline: Pipeline, batches: Sequence[_Sealed]) -> list[Any]:
        """Those of the store; from how long they take it is known how much may be asked of it at once."""
        size, began = sum(sealed.batch.size for sealed in batches), time.monotonic()
        try:
            answers = await pipeline.execute(raise_on_error=False)
        except (RedisError, OSError, TimeoutError) as error:
            self._failed_together = frozenset(log_ for log_, *_ in batches)
            if isinstance(error, (RedisTimeoutError, TimeoutError)):
                self._room = max(min(self._room, size) // 2, MIN_PIPELINE_BYTES)
            raise
        if size * 2 > self._room:
            self._room = min(self._room + MIN_PIPELINE_BYTES, MAX_PIPELINE_BYTES)
        self.on_written(time.monotonic() - began)
        return answers

    async def _park(self, refused: dict[WriteBehind, Exception], *, others_went: bool) -> None:
        """What the store refuses of single calls waits by itself, and so does what could not be written down. Raises
        where it is the store.
        """
        fault = await self._fault([error for error in refused.values() if isinstance(error, RedisError)], others_went)
        for log_, error in refused.items():
            if fault is None or not isinstance(error, RedisError):
                self._put_off(log_, error)
        if fault is not None:
            raise fault

    async def _fault(self, answers: Sequence[RedisError], others_went: bool) -> Exception | None:
        """What keeps the store from taking anything; None where it is the calls that got these answers. Where all are
        refused it is asked to take a call that is nobody's: it may answer heartbeats, and yet run no scripts.
        """
        if demoted := next((error for error in answers if isinstance(error, DEMOTED)), None):
            return demoted
        if answers and not others_went:
            own = f"firstword:pod:{{{self._pod_id}}}"
            arguments = (1, self._pod_id, 0, -1, round(self._lease_s * 1000), "0", "", 1, b"")
            try:
                await self._redis.eval(scripts.APPEND, 2, f"{own}:asked", f"{own}:told", *arguments)
            except (RedisError, OSError, TimeoutError) as error:
                return error
        return None

    def _put_off(self, log_: WriteBehind, error: Exception) -> None:
        self.failures += 1
        told = {"session": log_.key.session, "cause": f"{type(error).__name__}: {error}"}
        if not log_.refusals:
            log.error("what a call has to say is refused, or cannot be written down", extra=told, exc_info=error)
            if not self.behind:
                log_.ownership.on_durable(False)
        log_.refusals = min(log_.refusals + 1, MAX_REFUSALS)
        log_.retry_at = time.monotonic() + min(BACKOFF_S * 2**log_.refusals, MAX_PARKED_S)
        if log_.refusals == MAX_REFUSALS and (log_.closing or log_.left) and log_.closing != "forgotten":
            log.error("the end of a call is given up", extra=told)
            log_.lose()

    async def _take_answer(self, log_: WriteBehind, batch: Batch, kind: bytes, number: int) -> None:
        match kind:
            case b"ok":
                log_.wrote(batch)
                if log_.closing and not log_.unwritten:
                    await self._close(log_)
                self._unpark(log_)
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
            case _:
                self.fenced += not log_.left
                self._lose(log_, taken_over=number > 1 or log_.ownership.generation > 1)

    def _unpark(self, log_: WriteBehind) -> None:
        if log_.refusals:
            log_.refusals = 0
            if not (self.behind or log_.dead):
                log_.ownership.on_durable(True)

    async def _close(self, log_: WriteBehind) -> None:
        keys, arguments = self._naming.keys_of(log_.key), self._closing_arguments(log_)
        self._closed(log_, bool(await self._redis.eval(scripts.CLOSE, 2, *keys, *arguments)))

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
        logs = [log_ for log_ in self._logs.values() if not log_.dead]
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

    def _settle(self) -> None:
        """Calls that have left are kept until all of theirs is written."""
        for log_ in self._woken:
            if log_.dead or log_.left or log_.closing:
                del self._logs[log_.key]
                self._ending.append(log_)
        self._ending = [log_ for log_ in self._ending if log_.dirty]
        self._woken = {log_: None for log_ in self._woken if log_.dirty and self._logs.get(log_.key) is log_}

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
        waiting = (log_.waiting_since for log_ in self._oldest() if not log_.refusals)
        return min((since for since in waiting if since is not None), default=inf) < time.monotonic() - BEHIND_AFTER_S

    def _fall_behind(self, cause: str) -> None:
        if not self.behind:
            log.error("the store does not keep up", extra={"cause": cause})
            self._tell(False)

    def _tell(self, durable: bool) -> None:
        self.behind = not durable
        for log_ in list(self._logs.values()):
            if not (log_.dead or log_.refusals):  # those that are refused have been told
                log_.ownership.on_durable(durable)

    def _sealed(self, log_: WriteBehind, max_bytes: int) -> _Sealed:
        if self._closes(log_):
            return _Sealed(log_, Batch(0, ()), scripts.CLOSE, self._closing_arguments(log_))
        batch = log_.batch(max_bytes)
        return _Sealed(log_, batch, scripts.APPEND, self._arguments(log_, batch))

    def _closes(self, log_: WriteBehind) -> bool:
        """Whether it is closed next. Where a later call has its name here, only ``APPEND`` knows whose the place is."""
        return log_.to_be_closed and self._has_its_name(log_)

    def _has_its_name(self, log_: WriteBehind) -> bool:
        return self._logs.get(log_.key, log_) is log_

    def _closing_arguments(self, log_: WriteBehind) -> Sequence[Any]:
        return log_.ownership.generation, self._pod_id, self._ttl_ms, log_.closing

    def _arguments(self, log_: WriteBehind, batch: Batch) -> list[Any]:
        own, whole, after = log_.ownership, "1" if batch.whole else "0", batch.after
        if not self._has_its_name(log_):
            after = max(after, 0)  # a later call has its name here, whose place it must not take
        opened = moment(own.opened_at)
        found: list[Any] = [own.generation, self._pod_id, own.base, after, self._ttl_ms, whole, opened]
        for seq, record in batch.entries:
            found += [seq, self._sealer.seal(record, self._naming.place(log_.key, seq))]
        return found
