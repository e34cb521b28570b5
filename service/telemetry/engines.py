"""What the engine processes say of themselves, read whenever metrics are collected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from engine import records
from service.telemetry import names
from service.telemetry.metrics import Telemetry


class Watched(Protocol):
    """What is asked of a ``service.engine_client.EngineClient``."""

    beat: records.Beat | None
    restarts: int

    @property
    def serving(self) -> bool: ...


QUIET_CALLS: tuple[tuple[str, str, str, Callable[[records.Beat], float], bool], ...] = (
    (names.HOST_BYTES, "By", "Pages of idle calls in host memory", lambda beat: beat.host_bytes, False),
    (names.HIBERNATED, "{session}", "Moved to host memory", lambda beat: beat.hibernated, True),
    (names.DROPPED, "{session}", "Dropped to the token log", lambda beat: beat.dropped, True),
    (names.WOKEN_FROM_HOST, "{session}", "Brought back from there", lambda beat: beat.woken_from_host, True),
    (names.WOKEN_FROM_LOG, "{session}", "Computed again", lambda beat: beat.woken_from_log, True),
    (names.COMPUTED_TOKENS, "{token}", "Of prompts, computed", lambda beat: beat.prefilled_tokens, True),
    (names.SHARED_TOKENS, "{token}", "Of prompts, another call's", lambda beat: beat.shared_tokens, True),
)
"""(name, unit, description, figure, whether it only grows)"""


def watch(telemetry: Telemetry, engines: Mapping[str, Watched]) -> None:
    """Observe every engine process, by the name of its model."""

    def each(read: Callable[[Watched], float]) -> dict[str, Callable[[], float]]:
        return {model: partial(read, engine) for model, engine in engines.items()}

    telemetry.watch_models(names.PAGES_IN_USE, "{page}", "Pages of keys and values in use", each(_pages_in_use))
    telemetry.watch_models(names.PAGES_FREE, "{page}", "Pages that are free", each(_pages_free))
    telemetry.watch_models(names.PAGES_KEPT, "{page}", "Pages of kept beginnings", each(_pages_kept))
    telemetry.watch_models(names.ENGINE_BACKLOG, "s", "How long all that is pending takes", each(_backlog))
    telemetry.watch_models(names.SPEECH_LOAD, "{engine}", "Needed for what is being spoken", each(_speech_load))
    telemetry.watch_models(names.ENGINE_SESSIONS, "{session}", "Sessions, forks included", each(_sessions))
    for name, unit, description, figure, grows in QUIET_CALLS:
        telemetry.watch_models(name, unit, description, each(partial(_of_beat, figure)), grows=grows)
    telemetry.watch_models(
        names.ENGINE_SERVING, "{engine}", "Whether the engine is there", each(lambda engine: engine.serving)
    )
    telemetry.watch_models(
        names.ENGINE_RESTARTS,
        "{restart}",
        "Engine processes replaced",
        each(lambda engine: engine.restarts),
        grows=True,
    )


def _pages_in_use(engine: Watched) -> int:
    return engine.beat.pages_in_use if engine.beat else 0


def _pages_free(engine: Watched) -> int:
    return engine.beat.pages_total - engine.beat.pages_in_use if engine.beat else 0


def _pages_kept(engine: Watched) -> int:
    return engine.beat.kept_pages if engine.beat else 0


def _of_beat(figure: Callable[[records.Beat], float], engine: Watched) -> float:
    return figure(engine.beat) if engine.beat else 0.0


def _backlog(engine: Watched) -> float:
    return engine.beat.backlog_s if engine.beat else 0.0


def _speech_load(engine: Watched) -> float:
    return engine.beat.speech_load if engine.beat else 0.0


def _sessions(engine: Watched) -> int:
    return engine.beat.sessions if engine.beat else 0
