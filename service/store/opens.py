"""How many calls each tenant opens, counted by all pods together: each adds its own to counters of the store with its
heartbeat, and hears from them what the others have added. Nobody waits for that where a call is opened.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from redis.asyncio.client import Pipeline

PERIOD_S = 60.0
"""After which what was opened is not heard of any more. What was heard of in time is waited for, however long."""

KEPT_S = 3 * PERIOD_S
"""How long the store keeps the counter of a minute, which is read in that minute and in the next one."""

REMEMBERED = 3
"""Minutes before and behind the one of a beat, of whose counters it is remembered what was read: a clock that is set
back reads them again.
"""


class SharedOpens:
    """names: those of a tenant in the store, one by each key; pods of which one still has an old key and another has
    it no more have one in common. clock: that of whoever asks, monotonic seconds. wall: about the same for all pods.
    """

    def __init__(
        self,
        names: Callable[[str], Sequence[str]],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._names = names
        self._clock = clock
        self._wall = wall
        self._own: Counter[str] = Counter()
        """By tenant, since the last beat."""
        self._asked: tuple[int, Counter[str]] = (0, Counter())
        """The minute of a beat, and what the beat adds to its counter, by the names in the store."""
        self._known: Mapping[int, Counter[str]] | None = None
        """What the counter of each minute had when it was read last; None where the last beat failed, and how much is
        new cannot be told.
        """
        self._before: Mapping[int, Counter[str]] | None = None
        self._beat_at = float("-inf")
        self._newest = 0
        """The last minute of all that a beat had: the counters of later ones were empty then."""
        self._heard: deque[tuple[float, Counter[str]]] = deque()

    def opened(self, tenant: str) -> None:
        """A call was opened here."""
        self._own[tenant] += 1

    def elsewhere(self, tenant: str, since: float) -> Iterator[tuple[float, int]]:
        """(when, how many) were heard of from other pods after ``since``, oldest first, none older than a period."""
        names, since = self._names(tenant), max(since, self._clock() - PERIOD_S)
        for when, opened in self._heard:
            if when > since and (most := max(opened[name] for name in names)):
                yield when, most

    def ask(self, pipeline: Pipeline) -> None:
        """Add this pod's to the store, and read all. Three keys at most, and two answers at the end."""
        minute = int(self._wall() // PERIOD_S)  # clocks may differ by a minute: what is written early is read later
        current = _key(minute)
        added = Counter({name: count for tenant, count in self._own.items() for name in self._names(tenant)})
        self._own.clear()  # where the beat fails they count here alone
        for name, count in added.items():
            pipeline.hincrby(current, name, count)
        if added:
            pipeline.pexpire(current, round(KEPT_S * 1000))
        pipeline.hgetall(_key(minute - 1))
        pipeline.hgetall(current)
        self._asked = minute, added
        self._known, self._before = None, self._known

    def answered(self, answers: Iterable[Mapping[bytes, bytes]]) -> None:
        """The last answers of what ``ask`` asked."""
        now, (minute, _) = self._clock(), self._asked
        found = {
            at: Counter({name.decode(): int(count) for name, count in answer.items()})
            for at, answer in zip((minute - 1, minute), answers, strict=True)
        }
        # What was opened while this pod stood still for a period, nobody would hear of any more.
        before = None if now - self._beat_at > PERIOD_S else self._before
        read = {**(before or {}), **found}
        self._known = {at: counts for at, counts in read.items() if abs(at - minute) <= REMEMBERED}
        if before is not None:
            self._hear(now, found, before)
        self._beat_at, self._newest = now, max(self._newest, minute)

    def _hear(self, now: float, found: Mapping[int, Counter[str]], before: Mapping[int, Counter[str]]) -> None:
        """Count what is new since the beat before. Of a counter that was not read, and may have been written long
        before that, it is not known: one of a minute to which the clock was set back.
        """
        minute, added = self._asked
        opened: Counter[str] = Counter()
        for at, counts in found.items():
            if at in before or at > self._newest:
                opened += counts - before.get(at, Counter()) - (added if at == minute else Counter())
        if opened:
            self._heard.append((now, opened))
        while self._heard and self._heard[0][0] < now - PERIOD_S:
            self._heard.popleft()


def _key(minute: int) -> str:
    return f"firstword:opens:{minute}"
