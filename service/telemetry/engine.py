"""What an engine's beats say of it, as metrics."""

from __future__ import annotations

from collections.abc import Callable

from engine import records
from service.telemetry import recording
from service.telemetry.recording import Telemetry

FIGURES: tuple[tuple[str, str, str, Callable[[records.Beat], float], bool], ...] = (
    (recording.PAGES_IN_USE, "{page}", "Pages in use", lambda beat: beat.pages_in_use, False),
    (recording.HOST_BYTES, "By", "Pages of idle calls in host memory", lambda beat: beat.host_bytes, False),
    (recording.HIBERNATED, "{session}", "Moved to host memory", lambda beat: beat.hibernated, True),
    (recording.DROPPED, "{session}", "Dropped to the token log", lambda beat: beat.dropped, True),
    (recording.WOKEN_FROM_HOST, "{session}", "Brought back from there", lambda beat: beat.woken_from_host, True),
    (recording.WOKEN_FROM_LOG, "{session}", "Computed again", lambda beat: beat.woken_from_log, True),
    (recording.PREFILLED_TOKENS, "{token}", "Of prompts, computed", lambda beat: beat.prefilled_tokens, True),
    (recording.SHARED_TOKENS, "{token}", "Of prompts, another call's", lambda beat: beat.shared_tokens, True),
)
"""(name, unit, description, figure, whether it only grows)"""


def watch_engine(telemetry: Telemetry, beat: Callable[[], records.Beat | None]) -> None:
    """Observe the figures of the last beat; 0 before the first one."""
    for name, unit, description, figure, counts in FIGURES:

        def read(figure: Callable[[records.Beat], float] = figure) -> float:
            last = beat()
            return figure(last) if last is not None else 0

        telemetry.watch(name, unit, description, read, counts=counts)
