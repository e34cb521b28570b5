"""Replies made ahead: generated when the caller has probably finished, held back, then released or dropped.

Owns the one reply that a call may hold: what the engine says of it, how long it is held, and which final it answers.
Knows no client and no history: whoever drops one has the engine's log put right.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field

from engine import records
from service.call_services import Later, Record
from service.client_events import EagerEndOfTurn
from service.options import AnswerAhead, Generation
from service.problems import generation_problem
from service.reply import RecordSink, Segment, Steps
from service.server_events import AheadState


@dataclass(eq=False)
class HeldReply:
    """asked: the turn that it answers, and ``tokens``: its ids. records: what the engine said and nobody was told.
    num_tokens: generated ahead.
    """

    asked: EagerEndOfTurn
    tokens: tuple[int, ...]
    generation: Generation
    segment: Segment
    records: list[Record] = field(default_factory=list)
    num_tokens: int = 0
    _sink: RecordSink | None = None

    @property
    def failed(self) -> bool:
        """Whether it came to no good end: who asks for the turn is not to have that."""
        return any(
            isinstance(record, records.Failed)
            or (isinstance(record, records.Ended) and generation_problem(record.finish, record.error) is not None)
            for record in self.records
        )

    def take(self, record: Record) -> None:
        """Keep what the engine says, or hand it on once the reply is released and nothing before it is held."""
        if self._sink is None and isinstance(record, records.Progress):
            self.num_tokens += len(record.tokens)
        if self._sink is None or self.records:
            self.records.append(record)
        else:
            self._sink(self.segment, record)

    def release(self, sink: RecordSink, later: Later) -> None:
        """Hand on what was held, and from now on whatever comes.

        Held text goes out as one: an event for each step, with a record to be signed, would keep the first one waiting.
        So would the end of the turn, which is written down and counted: what is behind the first text comes ``later``.
        """
        self._sink = sink
        while self.records and not self._hand_on_next():
            pass
        if self.records:
            later(0.0, self._hand_on_rest)

    def _hand_on_rest(self) -> None:
        while self.records:
            self._hand_on_next()

    def _hand_on_next(self) -> bool:
        """One record, or the steps up to a tool call or to something else as one; whether it was steps."""
        steps: list[records.Progress] = []
        for record in self.records:
            if not isinstance(record, records.Progress):
                break
            steps.append(record)
            if record.calls:
                break
        held, self.records = self.records[: len(steps) or 1], self.records[len(steps) or 1 :]
        if self._sink is not None and held:
            self._sink(self.segment, Steps(tuple(steps)) if steps else held[0])
        return bool(steps)


class Ahead:
    """The reply that a call holds, if it does.

    rule: when it answers a final, and for how long it is held. later: runs something after a time. on_expired: called
    when nobody has asked for the reply in time. on_state: told what becomes of a reply.
    """

    def __init__(
        self,
        rule: AnswerAhead,
        later: Later,
        on_expired: Callable[[], None],
        on_state: Callable[[AheadState, HeldReply], None],
    ) -> None:
        self._rule = rule
        self._later = later
        self._on_expired = on_expired
        self._on_state = on_state
        self._held: HeldReply | None = None
        self._call_off: Callable[[], None] = lambda: None
        self._wasted = 0

    def hold(self, held: HeldReply) -> None:
        """A reply is being made."""
        self._held = held
        self._call_off = self._later(self._rule.max_s, self._expire)
        self._on_state(AheadState.STARTED, held)

    @property
    def holds(self) -> bool:
        """Whether there is one."""
        return self._held is not None

    def usable(self, turn_id: int) -> bool:
        """Whether the reply being held is one to this turn, and has come to no bad end."""
        return self._held is not None and not self._held.failed and self._held.asked.turn_id == turn_id

    def differs(
        self, turn_id: int, text: str, generation: Generation, encode: Callable[[str], tuple[int, ...]]
    ) -> bool:
        """Whether the reply being held is one to this turn, but not to what it says, or made otherwise. encode: makes
        a turn's ids; it is not asked where that is plain without them, for somebody waits.
        """
        held = self._held
        if held is None or held.asked.turn_id != turn_id:
            return False
        if held.generation != generation:
            return True
        if held.asked.text == text or held.tokens == encode(text):
            return False
        words = normalised(text) if self._rule.normalised else ""
        return not words or words != normalised(held.asked.text)

    def take(self) -> HeldReply:
        """The reply being held, which is released now: that it was is told when its text is on its way."""
        assert self._held is not None
        held, self._held = self._held, None
        self._call_off()
        return held

    def drop(self, state: AheadState) -> bool:
        """Forget the reply being held; whether there was one. What the engine has of it is the caller's to undo."""
        held, self._held = self._held, None
        if held is None:
            return False
        self._call_off()
        self._wasted += held.num_tokens
        self._on_state(state, held)
        return True

    def take_wasted(self) -> int:
        """Tokens of the replies that were dropped since this was last asked."""
        wasted, self._wasted = self._wasted, 0
        return wasted

    def _expire(self) -> None:
        if self.drop(AheadState.EXPIRED):
            self._on_expired()


def normalised(text: str) -> str:
    """The text without case, punctuation and spacing: the letters, digits, marks and symbols that it is made of.

    Punctuation stays where a digit follows at once: -5 is not 5, and 3.5 is not 35.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    pairs = zip(folded, folded[1:] + " ", strict=True)
    return "".join(
        c
        for c, after in pairs
        if unicodedata.category(c)[0] not in "PZC" or (after.isdigit() and unicodedata.category(c)[0] == "P")
    )
