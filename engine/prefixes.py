"""Beginnings that calls have in common: computed once, and shared by the calls of one tenant.

A beginning is kept as caches that later calls fork. Nobody finds what another tenant had computed: how soon a first
token comes would tell what others' prompts say. What is pinned for everybody is public by configuration. Knows sessions
and pages; knows no text.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from engine.cache import ABSENT, PagePool
from engine.engine import Engine
from engine.errors import OutOfPages
from engine.session import Session
from engine.text.common import common_length

LEAST_TOKENS = 32
"""Fewer are computed sooner than looked for."""
MOST_KEPT = 256
PAGES_SHARE = 1 / 4
"""Of the pool, what beginnings that nobody has pinned may hold."""
OWN_RUN_FREE = 1 / 4
"""Of the pool, what must be left free where a fork is given pages of its own."""


@dataclass(frozen=True)
class Beginning:
    """What a session's log begins with, and for whom it may be kept. tenant: None for everybody. pinned: for good."""

    tenant: str | None
    tokens: tuple[int, ...]
    pinned: bool = field(default=False, compare=False)

    def serves(self, other: Beginning) -> bool:
        """Whether whoever begins with the other may have this one."""
        return self.tenant in (other.tenant, None)


@dataclass(eq=False)
class _Prefix:
    """A kept beginning: a session of its own, that is in no engine and never replies. used: when it was last taken, in
    monotonic seconds.
    """

    of: Beginning
    session: Session
    used: float = field(default_factory=time.monotonic)


class Prefixes:
    """The beginnings that one engine keeps. tokens_saved: that calls did not have to compute.

    own_runs: calls get copies in pages of their own while the pool has room, instead of a share in the pages that are
    there. By default on a CPU: attention reads pages that form one run as a view, and has to gather others at every
    step.
    """

    def __init__(self, engine: Engine, *, own_runs: bool | None = None) -> None:
        self._engine = engine
        self._kept: list[_Prefix] = []
        """Least recently used first."""
        self._behind: list[_Prefix] = []
        """Kept ones whose drafter has something to catch up on, so that not every call has to."""
        self._tended: _Prefix | None = None
        self._of: dict[str, Beginning] = {}
        self._computing: dict[Beginning, str] = {}
        """Who computes a beginning that is not kept yet; all others that begin so wait for it."""
        self._pins = itertools.count(1)
        self._pinned: list[str] = []
        """Sessions of pins that are kept by now."""
        self._pool = engine.target.new_cache().pool
        self._own_runs = self._pool.geometry.device.type == "cpu" if own_runs is None else own_runs
        self.tokens_saved = 0

    @property
    def num_pages(self) -> int:
        """Pages of the target's pool that are kept, those that calls share now included."""
        return len({page for kept in self._kept for page in kept.session.cache.pages if page != ABSENT})

    def join(self, session: Session, beginning: Beginning) -> None:
        """The session, of which nothing is computed, begins so."""
        if len(beginning.tokens) < LEAST_TOKENS:
            return
        self._of[session.name] = beginning
        self.take(session)
        self._compute(session, beginning)

    def pin(self, tokens: Sequence[int], tenant: str | None) -> None:
        """Compute a beginning when nothing more urgent is there to do, and keep it for good. Raises as ``Engine.open``
        does. tenant: None for everybody.
        """
        if len(tokens) < LEAST_TOKENS:
            return
        beginning = Beginning(tenant, tuple(tokens), pinned=True)
        for prefix in self._kept:
            if prefix.of == beginning:
                prefix.of = beginning
                return
        name = f"\npin {next(self._pins)}"  # no call's name has a line break in it
        session = self._engine.open(name, tokens)
        self.join(session, beginning)
        self.learn(session)  # all of it may be another tenant's public one already

    def take_pinned(self) -> list[str]:
        """Sessions of pins that have done what they were opened for, for whoever closes them."""
        taken, self._pinned = self._pinned, []
        return taken

    def take(self, session: Session) -> None:
        """Let the session have what is kept of its log's beginning, if that is more than it has."""
        if (mine := self._of.get(session.name)) is None:
            return
        open_to = [prefix for prefix in self._kept if prefix.of.serves(mine)]
        # The last token is forwarded again: the feature that a drafter needs there is in no cache.
        found = [(common_length(prefix.session.tokens, session.tokens) - 1, prefix) for prefix in open_to]
        positions, prefix = max(found, key=lambda pair: pair[0], default=(0, None))
        if prefix is None or positions < max(session.cache.length + 1, LEAST_TOKENS):
            return
        self.tokens_saved += positions - session.cache.length
        self._kept.remove(prefix)
        self._kept.append(prefix)
        prefix.used = time.monotonic()
        session.adopt(prefix.session, positions)
        for cache in session.caches if self._own_runs else ():
            # Those that are in host memory come back first. It is a luxury: where there is no room, there is none.
            wanted = len(cache.pages) + cache.pages.count(ABSENT)
            if cache.pool.free_pages - wanted >= cache.pool.num_pages * OWN_RUN_FREE:
                with contextlib.suppress(OutOfPages):
                    cache.unshare()

    def learn(self, session: Session) -> None:
        """More of the session is computed, or its log is another: its beginning is kept once all of that is there.

        Also where another session was to compute it, which may have been kept from that: whoever waits has it at once.
        """
        mine = self._of.get(session.name)
        if mine is None or not (self._computing or session.held):
            return
        length = len(mine.tokens)
        begins_so = tuple(session.tokens[:length]) == mine.tokens
        if not begins_so:
            session.held = False
        for beginning in (replace(mine, tenant=None), mine):
            if (computing := self._computing.get(beginning)) is None:
                continue
            if begins_so and session.cache.length >= length - 1:
                if not self._is_kept(wanted := self._of[computing]):
                    self._keep(session, wanted)
                self._hand_on(beginning)
            elif not begins_so and computing == session.name:
                self._hand_on(beginning)

    def failed(self, session: Session) -> None:
        """A step of the session has failed: where others wait for what it was to compute, one of them does instead."""
        mine = self._of.get(session.name)
        if mine is not None and self._computing.get(mine) == session.name:
            self._hand_on(mine)

    def forget(self, name: str) -> None:
        """The session is closed."""
        beginning = self._of.pop(name, None)
        if beginning is not None and self._computing.get(beginning) == name:
            self._hand_on(beginning)

    @property
    def due(self) -> bool:
        """Whether there is something to do when nobody waits."""
        return bool(self._behind)

    def tend(self) -> None:
        """Let a kept beginning's drafter do a piece of what every call that takes it would have to do."""
        self._tended = prefix = self._behind.pop()
        if self._engine.catch_up(prefix.session):
            self._behind.append(prefix)
        self._tended = None

    def give_up(self, pool: PagePool, *, shared: bool, unused_since: float = math.inf) -> bool:
        """Part with the beginning used least recently that has pages of the pool to itself, or shared: that has any, if
        it was not used since that moment. Whether there was one; what is pinned stays.
        """
        for prefix in self._kept:
            if prefix.of.pinned or prefix is self._tended or prefix.used > unused_since:
                continue
            caches = [cache for cache in prefix.session.caches if cache.pool is pool]
            if any(cache.num_pages if shared else cache.movable_pages for cache in caches):
                self._drop(prefix)
                return True
        return False

    def pages(self, pool: PagePool, *, pinned: bool) -> set[int]:
        """Pages of the pool that are kept, for good or not."""
        kept = (prefix.session for prefix in self._kept if prefix.of.pinned == pinned)
        caches = (cache for session in kept for cache in session.caches if cache.pool is pool)
        return {page for cache in caches for page in cache.pages}

    def _is_kept(self, beginning: Beginning) -> bool:
        """Whether a call that begins so finds all of it. What is to be pinned has to be kept in its own right."""
        length = len(beginning.tokens)
        return any(
            prefix.of == beginning
            or (not beginning.pinned and prefix.of.serves(beginning) and prefix.of.tokens[:length] == beginning.tokens)
            for prefix in self._kept
        )

    def _compute(self, session: Session, beginning: Beginning) -> None:
        """Let the session compute its beginning, unless it is kept, or computed by another one already."""
        session.held = False
        if not self._is_kept(beginning):
            computing = self._computing.get(replace(beginning, tenant=None)) or self._computing.get(beginning)
            if computing is None and not session.has_given_up:
                computing = self._computing[beginning] = session.name
            session.held = computing not in (None, session.name)

    def _keep(self, session: Session, beginning: Beginning) -> None:
        length = len(beginning.tokens)
        kept = Session("", 0, session.cache.fork(), session.draft.fork())
        kept.tokens = session.tokens.copy()
        kept.rewind(length)
        self._kept.append(prefix := _Prefix(beginning, kept))
        self._behind.append(prefix)
        others = [prefix for prefix in self._kept if not prefix.of.pinned]
        pages = sum(prefix.session.cache.num_pages for prefix in others)
        while others and (pages > self._pool.num_pages * PAGES_SHARE or len(others) > MOST_KEPT):
            # Of whoever has most: one whose prompts name each caller would drive out all that others keep.
            held: Counter[str | None] = Counter()
            for prefix in others:
                held[prefix.of.tenant] += prefix.session.cache.num_pages
            most = max(held, key=held.__getitem__)
            oldest = next(prefix for prefix in others if prefix.of.tenant == most)
            others.remove(oldest)
            pages -= oldest.session.cache.num_pages
            self._drop(oldest)

    def _hand_on(self, beginning: Beginning) -> None:
        """Nobody computes it any more: whoever has not got it takes it, or the first who waits for it computes it."""
        computed_by = self._computing.pop(beginning)
        waiting = [(self._engine.session(name), other) for name, other in self._of.items()]
        for session, other in sorted(waiting, key=lambda pair: pair[0].failures):
            if not (session.held or session.name == computed_by) or other.tokens != beginning.tokens:
                continue
            if session.cache.length >= len(other.tokens) - 1:
                session.held = False  # it has it, also where there was no room to keep it
            elif beginning.serves(other) and tuple(session.tokens[: len(other.tokens)]) == other.tokens:
                self.take(session)
                self._compute(session, other)
        self._pin_kept()

    def _pin_kept(self) -> None:
        """What was to be pinned is pinned once it is kept, whoever has computed it."""
        for name, wanted in self._of.items():
            kept = next((prefix for prefix in self._kept if prefix.of == wanted), None) if wanted.pinned else None
            if kept is not None:
                kept.of = wanted
                self._pinned.append(name)

    def _drop(self, prefix: _Prefix) -> None:
        self._kept.remove(prefix)
        if prefix in self._behind:
            self._behind.remove(prefix)
        prefix.session.close()
