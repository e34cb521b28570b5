"""What the caller seems to be saying: computed while they say it, and answered before they have committed it.

Owns the newest hypothesis of the caller's turn and the reply made ahead to it. Decides what is computed ahead; what is
history, and which turn it is, is decided by ``service.turns``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from functools import partial

from engine import records
from engine.text.common import common_prefix
from service.ahead import Ahead, HeldReply
from service.call_services import Later
from service.client_events import EagerEndOfTurn, Final, Partial, TurnResumed
from service.history import History
from service.options import Generation
from service.problems import Problem
from service.reporter import Reporter
from service.server_events import AheadState, AnsweringAhead, PrefilledAhead
from service.speaking_rate import SpeakingRate
from service.telemetry import Listened
from service.terms import Terms

Hypothesis = Partial | EagerEndOfTurn


class Listening:
    """The hypotheses of one call.

    later: runs something after a time. may_compute: whether hypotheses may be computed now; ``work`` is called when
    they may again. may_answer: whether a turn committed now would be answered on the history as it stands. rate: at
    which the call's replies are spoken.
    """

    def __init__(
        self,
        terms: Terms,
        history: History,
        reporter: Reporter,
        later: Later,
        may_compute: Callable[[], bool],
        may_answer: Callable[[], bool],
        rate: SpeakingRate,
    ) -> None:
        self._terms = terms
        self._history = history
        self._reporter = reporter
        self._later = later
        self._may_compute = may_compute
        self._may_answer = may_answer
        self._rate = rate
        self._ahead = Ahead(terms.answer_ahead, later, self._expired, self._changed)
        self._hypothesis: Hypothesis | None = None
        self._since = 0.0
        self._hypotheses = 0
        self._settled: str | None = None
        """What may be computed of the hypothesis while its end waits; None: all of it."""
        self._stop_waiting: Callable[[], None] = lambda: None

    @property
    def hears(self) -> bool:
        """Whether a turn of the caller has begun."""
        return self._hypothesis is not None

    def is_newer(self, event: Hypothesis) -> bool:
        """Whether it replaces the hypothesis before it: one that comes late or twice does not."""
        last = self._hypothesis
        return last is None or (event.turn_id, event.revision) > (last.turn_id, last.revision)

    def suppose(self, event: Hypothesis) -> None:
        """Take a newer hypothesis. One that says the same leaves what is computed as it is."""
        last, self._hypothesis = self._hypothesis, event
        self._since = self._since or time.monotonic()
        self._hypotheses += 1
        says_the_same = last is not None and (last.turn_id, last.text) == (event.turn_id, event.text)
        if last is not None and says_the_same and _asks_no_more(event, last):
            self._hypothesis = dataclasses.replace(last, revision=event.revision)
            return
        dropped = self._ahead.drop(AheadState.RESUMED)
        self._settle()
        waits = self._terms.unstable_s > 0
        settled = settled_part(event, last) if waits and isinstance(event, Partial) else event.text
        if settled != event.text:
            self._settled = settled
            self._stop_waiting = self._later(self._terms.unstable_s, self._waited)
        if dropped and not settled:
            self._history.flush()  # nothing is computed in its place yet: it must not be made any further
        self.work()

    def resume(self, event: TurnResumed) -> None:
        """The caller went on: what was made ahead is no answer."""
        supposed = self._hypothesis
        if isinstance(supposed, EagerEndOfTurn) and supposed.turn_id == event.turn_id:
            self._doubt(supposed)
            if self._ahead.drop(AheadState.RESUMED):
                self.work()

    def work(self) -> None:
        """Compute the caller's turn as far as it is known, and answer it where they have probably finished."""
        supposed = self._hypothesis
        if supposed is None or self._ahead.holds or not self._may_compute():
            return
        if isinstance(supposed, EagerEndOfTurn) and self._may_answer():
            with contextlib.suppress(Problem):  # what cannot be answered is refused when it is committed
                generation = self._terms.for_turn(supposed.options, "eager_end_of_turn")
                generations, most = self._history.generations, self._terms.answer_ahead.max_tokens
                self._ahead.hold(generations.submit_ahead(supposed, generation, most, self._rate.tokens_per_s))
                return
        told = partial(self._prefilled, supposed) if self._terms.progress_notices else None
        text = supposed.text if self._settled is None else self._settled
        if text:
            self._history.prefill(text, told)

    def take(self, event: Final, generation: Generation) -> HeldReply | None:
        """The reply that was made ahead, if it answers this turn; otherwise there is none any more."""
        encode = self._history.user_tokens
        differs = self._ahead.differs(event.turn_id, event.text, generation, encode)
        if self._ahead.usable(event.turn_id) and self._may_answer() and not differs:
            return self._ahead.take()
        self._ahead.drop(AheadState.MISMATCHED if differs else AheadState.ABANDONED)
        return None

    def released(self, held: HeldReply) -> None:
        """The reply that was made ahead is on its way."""
        self._changed(AheadState.RELEASED, held)

    def reconsider(self) -> None:
        """What could not be answered on the history as it stands may be answered now."""
        if isinstance(self._hypothesis, EagerEndOfTurn):
            self.work()

    def abandon(self) -> None:
        """The history is about to change under what was made ahead."""
        self._ahead.drop(AheadState.ABANDONED)

    def end_turn(self) -> Listened:
        """The turn is committed, or another one is; returns what was done ahead of it."""
        listened = Listened(self._since, self._hypotheses, self._ahead.take_wasted())
        self._hypothesis, self._since, self._hypotheses = None, 0.0, 0
        self._settle()
        return listened

    def _doubt(self, supposed: EagerEndOfTurn) -> None:
        """The caller may go on after all."""
        self._hypothesis = Partial(supposed.turn_id, supposed.revision, supposed.text)

    def _settle(self) -> None:
        """Nothing waits to become stable any more."""
        self._settled = None
        self._stop_waiting()

    def _waited(self) -> None:
        """The end of the hypothesis has stood for long enough."""
        self._settled = None
        self.work()

    def _expired(self) -> None:
        if isinstance(self._hypothesis, EagerEndOfTurn):
            self._doubt(self._hypothesis)
        self.work()

    def _changed(self, state: AheadState, held: HeldReply) -> None:
        self._reporter.notice(AnsweringAhead(held.asked.turn_id, state, held.num_tokens))

    def _prefilled(self, supposed: Hypothesis, record: records.Prefilled) -> None:
        news = PrefilledAhead(supposed.turn_id, supposed.revision, record.tokens, record.rewound, record.computed)
        self._reporter.notice(news)


def settled_part(event: Partial, last: Hypothesis | None) -> str:
    """What will hardly be revised of a hypothesis: as far as the recogniser says, or as the one before it said the same
    (local agreement, Liu et al. 2020, "Low-latency sequence-to-sequence speech recognition"), in whole words.
    """
    before = last.text if last is not None and last.turn_id == event.turn_id else ""
    both = common_prefix(event.text, before)
    if both != event.text and not event.text[len(both)].isspace():
        both = both[: max(0, *map(both.rfind, " \n\t"))]
    return max(both, event.text[: event.stable], key=len)


def _asks_no_more(event: Hypothesis, last: Hypothesis) -> bool:
    """Whether all that ``event`` wants to have done is done for ``last``, which said the same."""
    return isinstance(event, Partial) or (isinstance(last, EagerEndOfTurn) and last.options == event.options)
