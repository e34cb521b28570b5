"""What a pod has still to write of one call, and what it keeps in case the store loses it again. Knows no Redis."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from service.store.protocol import CallKey, Ownership

MAX_PENDING_BYTES = 1 << 20
"""Of one call, while the store is away. Past it they are dropped, and the whole call is written when it is back."""


@dataclass(frozen=True)
class Batch:
    """after: the highest ``seq`` that must be there already; -1: nothing of the call was ever written. whole: its
    record is all of the call, and needs none before it.
    """

    after: int
    entries: tuple[tuple[int, bytes], ...]
    whole: bool = False

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(len(record) for _, record in self.entries)


class WriteBehind:
    """A ``CallLog`` whose records are taken from it in batches by whoever writes them.

    trust_after_s: how long what was written may still be lost, by a failover or a crash of the store. wake: called with
    it when there is something to write, or nothing more ever.
    """

    def __init__(
        self, key: CallKey, ownership: Ownership, trust_after_s: float, wake: Callable[[WriteBehind], None]
    ) -> None:
        self.key = key
        self.ownership = ownership
        self.closing = ""
        """How it is to be closed: "over" or "forgotten"; empty: not yet."""
        self.dead = False
        """Whether nothing of it is to be written any more."""
        self.left = False
        """Whether it may be forgotten once all is written."""
        self.refusals = 0
        """Times in a row that the store refused it, though it takes what others have to say."""
        self.retry_at = 0.0
        """When it is tried again after those; monotonic seconds."""
        self._trust_after_s = trust_after_s
        self._wake = wake
        self._pending: deque[tuple[float, int, bytes]] = deque()
        """(when, seq, record) of what is to be written."""
        self._pending_bytes = 0
        self._written: deque[tuple[float, int, bytes]] = deque()
        """(when, seq, record) of what was written and may still be lost."""
        self.waiting_since: float | None = None
        """Since when the oldest record that is not written waits; None: there is none. Monotonic seconds."""
        self._top = ownership.stored
        self._kept_from = ownership.stored
        """What came up to here is not kept any more."""
        self._whole = False
        self._new = ownership.base == 0 and ownership.stored == 0

    @property
    def durable_seq(self) -> int:
        self._trust()
        return 0 if self.dead else self._kept_from

    @property
    def unwritten(self) -> int:
        """Records that are to be written."""
        return len(self._pending)

    @property
    def kept(self) -> int:
        """Records that may still be lost, those to be written among them."""
        return len(self._pending) + len(self._written)

    @property
    def to_be_whole(self) -> bool:
        """Whether all of the call is to be written next."""
        return self._whole and not self.closing and not self.left

    @property
    def dirty(self) -> bool:
        """Whether there is something to be written."""
        return not self.dead and bool(self._pending or (self._whole and not self.left) or self.closing)

    @property
    def to_be_closed(self) -> bool:
        """Whether there is nothing to be written before it is closed: of what is deleted nothing is."""
        return self.closing == "forgotten" or (self.closing == "over" and not self._pending)

    def append(self, seq: int, record: bytes) -> None:
        if self.dead:
            return
        now = time.monotonic()
        if self.waiting_since is None:
            self.waiting_since = now
        self._pending.append((now, seq, record))
        self._pending_bytes += len(record)
        if self._pending_bytes > MAX_PENDING_BYTES:
            self._need_whole()
        self._wake(self)

    def close(self, *, forget: bool) -> None:
        if not self.dead and not self.closing:
            self.closing = "forgotten" if forget else "over"
            if forget:
                self._drop()
            self._wake(self)

    def leave(self) -> None:
        """What is not written yet still is; then nothing more of it is this pod's business."""
        self.left = True
        self._wake(self)

    def batch(self, max_bytes: int) -> Batch:
        """What is to be written next: of what waits so many bytes, and one record at least."""
        if self.to_be_whole:
            seq, record = self.ownership.checkpoint()
            self._pending.clear()
            self._pending_bytes = 0
            return Batch(self._after, ((seq, record),), whole=True)
        entries: list[tuple[int, bytes]] = []
        size = 0
        for _, seq, record in self._pending:
            size += len(record)
            if entries and size > max_bytes:
                break
            entries.append((seq, record))
        return Batch(self._after, tuple(entries))

    def wrote(self, batch: Batch) -> None:
        """All of a batch is there."""
        now = time.monotonic()
        self._new = False
        if batch.whole:
            self._whole = False
            self._written.clear()
            self._kept_from = 0
        for seq, record in batch.entries:
            self._written.append((now, seq, record))
            self._top = seq
            if self._pending and self._pending[0][1] == seq:
                self._pending.popleft()
                self._pending_bytes -= len(record)
        self.waiting_since = self._pending[0][0] if self._pending else None
        self._trust()

    def found_hole(self, top: int) -> None:
        """The store has nothing behind ``top``, though more was written: write it again, or all where it has gone."""
        self._wake(self)
        now = time.monotonic()
        if self.waiting_since is None:
            self.waiting_since = now
        if top < self._kept_from:
            self._kept_from = self._top = top
            self._need_whole()
            return
        again = [(now, seq, record) for _, seq, record in self._written if seq > top]
        self._written = deque(entry for entry in self._written if entry[1] <= top)
        self._pending.extendleft(reversed(again))
        self._pending_bytes += sum(len(record) for *_, record in again)
        self._top = top

    def seen(self, top: int) -> bool:
        """The store has so much of what was written; whether some of it is missing."""
        missing = not self.dead and not self._whole and top < self._top
        if missing:
            self.found_hole(top)
        return missing

    def lose(self) -> None:
        """Nothing of it is to be written any more."""
        self.dead = True
        self._drop()
        self._wake(self)

    @property
    def _after(self) -> int:
        return -1 if self._new else self._top

    def _need_whole(self) -> None:
        self._whole = True
        self._pending.clear()
        self._pending_bytes = 0

    def _drop(self) -> None:
        self.waiting_since = None
        self._pending.clear()
        self._pending_bytes = 0
        self._written.clear()

    def _trust(self) -> None:
        """What was written long enough ago is safe, and need not be kept."""
        until = time.monotonic() - self._trust_after_s
        while self._written and self._written[0][0] <= until:
            self._kept_from = self._written.popleft()[1]
