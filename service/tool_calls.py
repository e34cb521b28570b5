"""The tool calls of one call: how many may be made, which have been answered, and whose time is up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from service.call_services import Later
from service.items import ToolCallItem
from service.problems import Guardrail
from service.terms import Terms


class ToolCalls:
    """on_timed_out: told of a call that had no result in time, and of that time in milliseconds."""

    def __init__(self, terms: Terms, later: Later, on_timed_out: Callable[[ToolCallItem, int], None]) -> None:
        self._terms = terms
        self._later = later
        self._on_timed_out = on_timed_out
        self._made = 0
        self._answered: dict[str, None] = {}
        self._timers: dict[str, Callable[[], None]] = {}

    @property
    def made(self) -> int:
        """How many were made in this call."""
        return self._made

    @property
    def ids_answered(self) -> Mapping[str, None]:
        """Of those that have a result, in order."""
        return self._answered

    def restore(self, made: int, answered: Iterable[str], waiting: Iterable[ToolCallItem]) -> None:
        """As they were in a call that was written down; the time of those that are waited for begins again."""
        self._made = made
        self._answered = dict.fromkeys(answered)
        for call in waiting:
            self.sent(call)

    @property
    def exhausted(self) -> tuple[Guardrail, int] | None:
        """The guardrail because of which no more can be made in this call, and its value; None while there is none."""
        limit = self._terms.limits.max_tool_calls_per_call
        return (Guardrail.TOOL_CALLS_PER_CALL, limit) if limit is not None and self._made >= limit else None

    def admit(self, wanted: int, in_turn: int) -> tuple[int, tuple[Guardrail, int] | None]:
        """(how many of ``wanted`` more calls are made, the guardrail that the next would break and its value).

        in_turn: calls that the turn has made.
        """
        limits = self._terms.limits
        rooms = [
            (limit - made, (guardrail, limit))
            for guardrail, limit, made in (
                (Guardrail.TOOL_CALLS_PER_TURN, limits.max_tool_calls_per_turn, in_turn),
                (Guardrail.TOOL_CALLS_PER_CALL, limits.max_tool_calls_per_call, self._made),
            )
            if limit is not None and limit - made < wanted
        ]
        allowed, broken = min(rooms, key=lambda room: room[0]) if rooms else (wanted, None)
        self._made += allowed
        return allowed, broken

    def sent(self, call: ToolCallItem) -> None:
        """The client has been told of a call: its time begins."""
        timeout_ms = self._terms.tool_timeout_ms(call.name)
        if timeout_ms is not None:
            self._timers[call.call_id] = self._later(timeout_ms / 1000, partial(self._expire, call, timeout_ms))

    def is_answered(self, call_id: str) -> bool:
        return call_id in self._answered

    def answered(self, call_id: str) -> None:
        """Its result is there."""
        self._answered[call_id] = None
        self.forget(call_id)

    def forget(self, call_id: str) -> None:
        """Nobody waits for its result."""
        self._timers.pop(call_id, lambda: None)()

    def close(self) -> None:
        """Nobody waits any more."""
        for call_off in self._timers.values():
            call_off()
        self._timers.clear()

    def _expire(self, call: ToolCallItem, timeout_ms: int) -> None:
        self._timers.pop(call.call_id, None)
        if not self.is_answered(call.call_id):
            self._on_timed_out(call, timeout_ms)
