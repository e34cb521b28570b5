"""How long a call may last, and how long it may be silent. Knows neither turns nor events, only that there was one."""

from __future__ import annotations

from collections.abc import Callable

from service.call_services import Later
from service.options import Limits
from service.problems import Guardrail, Problem, Reason


class CallClock:
    """Runs from when the call is open. is_busy: whether a reply is in progress. on_over: told why the call must end.
    elapsed_s: how long the call has lasted, elsewhere.
    """

    def __init__(
        self,
        limits: Limits,
        later: Later,
        is_busy: Callable[[], bool],
        on_over: Callable[[Problem], None],
        elapsed_s: float = 0.0,
    ) -> None:
        self._limits = limits
        self._later = later
        self._is_busy = is_busy
        self._on_over = on_over
        self._stop_idle: Callable[[], None] = lambda: None
        self._stop_call: Callable[[], None] = lambda: None
        if limits.max_call_ms is not None:
            self._stop_call = later(max(0.0, limits.max_call_ms / 1000 - elapsed_s), self._too_long)
        self.heard()

    def heard(self) -> None:
        """The client has said something, or has been given its turn: silence begins anew."""
        self._stop_idle()
        if self._limits.max_idle_ms is not None:
            self._stop_idle = self._later(self._limits.max_idle_ms / 1000, self._idle)

    def close(self) -> None:
        self._stop_idle()
        self._stop_call()

    def _too_long(self) -> None:
        limit = self._limits.max_call_ms
        assert limit is not None
        message = f"the call has lasted the {limit} ms that it may"
        self._on_over(Problem(Reason.CALL_TOO_LONG, message, reached=(Guardrail.CALL_DURATION, limit)))

    def _idle(self) -> None:
        limit = self._limits.max_idle_ms
        assert limit is not None
        if not self._is_busy():
            message = f"nothing came from the client for {limit} ms"
            self._on_over(Problem(Reason.CALL_IDLE, message, reached=(Guardrail.IDLE_TIME, limit)))
