"""Who gives up pages when they run short: idle sessions, the one nobody has asked anything of for longest first.

Its pages move to host memory; past the budget there the oldest are dropped to their token logs, and prefilled again
when they are wanted. No text depends on any of it. Knows sessions and pages; knows no deadline and no record.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.cache import ABSENT, KVCache, PagePool
from engine.engine import Engine, Work
from engine.errors import OutOfPages
from engine.session import Session

FREE_SHARE = 1 / 8
"""Of a pool's pages, those that are kept free for whoever wants some next."""
IDLE_S = 2.0
"""Nobody has asked for anything for so long: between two hypotheses of a caller who speaks it is less."""


@dataclass
class Counts:
    """How often sessions went to host memory, were dropped to their logs, and came back from either."""

    hibernated: int = 0
    dropped: int = 0
    woken_from_host: int = 0
    woken_from_log: int = 0


class Beginnings(Protocol):
    """What is kept of beginnings that calls have in common, in pages that belong to no call."""

    def give_up(self, pool: PagePool, *, shared: bool, unused_since: float = math.inf) -> bool:
        """Part with the one used least recently that has pages of the pool to itself, or shared: that has any, if it
        was not used since that moment. Whether there was one.
        """
        ...

    def pages(self, pool: PagePool, *, pinned: bool) -> set[int]:
        """Pages of the pool that are kept, for good or not."""
        ...


class NoBeginnings:
    """``Beginnings``: none."""

    def give_up(self, pool: PagePool, *, shared: bool, unused_since: float = math.inf) -> bool:
        return False

    def pages(self, pool: PagePool, *, pinned: bool) -> set[int]:
        return set()


class Hibernation:
    """Of one engine, whose pools ask it for pages from now on.

    host_bytes: of host memory, target's and drafters' pages together. beginnings: parts with some of its own pages, the
    ones that were used before the least recent of the idle calls was.
    """

    def __init__(
        self,
        engine: Engine,
        host_bytes: int,
        *,
        idle_s: float = IDLE_S,
        beginnings: Beginnings | None = None,
    ) -> None:
        self.counts = Counts()
        self._engine = engine
        self._budget = host_bytes
        self._idle_s = idle_s
        self._beginnings = beginnings or NoBeginnings()
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

    def admit(self, plan: Sequence[Work]) -> list[Work]:
        """What of a plan shares the step. Idle sessions move for all of it; where there are not pages for all even so,
        what no caller waits for is left out as far as it wants some: nothing that is in the step can be moved for the
        sake of a reply.
        """
        self._working = {work.session: work.session.turn is not None for work in plan}
        admitted = self._admitted(plan)
        self.works(work.session for work in admitted)
        return admitted

    def _admitted(self, plan: Sequence[Work]) -> list[Work]:
        awaited = [work.session for work in plan if work.session.awaited]
        if not awaited:
            return list(plan)
        pool = awaited[0].cache.pool
        fits = self._free(pool, sum(_pages_wanted(session) for session in awaited))
        wanted = sum(_pages_wanted(session, trees=True) for session in awaited)
        admitted = []
        for work in plan:
            if not work.session.awaited:
                more = _pages_wanted(work.session)
                if not fits or (more and not self._free(pool, wanted + more)):
                    del self._working[work.session]
                    work.session.stall()
                    continue
                wanted += more
            admitted.append(work)
        return admitted

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
        seconds = self.due_in
        return seconds is not None and seconds <= 0.0

    @property
    def due_in(self) -> float | None:
        """Seconds until somebody should move, where until then nothing is asked for; None: nobody should."""
        session = self._next_idle(self._short_pools())
        return None if session is None else self._moves_in(session)

    def tend(self) -> None:
        """Move one session that is idle, or part with a beginning that nobody has used for longer."""
        short = self._short_pools()
        session = self._next_idle(short)
        if session is None or self._moves_in(session) > 0.0:
            return
        asked = self._asked[session.name]
        if not any(self._beginnings.give_up(pool, shared=False, unused_since=asked) for pool in short):
            self._hibernate(session)

    def _touch(self, session: Session) -> None:
        if session.name in self._in_host:
            del self._in_host[session.name]
            self.counts.woken_from_host += 1
        self._asked.pop(session.name, None)
        self._asked[session.name] = time.monotonic()

    def _short_pools(self) -> list[PagePool]:
        return [pool for pool in self._pools if pool.free_pages < int(pool.num_pages * FREE_SHARE)]

    def _next_idle(self, pools: Sequence[PagePool]) -> Session | None:
        """Who has been idle for longest and has pages of one of these pools."""
        return next(self._victims(pools, urgent=False), None) if pools else None

    def _moves_in(self, session: Session) -> float:
        """Seconds until it has been idle for long enough to move."""
        return self._asked[session.name] + self._idle_s - time.monotonic()

    def _stays(self, session: Session, *, urgent: bool) -> bool:
        """Whether the session keeps its pages whoever wants some.

        urgent: they are for a reply that a caller waits for: prefill under way, and replies that nobody has asked for
        yet or that are made aside, keep theirs from everybody else. A reply that stands still does not keep them.
        """
        turn = session.turn
        over = turn is None and self._working.get(session, False)  # it has found no pages, and has the step no more
        if (session in self._working and not over) or session.awaited:
            return True
        under_way = session.num_pending > 1 if turn is None else not turn.waits
        return under_way and not urgent

    def _victims(self, pools: Sequence[PagePool], *, urgent: bool) -> Iterator[Session]:
        """Who may give up pages of these pools, least recently asked first; urgent: those that keep them from others
        come last.
        """
        under_way = []
        for name in list(self._asked):
            session = self._engine.sessions.get(name)
            if session is None:
                del self._asked[name]
                continue
            if self._stays(session, urgent=urgent):
                continue
            if not any(cache.movable_pages for cache in session.caches if cache.pool in pools):
                continue
            if urgent and self._stays(session, urgent=False):
                under_way.append(session)
            else:
                yield session
        yield from under_way

    def _relieve(self, pool: PagePool, wanted: int, cache: KVCache) -> None:
        """Free pages of the pool until ``wanted`` are free, or nobody is left who may move for this cache's sake. A
        draft is a luxury: nothing under way moves for one.
        """
        owner = next((session for session in self._working if cache in session.caches), None)
        needy = owner is not None and owner.awaited and cache is owner.cache
        urgent = needy and owner is not None and _pages_wanted(owner) > pool.free_pages
        self._free(pool, wanted, urgent=urgent)

    def _free(self, pool: PagePool, wanted: int, *, urgent: bool = False) -> bool:
        """Whether so many pages are free now. Where they cannot be, nobody moves."""
        if wanted > pool.free_pages and self._can_free(pool, wanted, urgent=urgent):
            while wanted > pool.free_pages and self._free_some(pool, urgent=urgent):
                pass
        return wanted <= pool.free_pages

    def _can_free(self, pool: PagePool, wanted: int, *, urgent: bool) -> bool:
        """Whether so many pages would be free if all had moved who may."""
        missing = wanted - pool.free_pages
        for session in self._victims([pool], urgent=urgent):
            missing -= sum(cache.movable_pages for cache in session.caches if cache.pool is pool)
            if missing <= 0:
                return True
        # Pages that are shared are free when all have parted with them.
        going, staying = self._beginnings.pages(pool, pinned=False), self._beginnings.pages(pool, pinned=True)
        for session in self._engine.sessions.values():
            held = staying if self._stays(session, urgent=urgent) else going
            held.update(page for cache in session.caches if cache.pool is pool for page in cache.pages)
        return wanted - pool.free_pages <= len(going - staying - {ABSENT})

    def _free_some(self, pool: PagePool, *, urgent: bool) -> bool:
        """Have the least wanted part with its pages; whether anybody had any. Shared ones are free when all have.

        Of what is idle, that was used least recently goes first: a beginning serves many calls.
        """
        victim = next(self._victims([pool], urgent=urgent), None)
        idle = victim is not None and not self._stays(victim, urgent=False)
        unused_since = self._asked[victim.name] if victim is not None and idle else math.inf
        if self._beginnings.give_up(pool, shared=False, unused_since=unused_since):
            return True
        if victim is not None:
            self._hibernate(victim)
            return True
        return self._beginnings.give_up(pool, shared=True) or self._drop_sharer(pool)

    def _drop_sharer(self, pool: PagePool) -> bool:
        """Drop an idle session whose pages in the pool are all shared, with other idle ones for all that is known."""
        for name in [*self._in_host, *self._asked]:
            session = self._engine.sessions[name]
            may = name in self._in_host or not self._stays(session, urgent=False)
            if may and any(cache.num_pages for cache in session.caches if cache.pool is pool):
                self._drop(session)
                return True
        return False

    def _hibernate(self, session: Session) -> None:
        # Whoever is dropped may have shared pages with the session, which has more to move from then on.
        while self.bytes_in_host + (needed := _movable_bytes(session)) > self._budget:
            if needed > self._budget or not self._in_host:
                self._drop(session)
                return
            self._drop(self._engine.sessions[next(iter(self._in_host))])
        del self._asked[session.name]
        self._in_host[session.name] = None
        session.offload()
        self.counts.hibernated += 1

    def _drop(self, session: Session) -> None:
        self._in_host.pop(session.name, None)
        self._asked.pop(session.name, None)
        under_way = self._stays(session, urgent=False)
        session.drop()
        self.counts.dropped += 1
        if not under_way:
            session.asleep = True
            return
        self._asked[session.name] = time.monotonic()
        if session.turn is None:
            session.stall()  # its prefill begins again when there are pages


def _movable_bytes(session: Session) -> int:
    """That would be in host memory if it went there now."""
    return sum(cache.movable_pages * cache.pool.bytes_per_page for cache in session.caches)


def _pages_wanted(session: Session, *, trees: bool = False) -> int:
    """Pages of the target's pool that the session's next step will take.

    trees: also for a draft of the size that was asked for last; a reply that finds none for it does without.
    """
    cache, turn = session.cache, session.turn
    tokens = session.num_unread
    if trees and turn is not None and turn.choice is not None:
        tokens += turn.choice.nodes - 1
    return cache.pages_wanted(tokens)
