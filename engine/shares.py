"""What each session forwards in a step, and pages for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Literal

from engine.errors import EngineError, OutOfPages
from engine.policy import Given
from engine.session import Session
from engine.tree import DraftTree

Fail = Callable[[Session, EngineError], None]
"""Told of a session that has no share in the step, and why."""


@dataclass(frozen=True, eq=False)
class Share:
    """What one session forwards: the first ``given`` nodes of the tree are no guesses."""

    session: Session
    tree: DraftTree
    given: int

    @property
    def chooses(self) -> bool:
        """Whether the given tokens reach the end of the log, behind which a reply has its next token."""
        return self.session.turn is not None and self.session.num_pending == self.given

    @property
    def is_drafted(self) -> bool:
        return len(self.tree) > self.given

    @property
    def wanted_logits(self) -> Literal["all", "last", "none"]:
        if self.is_drafted:
            return "all"
        return "last" if self.chooses else "none"


def given_in(shares: Sequence[Share]) -> Given:
    """What of a step is no drafting, for whoever decides how much of that there is to be."""
    return Given(len(shares), sum(share.given for share in shares), sum(share.chooses for share in shares))


def with_room(shares: Sequence[Share], sessions: Collection[Session], fail: Fail) -> list[Share]:
    """Those for which pages are reserved, what callers wait for first. No draft, and nothing that no caller waits for,
    takes the page that a reply needs.

    sessions: all that there are. fail: told of those that end for want of pages; who can wait for some is stalled.
    """
    ready: list[Share] = []
    for share in sorted(shares, key=lambda share: not share.session.awaited):
        session, turn = share.session, share.session.turn
        if turn is not None and turn.stats.started == 0.0:
            turn.stats.started = monotonic()
        # All of a prompt or nothing: one that is too long must not take, chunk by chunk, what others need to go on.
        if session.cache.pages_wanted(session.num_unread) > session.cache.pool.free_pages:
            _return_scratch(sessions)
        try:
            session.cache.reserve(session.num_unread)
        except EngineError as error:
            if ready and isinstance(error, OutOfPages) and not session.awaited and _ever_fits(session):
                session.stall()  # pages of whoever has them in this step may be free in the next one
            else:
                fail(session, error)
        else:
            ready.append(share)
    for at, share in enumerate(ready):
        if share.is_drafted:
            try:
                share.session.cache.reserve(len(share.tree))
            except OutOfPages:
                ready[at] = Share(share.session, DraftTree.chain(share.tree.tokens[:1]), 1)
    return ready


def _ever_fits(session: Session) -> bool:
    cache = session.cache
    return cache.num_pages + cache.pages_wanted(session.num_unread) <= cache.pool.num_pages


def _return_scratch(sessions: Collection[Session]) -> None:
    """Pages are short: drafts keep none for the next ones. What is read in this step stays reserved."""
    for session in sessions:
        session.cache.return_scratch(max(0, session.num_unread))
