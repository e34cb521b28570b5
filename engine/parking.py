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

    def must_wait(self, command: records.Command) -> bool:
        """Whether the command asks for a reply whose grammar is not there."""
        if not isinstance(command, records.Submit) or command.constraint is None:
            return False
        return not self._ready(command.constraint)

    def begin(self, command: records.Submit) -> None:
        """The command, and all that is sent to its session from now on, waits."""
        self._waiting[command.session] = [command]

    def queues(self, command: records.Command) -> bool:
        """Whether the command waits because one before it does; then it is kept."""
        waiting = self._waiting.get(getattr(command, "session", ""))
        if waiting is None:
            return False
        waiting.append(command)
        if isinstance(command, records.Fork):
            self._waiting.setdefault(command.child, waiting)  # what is sent to the fork comes behind it
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
