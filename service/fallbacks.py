"""Who answers a turn whose first token is late: the chain of a call, and when each link of it begins.

Knows replies, time and the chain. What the links do is done by ``service.history``, and told by ``service.reporter``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from service.call_services import Later
from service.history import History
from service.options import Fallback
from service.problems import Problem, Reason
from service.reply import Phase, RecordSink, Reply
from service.reporter import Reporter
from service.server_events import AnswerSource

LEAD_S = 0.005
"""How long before the deadline a link begins that needs no time itself: what a busy process's timer may be late by."""


class Fallbacks:
    """The chain of one call. It begins when the engine says that the first token will be late, when there is no engine,
    or when so little time is left that the first link needs it all.

    serving: whether the call's own engine is there. sink: what takes a generation's records for a reply. end: ends a
    turn, with what it failed of.
    """

    def __init__(
        self,
        chain: Sequence[Fallback],
        history: History,
        reporter: Reporter,
        serving: Callable[[], bool],
        later: Later,
        sink: Callable[[Reply], RecordSink],
        end: Callable[[Reply, Problem | None], None],
    ) -> None:
        self._chain = chain
        self._history = history
        self._reporter = reporter
        self._serving = serving
        self._later = later
        self._sink = sink
        self._end = end
        self._reply: Reply | None = None
        self._next = 0
        self._allowed_s = 0.0
        self._expected: float | None = None
        self._warned = False
        self._call_off: Callable[[], None] = lambda: None

    def watch(self, reply: Reply) -> None:
        """Somebody waits for the first token of this reply."""
        self._call_off()
        self._reply, self._next, self._expected, self._warned = reply, 0, None, False
        self._allowed_s = reply.deadline - reply.record.committed if reply.deadline else 0.0
        if not reply.deadline or not self._is_awaited(reply):
            return
        if self._serving():
            left = reply.deadline - time.monotonic()
            self._wait(left - min(left / 2, self._lead() or left / 2), self._due)
        else:
            self._late(reply)

    def expect(self, reply: Reply, at: float) -> None:
        """The engine expects the reply's first token ``at`` (monotonic seconds)."""
        if not self._is_awaited(reply) or self._next:
            return
        self._expected = at
        if at > reply.deadline:
            self._late(reply)
        else:  # an estimate may be out by as much as half of what is left behind it
            half = (at + reply.deadline) / 2
            lead = self._lead()
            latest = half if lead is None else max(half, reply.deadline - lead)
            self._wait(latest - time.monotonic(), self._due)

    def rescue(self, reply: Reply) -> bool:
        """The engine has failed; whether another link of the chain answers."""
        return self._is_awaited(reply) and self._take_next(reply)

    def close(self) -> None:
        """The call is over."""
        self._call_off()

    def _is_awaited(self, reply: Reply) -> bool:
        """Whether nothing has come of it yet, and something still should."""
        unsaid = len(reply.segments) == 1 and not reply.current.tokens
        return reply is self._reply and reply.phase is Phase.GENERATING and unsaid

    def _lead(self) -> float | None:
        """How long before a deadline the first link has to begin; None where nobody knows."""
        link = next(filter(self._can_answer, self._chain), None)
        if link is None or not link.model:
            return LEAD_S
        needed = self._history.shadows[link.model].resident.first_token_s
        return None if needed is None else 2 * needed + LEAD_S

    def _can_answer(self, link: Fallback) -> bool:
        if link.phrase:
            return self._history.fits_said(link.phrase)
        shadow = self._history.shadows.get(link.model)  # which a server that has taken the call over may not have
        return shadow is not None and shadow.can_answer

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        self._call_off()
        self._call_off = self._later(max(0.0, seconds), then)

    def _due(self) -> None:
        """Nothing has come, and there is no more time to wait for it."""
        reply = self._reply
        if reply is not None and self._is_awaited(reply):
            self._expected = None  # whatever was expected was wrong
            self._late(reply)

    def _late(self, reply: Reply) -> None:
        """The call's own model will miss the deadline. Where no link can answer it may still be there in time."""
        self._call_off()
        if not self._warned:
            self._warned = True
            self._reporter.deadline_at_risk(reply, self._expected)
        if self._chain and not self._take_next(reply):
            self._wait(reply.deadline - time.monotonic(), self._give_up)

    def _link_due(self) -> None:
        reply = self._reply
        if reply is not None and self._is_awaited(reply) and not self._take_next(reply):
            self._give_up()

    def _give_up(self) -> None:
        """The last link has not answered either."""
        reply = self._reply
        if reply is not None and self._is_awaited(reply):
            self._history.withdraw(reply)
            allowed_ms = round(self._allowed_s * 1000)
            self._end(reply, Problem(Reason.FIRST_TOKEN_LATE, f"no first token within {allowed_ms} ms"))

    def _take_next(self, reply: Reply) -> bool:
        """The next link that can answer does; whether there is one. If not, whoever is asked goes on."""
        while self._next < len(self._chain):
            index, link = self._next, self._chain[self._next]
            self._next += 1
            if self._can_answer(link) and (link.phrase or self._history.follow(link.model)):
                self._call_off()
                if link.phrase:  # told before it is said: who goes on from here elsewhere has heard nothing of it
                    self._reporter.fallback_taken(reply, index, "")
                self._history.withdraw(reply)
                reply.record.begin_again(link.model)
                if link.phrase:
                    self._say(reply, link.phrase)
                else:
                    self._ask(reply, index, link)
                return True
        return False

    def _ask(self, reply: Reply, index: int, link: Fallback) -> None:
        self._allowed_s = self._allowed_s if link.deadline_ms is None else link.deadline_ms / 1000
        reply.answerer, reply.source = self._history.shadows[link.model], AnswerSource.FALLBACK_MODEL
        self._history.generations.submit(reply, self._sink(reply))
        self._reporter.fallback_taken(reply, index, link.model)
        if self._allowed_s:
            self._wait(self._allowed_s, self._link_due)

    def _say(self, reply: Reply, phrase: str) -> None:
        segment = self._history.put_said(phrase, "")
        reply.answerer, reply.source = None, AnswerSource.FALLBACK_PHRASE
        reply.segments.append(segment)
        self._reporter.said(reply, segment)
        self._history.flush()
        self._end(reply, None)
