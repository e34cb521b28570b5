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


class SharedOpens:
    """names: those of a tenant in the store, one by each key; pods of which one still has an old key and another has
    it no more have one in common. clock: that of whoever asks, monotonic seconds.
    """

    def __init__(self, names: Callable[[str], Sequence[str]], clock: Callable[[], float] = time.monotonic) -> None:
        self._names = names
        self._clock = clock
        self._own: Counter[str] = Counter()
        """By tenant, since the last beat."""
        self._asked: tuple[Sequence[str], Counter[str]] = ((), Counter())
        """The keys that a beat asks for, and what it adds by the names in the store."""
        self._known: Mapping[str, Counter[str]] | None = None
        """What each counter had at the last beat; None where that failed, and how much is new cannot be told."""
        self._before: Mapping[str, Counter[str]] | None = None
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
        minute = int(time.time() // PERIOD_S)  # clocks may differ by a minute: what is written early is read later
        previous, current = _key(minute - 1), _key(minute)
        added = Counter({name: count for tenant, count in self._own.items() for name in self._names(tenant)})
        self._own.clear()  # where the beat fails they count here alone
        for name, count in added.items():
            pipeline.hincrby(current, name, count)
        if added:
            pipeline.pexpire(current, round(KEPT_S * 1000))
        pipeline.hgetall(previous)
        pipeline.hgetall(current)
        self._asked = (previous, current), added
        self._known, self._before = None, self._known

    def answered(self, answers: Iterable[Mapping[bytes, bytes]]) -> None:
        """The last answers of what ``ask`` asked."""
        (keys, added), before = self._asked, self._before
        found = {
            key: Counter({name.decode(): int(count) for name, count in answer.items()})
            for key, answer in zip(keys, answers, strict=True)
        }
        self._known = found
        if before is None:
            return
        now = self._clock()
        opened: Counter[str] = Counter()
        for key, counts in found.items():
            opened += counts - before.get(key, Counter())
        opened -= added
        if opened:
            self._heard.append((now, opened))
        while self._heard and self._heard[0][0] < now - PERIOD_S:
            self._heard.popleft()


def _key(minute: int) -> str:
    return f"firstword:opens:{minute}"
