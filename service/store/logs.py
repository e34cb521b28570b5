"""The calls of which a process has something to write, or may have. Knows no Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from service.store.log import WriteBehind
from service.store.protocol import CallKey, Ownership


class Logs:
    """trust_after_s: as in ``WriteBehind``. on_news: called when there is something to be done."""

    def __init__(self, trust_after_s: float, on_news: Callable[[], None]) -> None:
        self._trust_after_s = trust_after_s
        self._on_news = on_news
        self._live: dict[CallKey, WriteBehind] = {}
        self._ending: list[WriteBehind] = []
        self._woken: dict[WriteBehind, None] = {}
        """Those among ``_live`` that may have something to be written, or be over: others cost a round nothing. In
        order.
        """

    @property
    def live(self) -> Sequence[WriteBehind]:
        """Those that have their names here."""
        return tuple(self._live.values())

    @property
    def all(self) -> Sequence[WriteBehind]:
        """With those that have ended, until all of theirs is written."""
        return (*self._live.values(), *self._ending)

    def begin(self, key: CallKey, ownership: Ownership) -> WriteBehind:
        """As of ``Store``."""
        if (old := self._live.pop(key, None)) is not None:  # of a call of this name that is over, or was lost
            self._woken.pop(old, None)
            self._ending.append(old)
            old.leave()
        self._live[key] = made = WriteBehind(key, ownership, self._trust_after_s, self._wake)
        return made

    def has_its_name(self, log_: WriteBehind) -> bool:
        """Whether no later call has it here."""
        return self._live.get(log_.key, log_) is log_

    def oldest(self) -> Iterable[WriteBehind]:
        """Of each name what has to be written first: what ends, as the name may be another's by now."""
        oldest: dict[CallKey, WriteBehind] = {}
        for log_ in (*self._ending, *self._woken):
            if log_.dirty:
                oldest.setdefault(log_.key, log_)
        return oldest.values()

    def settle(self) -> None:
        """Calls that have left are kept until all of theirs is written."""
        for log_ in self._woken:
            if log_.dead or log_.left or log_.closing:
                del self._live[log_.key]
                self._ending.append(log_)
        self._ending = [log_ for log_ in self._ending if log_.dirty]
        self._woken = {log_: None for log_ in self._woken if log_.dirty and self._live.get(log_.key) is log_}

    def _wake(self, log_: WriteBehind) -> None:
        if self._live.get(log_.key) is log_:
            self._woken[log_] = None
        self._on_news()
