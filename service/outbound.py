"""What a call says: numbered, written down with what it changed, and kept for a client that comes back.

Owns the numbers of events, their records and the replay buffer. Knows nothing of what the events mean.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from service.call_records import Record, written
from service.call_state import Delta
from service.journal import Journal
from service.server_events import (
    AnsweringAhead,
    DeadlineAtRisk,
    Draining,
    Durability,
    EngineRestarted,
    Envelope,
    ModeChange,
    Opened,
    PrefilledAhead,
    ResumeToken,
    ServerEvent,
    TurnEnded,
)
from service.signing import Signing
from service.store import CallKey, CallLog

Send = Callable[[Envelope], None]

PASSING = (
    AnsweringAhead,
    DeadlineAtRisk,
    Draining,
    Durability,
    EngineRestarted,
    ModeChange,
    PrefilledAhead,
    ResumeToken,
)
"""Events that change nothing of a call, and are not written down."""


WHOLE_EVERY = 256
"""Records after which the end of a turn is written down with the whole call: what came before can be forgotten."""


@dataclass
class _Unsent:
    """An event that waits for what else its cause changes. prev: the record before its own; 0 where that is the whole
    call. deltas: none where it is not written down.
    """

    seq: int
    event: ServerEvent
    prev: int
    deltas: list[Delta]


class Outbound:
    """Of one call. generation: of the lease; base: the last event of the generations before it. log: takes the records.
    opened_at: as in ``Record``.

    send: takes each event; nobody's while no client is there. client_seq: the highest client event received.
    """

    def __init__(
        self,
        key: CallKey,
        signing: Signing,
        journal: Journal,
        log: CallLog,
        send: Send,
        *,
        opened_at: float,
        generation: int,
        base: int,
        client_seq: int,
        replay_events: int,
    ) -> None:
        self.generation = generation
        self.seq = base
        self.client_seq = client_seq
        self._key = key
        self._opened_at = opened_at
        self._signing = signing
        self._journal = journal
        self._log = log
        self._send = send
        self._base = base
        self._prev = self._whole = self._records = 0
        self._handled = client_seq
        self._handling = False
        self._unsent: _Unsent | None = None
        self._replay: deque[Envelope] = deque(maxlen=replay_events)

    def emit(self, event: ServerEvent) -> int:
        """Number an event and send it; returns its number."""
        self._release()
        self.seq += 1
        # The first one is, whatever it is: it says from where on the generations before it are void.
        passing = isinstance(event, PASSING) and self._prev > 0
        whole = self._prev == 0 or (isinstance(event, TurnEnded) and self._records >= WHOLE_EVERY)
        make = self._journal.begin if whole else self._journal.delta
        deltas = [] if passing else [make(self._handled)]
        self._unsent = _Unsent(self.seq, event, 0 if whole else self._prev, deltas)
        if not self._handling:
            self._release()
        return self.seq

    @contextmanager
    def handling(self, client_seq: int) -> Iterator[None]:
        """A client event is being handled. The last event that comes of it holds all that it changed: a client that has
        that one need not send its own again.
        """
        self.client_seq = max(self.client_seq, client_seq)
        self._handling = True
        try:
            yield
        finally:
            self._handling = False
            self._handled = self.client_seq
            if self._unsent is not None and self._unsent.deltas:
                self._unsent.deltas.append(self._journal.delta(self._handled))
            self._release()

    def checkpoint(self) -> tuple[int, bytes]:
        """(the last event's number, a record of the whole call as it is now)"""
        return self.seq, self._record(self.seq, 0, (self._journal.whole(self._handled),))

    def covers(self, last_seq: int) -> bool:
        """Whether everything behind an event can be replayed."""
        first = self._replay[0].seq if self._replay else self.seq + 1
        return first - 1 <= last_seq <= self.seq

    def replay(self, send: Send, opened: Opened, last_seq: int) -> None:
        """Another stream takes over from the one before, and gets what that one did not."""
        self._send = send
        self.greet(opened, last_seq)
        for envelope in self._replay:
            if envelope.seq > last_seq:
                send(envelope)

    def unread(self, last_seq: int) -> list[ServerEvent]:
        """What will be replayed behind an event."""
        return [envelope.event for envelope in self._replay if envelope.seq > last_seq]

    def greet(self, opened: Opened, last_seq: int) -> None:
        """Begin a resumed stream. This is no event of the call, and has the number of the last one received."""
        self._send(Envelope(self.generation, last_seq, self._log.durable_seq, self._handled, opened))

    def pause(self) -> None:
        """Nobody is there: events are kept for who may come."""
        self._send = lambda envelope: None

    def acknowledge(self, seq: int) -> bool:
        """Events up to ``seq`` are not needed any more; whether there were so many."""
        if seq > self.seq:
            return False
        while self._replay and self._replay[0].seq <= seq:
            self._replay.popleft()
        return True

    def flush(self) -> None:
        """Nothing more will come of what is being handled."""
        self._release()

    def _release(self) -> None:
        """Send the event that waits."""
        unsent, self._unsent = self._unsent, None
        if unsent is None:
            return
        record = b""
        if unsent.deltas:
            record = self._record(unsent.seq, unsent.prev, tuple(unsent.deltas))
            self._prev, self._records = unsent.seq, self._records + 1
            if unsent.prev == 0:
                self._whole, self._records = unsent.seq, 0
            self._log.append(unsent.seq, record)
        durable = self._log.durable_seq
        envelope = Envelope(self.generation, unsent.seq, durable, self.client_seq, unsent.event, record, self._whole)
        self._replay.append(envelope)
        self._send(envelope)

    def _record(self, seq: int, prev: int, deltas: tuple[Delta, ...]) -> bytes:
        tenant, call = self._key.tenant, self._key.session
        record = Record(tenant, call, self.generation, self._base, seq, prev, deltas, self._opened_at)
        return written(self._signing, record)
