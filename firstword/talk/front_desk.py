"""What answers the receptionist's tools in a demonstration: a calendar that is free, and a booking that is there."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping


class FrontDesk:
    """Answers tool calls. recorded: (tool, output) of a recorded call, used up in order before anything is made up."""

    def __init__(self, recorded: Iterable[tuple[str, str]] = ()) -> None:
        self._recorded: dict[str, deque[str]] = {}
        for name, output in recorded:
            self._recorded.setdefault(name, deque()).append(output)
        self._booked = 2440
        self._tools: Mapping[str, Callable[[], dict[str, object]]] = {
            "check_availability": lambda: {"free": True},
            "book_appointment": lambda: {"id": self._new_id()},
            "find_appointment": lambda: {
                "id": self._new_id(),
                "service": "haircut",
                "date": "next Friday",
                "time": "10:45 am",
            },
            "move_appointment": lambda: {"ok": True},
            "cancel_appointment": lambda: {"ok": True},
            "take_message": lambda: {"ok": True},
            "transfer_call": lambda: {"ok": True},
        }

    def answer(self, name: str) -> str | None:
        """The output of one call of that tool, as JSON text; None for a tool that only somebody else can answer."""
        if recorded := self._recorded.get(name):
            return recorded.popleft()
        tool = self._tools.get(name)
        return None if tool is None else json.dumps(tool())

    def _new_id(self) -> str:
        self._booked += 1
        return f"V{self._booked}"
