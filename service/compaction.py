"""A context that fills up: the call's policy, announced and then applied between turns, so that nobody waits for it.

Owns the summary that is being written. The tokens are ``service.conversation``'s.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from engine import records
from service.admission import AskAside
from service.call_services import Record
from service.client_events import Generate
from service.editing import agreeing
from service.history import History
from service.items import Item
from service.options import GenerationPatch
from service.problems import Problem, generation_problem
from service.reporter import Reporter
from service.server_events import HistoryCause
from service.terms import Terms

log = logging.getLogger(__name__)

Moved = Callable[[int], int]
"""Where an end of an item is since."""

SUMMARY_INSTRUCTIONS = (
    "Summarise the conversation so far in a few sentences, for whoever goes on with it: what the caller wants, what "
    "was found out and agreed, with all names, numbers, dates and times."
)
MAX_SUMMARY_TOKENS = 256
LONGEST_TURN_SEEN = 32
"""Tokens that a turn of the caller is expected to have before there was a longer one."""


@dataclass(eq=False)
class _Summary:
    """One that is being written, or is. fork: that writes it. covered: the items that it speaks of and that may go.
    tokens: that the fork does not share with the call, those of the longest summary included.
    """

    fork: str
    covered: tuple[Item, ...]
    tokens: int = 0
    text: list[str] = field(default_factory=list)
    done: bool = False


class Compaction:
    """Of one call. admit: raises Problem where there is no room to write a summary aside. on_summary: called when there
    is one to be put into force.
    """

    def __init__(
        self, terms: Terms, history: History, reporter: Reporter, admit: AskAside, on_summary: Callable[[], None]
    ) -> None:
        self._terms = terms
        self._history = history
        self._reporter = reporter
        self._admit = admit
        self._on_summary = on_summary
        self._summary: _Summary | None = None
        self._in_vain = False
        """Whether the last one came to nothing: until turns have gone another would, too."""

    @property
    def tokens(self) -> int:
        """That a summary being written has beside the call's own."""
        return 0 if self._summary is None or self._summary.done else self._summary.tokens

    def apply(self) -> Iterator[Moved]:
        """No turn is in progress: announce and do what the policy says. Gives where things are since, by change."""
        self._reporter.announce()
        action, limit = self._terms.context.action, self._terms.max_context_tokens
        if action == "refuse":
            return
        yield from self.put_summary()
        used, need = self._history.length, self._next_turn()
        # Early enough for one more turn to be had while it is written.
        soon = used >= min(self._terms.announce_at, limit - 2 * need) and used > self._terms.keep_tokens
        if action == "summarise" and self._summary is None and soon and not self._in_vain:
            self._begin_summary(used)
        if used + need >= limit and self._summary is None:
            yield from self.make_room(need)

    def make_room(self, need: int) -> Iterator[Moved]:
        """So many tokens do not fit, or may not: drop the oldest turns, if that is the policy and would do."""
        used, limit = self._history.length, self._terms.max_context_tokens
        if self._terms.context.action == "refuse":
            return
        try:
            changed = self._history.drop_oldest(min(self._terms.keep_tokens, limit - need - 1), need=need)
        except Problem as problem:  # the template takes the instructions with the first turns alone
            log.warning("no turn can be dropped", extra={"cause": str(problem)})
            return
        if changed is not None:
            kept, moved = changed
            yield moved
            self._in_vain = False
            self._reporter.announce(due_at=used)
            self._reporter.history_changed(HistoryCause.DROPPED_OLDEST, kept)

    def close(self) -> None:
        """The call is over."""
        self._drop_summary()

    def _next_turn(self) -> int:
        """Tokens that the caller's next turn and the reply to it may well need."""
        heard = max(LONGEST_TURN_SEEN, self._history.longest_turn)
        reply = min(self._terms.generation.max_tokens, self._terms.max_context_tokens // 8)
        return heard + self._history.prompt_tokens + reply

    def _begin_summary(self, used: int) -> None:
        """Have one written aside; a call that has no room for it drops turns instead, unless there is room in time."""
        covered = self._history.settled_items
        if not covered:
            return
        question = self._terms.context.summary_instructions or SUMMARY_INSTRUCTIONS
        asked = Generate(0, question, generation=GenerationPatch(temperature=0.0, max_tokens=MAX_SUMMARY_TOKENS))
        summary = self._summary = _Summary(self._history.generations.new_fork("summary"), covered)
        try:
            generation = self._terms.for_question(asked.generation)
            told = partial(self._hear, summary)
            summary.tokens = self._history.generations.ask_aside(summary.fork, asked, generation, told, self._admit)
            self._reporter.announce(due_at=used)
        except Problem as problem:
            log.warning("no summary", extra={"cause": str(problem)})
            self._summary, self._in_vain = None, problem.retry_after_s is None

    def _hear(self, summary: _Summary, record: Record) -> None:
        if self._summary is not summary:
            return
        match record:
            case records.Progress():
                summary.text.append(record.text)
            case records.Ended() if generation_problem(record.finish, record.error) is None:
                self._history.generations.close_fork(summary.fork)
                summary.done = True
                self._on_summary()
            case records.Ended() | records.Failed():
                self._drop_summary()

    def put_summary(self) -> Iterator[Moved]:
        """Let it take the place of the turns that it covers, unless these have been edited since."""
        summary = self._summary
        if summary is None or not summary.done:
            return
        text = "".join(summary.text).strip()
        self._summary, self._in_vain = None, not text
        still = agreeing(self._history.items, summary.covered) == len(summary.covered)
        if not text or not still:
            return
        try:
            changed = self._history.drop_oldest(self._terms.keep_tokens, len(summary.covered), text)
        except Problem as problem:  # the template takes no system prompt
            self._in_vain = True
            log.warning("no place for a summary", extra={"cause": str(problem)})
            return
        if changed is not None:
            self._in_vain = False
            kept, moved = changed
            yield moved
            self._reporter.history_changed(HistoryCause.SUMMARISED, kept, text)

    def _drop_summary(self) -> None:
        if self._summary is not None and not self._summary.done:
            self._history.generations.close_fork(self._summary.fork)
        self._summary, self._in_vain = None, True
