"""Who gives up pages when they run short: idle sessions, the one nobody has asked anything of for longest first.

Its pages move to host memory; past the budget there the oldest are dropped to their token logs, and prefilled again
when they are wanted. No text depends on any of it. Knows sessions and pages; knows no deadline and no record.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from engine.cache import KVCache, PagePool
from engine.engine import Engine, Work
from engine.errors import OutOfPages
from engine.session import Session

FREE_SHARE = 1 / 8
"""Of a pool's pages, those that are kept free for whoever wants some next."""
MOST_NODES = 64
"""Of a draft tree."""
IDLE_S = 2.0
"""Nobody has asked for anything for so long: between two hypotheses of a caller who speaks it is less."""


@dataclass
class Counts:
    """How often sessions went to host memory, were dropped to their logs, and came back from either."""

    hibernated: int = 0
    dropped: int = 0
    woken_from_host: int = 0
    woken_from_log: int = 0


class Hibernation:
    """Of one engine, whose pools ask it for pages from now on.

    host_bytes: of host memory, target's and drafters' pages together. give_up: parts with some pages of a pool that
    belong to no call, those that others share included or not; says whether there were any, and is asked first.
    """

    def __init__(
        self,
        engine: Engine,
        host_bytes: int,
        *,
        idle_s: float = IDLE_S,
        give_up: Callable[[PagePool, bool], bool] = lambda pool, shared: False,
    ) -> None:
        self.counts = Counts()
        self._engine = engine
        self._budget = host_bytes
        self._idle_s = idle_s
        self._give_up = give_up
        self._working: dict[Session, bool] = {}
        """Who has the step, and whether for a reply."""
        self._asked: dict[str, float] = {}
        """When sessions were last asked for something; least recently first. Those that sleep are not among them."""
        self._in_host: dict[str, None] = {}
        """Sessions in host memory, in the order in which they went."""
        draft = engine.proposer.start()
        self._pools = [cache.pool for cache in (engine.target.new_cache(), *draft.caches())]
        draft.close()
        for pool in self._pools:
            pool.relief = self._relieve

    @property
    def bytes_in_host(self) -> int:
        return sum(pool.mover.bytes_held for pool in self._pools)

    @property
    def host_pages(self) -> int:
        """Of the target's, with as many of each drafter's, that the budget has room for."""
        return self._budget // max(1, sum(pool.bytes_per_page for pool in self._pools))

    def admit(self, plan: list[Work]) -> list[Work]:
        """What of a plan shares the step. Where there are not pages for all of it, prefill that nobody waits for is
        left out: nothing that is in the step can be moved for the sake of a reply.
        """
        replies = [work for work in plan if work.session.turn is not None]
        if replies and self._pages_wanted(plan) > replies[0].session.cache.pool.free_pages:
            plan = replies
        self.works(work.session for work in plan)
        return plan

    @staticmethod
    def _pages_wanted(plan: list[Work]) -> int:
        """Of the target's pool, for all that the plan may write."""
        wanted = 0
        for work in plan:
            cache = work.session.cache
            end = cache.length + work.session.num_unread + MOST_NODES
            wanted += max(0, -(-end // cache.pool.page_tokens) - cache.num_pages)
        return wanted

    def works(self, sessions: Iterable[Session]) -> None:
        """These have the next step: nothing of theirs is moved in it."""
        self._working = {session: session.turn is not None for session in sessions}
        for session in self._working:
            self._touch(session)

    def wake(self, session: Session) -> None:
        """Something is asked of the session, or is about to be: bring back what can be without harm to its betters."""
        if session.asleep:
            session.asleep = False
            self.counts.woken_from_log += 1
        self.works([session])
        with contextlib.suppress(OutOfPages):  # whoever works on it next tries again
            session.restore()

    def forget(self, name: str) -> None:
        """The session is closed."""
        self._asked.pop(name, None)
        self._in_host.pop(name, None)
        self._working = {session: replies for session, replies in self._working.items() if session.name != name}

    @property
    def due(self) -> bool:
        """Whether somebody should move, so that whoever wants pages next does not have to wait for that."""
        return any(self._is_short(pool) for pool in self._pools) and self._next_idle() is not None

    def tend(self) -> None:
        """Move one session, or make room of what belongs to none."""
        short = [pool for pool in self._pools if self._is_short(pool)]
        if not any(self._give_up(pool, False) for pool in short) and (session := self._next_idle()) is not None:
            self._hibernate(session)

    def _touch(self, session: Session) -> None:
        if session.name in self._in_host:
            del self._in_host[session.name]
            self.counts.woken_from_host += 1
        self._asked.pop(session.name, None)
        self._asked[session.name] = time.monotonic()

    def _stays(self, session: Session) -> bool:
        """Whether the session has the step. A reply that has found no pages in it has it no more."""
        return session.turn is not None or self._working.get(session) is False

    @staticmethod
    def _is_short(pool: PagePool) -> bool:
        return pool.free_pages < int(pool.num_pages * FREE_SHARE)

    def _next_idle(self) -> Session | None:
        """Who has been idle for longest, if that is long, and has pages of a pool that is short of them."""
        short = [pool for pool in self._pools if self._is_short(pool)]
        session = next(self._victims(short, urgent=False), None)
        if session is None or self._asked[session.name] > time.monotonic() - self._idle_s:
            return None
        return session

    def _victims(self, pools: list[PagePool], *, urgent: bool) -> Iterator[Session]:
        """Who may give up pages of these pools, least recently asked first. urgent: also those whose prefill is under
        way and whose reply nobody has asked for yet; they come last.
        """
        prefilling = []
        for name in list(self._asked):
            session = self._engine.sessions.get(name)
            if session is None:
                del self._asked[name]
                continue
            if self._stays(session):
                continue
            if not any(cache.movable_pages for cache in session.caches if cache.pool in pools):
                continue
            if session.num_pending > 1:
                prefilling.append(session)
            else:
                yield session
        if urgent:
            yield from prefilling

    def _relieve(self, pool: PagePool, wanted: int, cache: KVCache) -> None:
        """Free pages of the pool until ``wanted`` are free, or nobody is left who may move for this cache's sake."""
        owner = next((session for session in self._working if cache in session.caches), None)
        urgent = owner is not None and owner.turn is not None
        while pool.free_pages < wanted and self._free_some(pool, urgent):
            pass

    def _free_some(self, pool: PagePool, urgent: bool) -> bool:
        """Have the least wanted part with its pages; whether anybody had any. Shared ones are free when all have."""
        if self._give_up(pool, False):
            return True
        if (session := next(self._victims([pool], urgent=urgent), None)) is not None:
            self._hibernate(session)
            return True
        return self._give_up(pool, True) or self._drop_sharer(pool)

    def _drop_sharer(self, pool: PagePool) -> bool:
        """Drop an idle session whose pages in the pool are all shared, with other idle ones for all that is known."""
        for name in [*self._in_host, *self._asked]:
            session = self._engine.sessions[name]
            idle = session.num_pending <= 1 and not self._stays(session)
            if (idle or name in self._in_host) and any(c.num_pages for c in session.caches if c.pool is pool):
                self._drop(session)
                return True
        return False

    def _hibernate(self, session: Session) -> None:
        needed = sum(cache.movable_pages * cache.pool.bytes_per_page for cache in session.caches)
        while self.bytes_in_host + needed > self._budget >= needed and self._in_host:
            self._drop(self._engine.sessions[next(iter(self._in_host))])
        if self.bytes_in_host + needed > self._budget:
            self._drop(session)
            return
        del self._asked[session.name]
        self._in_host[session.name] = None
        session.offload()
        self.counts.hibernated += 1

    def _drop(self, session: Session) -> None:
        self._in_host.pop(session.name, None)
        self._asked.pop(session.name, None)
        waits = session.num_pending > 1
        session.drop()
        self.counts.dropped += 1
        if waits:
            session.stall()  # its prefill was under way: it begins again when there are pages
            self._asked[session.name] = time.monotonic()
        else:
            session.asleep = True
