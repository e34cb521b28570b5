"""Commands that wait for a grammar: a large schema takes a tenth of a second to compile, and only its session waits."""

from __future__ import annotations

from collections.abc import Callable

from engine import records
from engine.constraint import Constraint


class Parking:
    """The sessions whose next reply cannot begin yet, each with all that was sent to it since, in order.

    ready: whether a constraint's grammar is there.
    """

    def __init__(self, ready: Callable[[Constraint], bool]) -> None:
        self._ready = ready
        self._waiting: dict[str, list[records.Command]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def takes(self, command: records.Command) -> bool:
        """Whether the command waits, for its own grammar or because one before it does."""
        session = getattr(command, "session", "")
        waiting = self._waiting.get(session)
        if waiting is None:
            if not isinstance(command, records.Submit) or command.constraint is None or self._ready(command.constraint):
                return False
            waiting = self._waiting[session] = []
        waiting.append(command)
        if isinstance(command, records.Fork):
            self._waiting[command.child] = waiting  # what is sent to the fork comes behind it
        return True

    def leave(self) -> list[records.Command]:
        """The commands of sessions whose grammars are there by now. They may have to wait again."""
        left: list[records.Command] = []
        for queue in {id(queue): queue for queue in self._waiting.values()}.values():
            first = queue[0]
            assert isinstance(first, records.Submit) and first.constraint is not None
            if self._ready(first.constraint):
                left += queue
                self._waiting = {session: other for session, other in self._waiting.items() if other is not queue}
        return left
