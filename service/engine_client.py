"""The asyncio side of one engine: the sessions in it, and a process that is replaced whenever it dies or hangs.

A death is hidden from every call: each session has a mirror, from which a fresh process is brought to where the last
one was. Knows no items, no calls and no gRPC.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections import Counter
from collections.abc import Callable

from engine import records
from engine.config import EngineConfig
from engine.constraint import Constraint
from service.config import WatchdogConfig
from service.engine_process import EngineProcess, EngineStartError
from service.mirror import Repeat, ReplySink, SessionMirror

log = logging.getLogger(__name__)


class EngineState(enum.Enum):
    """starting: the model is being loaded for the first time. restarting: again, after a death."""

    STARTING = "starting"
    SERVING = "serving"
    RESTARTING = "restarting"
    STOPPED = "stopped"


class EngineClient:
    """One engine process and the sessions in it. All methods belong to the event loop and none of them blocks.

    on_state: told of every change of ``state``. process_type: what it starts.
    """

    process_type = EngineProcess

    def __init__(
        self,
        config: EngineConfig,
        watchdog: WatchdogConfig,
        on_state: Callable[[EngineState], None] = lambda state: None,
    ) -> None:
        self._config = config
        self._watchdog = watchdog
        self._on_state = on_state
        self._sessions: dict[str, SessionMirror] = {}
        self._closing: Counter[str] = Counter()
        """By name, sessions that were closed and may still be heard of: one that is open may have the same name."""
        self._pins: list[records.Pin] = []
        self._process: EngineProcess | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self.state = EngineState.STARTING
        self.beat: records.Beat | None = None
        self.restarts = 0

    @property
    def serving(self) -> bool:
        """Whether the process is there, as far as is known."""
        return self.state is EngineState.SERVING

    async def start(self) -> records.Ready:
        """Start the process and wait until its model is loaded. Raises EngineStartError."""
        if self._supervisor is not None:
            raise RuntimeError("the engine was started already")
        process, ready = await self._spawn()
        self._supervisor = asyncio.create_task(self._supervise(process), name="engine supervisor")
        return ready

    async def stop(self) -> None:
        """End the process, whatever it is doing. Idempotent."""
        self._set_state(EngineState.STOPPED)
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
            self._supervisor = None
        if self._process is not None:
            await self._process.leave()
            self._process = None

    def open(
        self,
        session: str,
        tokens: tuple[int, ...],
        seed: int,
        on_failed: Callable[[records.Failed], None],
        constraint: Constraint | None = None,
        preamble: records.Preamble | None = None,
    ) -> None:
        """Open a session. on_failed: told when a command of it fails that belongs to no reply. constraint: that its
        replies will probably have. preamble: what of the tokens is computed once for its tenant.
        """
        if session in self._sessions:
            raise ValueError(f"session {session} is open already")
        mirror = SessionMirror(session, seed, tokens, self._send, on_failed, constraint, preamble)
        self._sessions[session] = mirror
        mirror.open()

    def pin(self, tokens: tuple[int, ...], tenant: str | None) -> None:
        """Keep what sessions of a tenant will begin with computed for as long as this lives; None: of every tenant."""
        self._pins.append(records.Pin(tokens, tenant))
        self._send(self._pins[-1])

    def sync(
        self,
        session: str,
        keep: int,
        tokens: tuple[int, ...],
        ahead: int = 0,
        on_prefilled: Callable[[records.Prefilled], None] | None = None,
    ) -> None:
        """Make the log its first ``keep`` tokens and ``tokens``. The reply in progress, if any, ends there.

        ``keep`` may reach into the tokens that the reply has reported so far. ahead: tokens at the end that are a
        hypothesis; on_prefilled: told when it is computed, unless something else is asked of the session first.
        """
        self._sessions[session].sync(keep, tokens, ahead, on_prefilled)

    def fork(self, session: str, child: str) -> None:
        """Open ``child`` with the log and caches of a session. A failure of it comes with what is asked of it next."""
        if child in self._sessions:
            raise ValueError(f"session {child} is open already")
        self._sessions[child] = self._sessions[session].fork(child)

    def wake(self, session: str) -> None:
        """Something will be asked of the session in a moment: what of it has gone cold is brought back."""
        self._sessions[session].wake()

    def prepare(self, session: str, constraint: Constraint) -> None:
        """Replies of the session will probably have this constraint from now on."""
        self._sessions[session].prepare(constraint)

    def submit(self, command: records.Submit, sink: ReplySink, told: Repeat | None = None) -> None:
        """Ask for a reply. One in progress is overtaken: it ends, and only its Ended still comes. told: what is known
        already of the tokens that it is forced to begin with.
        """
        self._sessions[command.session].submit(command, sink, told)

    def release(self, session: str, turn: int, deadline: float, speaking_rate: float = 0.0) -> None:
        """The reply ``turn``, which was submitted with a ``hold``, is wanted now."""
        self._sessions[session].release(turn, deadline, speaking_rate)

    def hold(self, session: str, held: bool) -> None:
        """Whether replies of the session stand where they are, for whoever reads them does not keep up."""
        self._sessions[session].hold(held)

    def close(self, session: str) -> None:
        """End a session; nothing is heard of it any more. Idempotent."""
        if self._sessions.pop(session, None) is not None and self._process is not None:
            self._closing[session] += 1
            self._process.send(records.Close(session))

    def _send(self, command: records.Command) -> None:
        """Send, unless the process is being replaced: then the mirrors say it all when it is back."""
        if self._process is not None:
            self._process.send(command)

    def _set_state(self, state: EngineState) -> None:
        if state is not self.state and self.state is not EngineState.STOPPED:
            self.state = state
            self._on_state(state)

    def _received(self, record: object) -> None:
        if isinstance(record, records.Beat):
            self.beat = record
            return
        session = getattr(record, "session", "")
        if isinstance(record, records.Closed):
            self._closing -= Counter([session])  # which drops what comes to nothing
            return
        mirror = self._sessions.get(session)
        if mirror is None or session in self._closing:
            return  # closed: what was under way when it was is of no interest
        match record:
            case records.Progress():
                mirror.progress(record)
            case records.Expected():
                mirror.expected(record)
            case records.Prefilled():
                mirror.prefilled(record)
            case records.Ended():
                mirror.ended(record)
            case records.Failed():
                mirror.failed(record)

    async def _spawn(self) -> tuple[EngineProcess, records.Ready]:
        """A process that is ready. Raises EngineStartError."""
        process = self.process_type(self._received)
        ready = await process.start(self._config)
        self._process = process
        self._set_state(EngineState.SERVING)
        log.info("engine ready", extra={"pid": process.pid, "model": ready.model, "costs": ready.costs})
        return process, ready

    async def _supervise(self, process: EngineProcess) -> None:
        """Replace the process whenever it dies or hangs."""
        deaths = 0
        while True:
            served_from = time.monotonic()
            cause = await process.death(self._watchdog.silence_s)
            self._process = None
            self._closing.clear()
            self._set_state(EngineState.RESTARTING)
            await process.kill()
            self.restarts += 1
            deaths = 1 if time.monotonic() - served_from > self._watchdog.backoff_max_s else deaths + 1
            log.error("engine lost, restarting", extra={"cause": cause, "restarts": self.restarts})
            process, deaths = await self._respawn(deaths)
            for pin in self._pins:
                process.send(pin)
            for mirror in list(self._sessions.values()):
                mirror.reopen()

    async def _respawn(self, deaths: int) -> tuple[EngineProcess, int]:
        """Start a new process, as often as it takes. The first attempt after a healthy run waits for nothing."""
        while True:
            if deaths > 1:
                backoff = self._watchdog.backoff_s * 2 ** min(deaths - 2, 16)
                await asyncio.sleep(min(backoff, self._watchdog.backoff_max_s))
            try:
                process, _ = await self._spawn()
            except (EngineStartError, OSError) as error:
                deaths += 1
                log.error("engine did not start", extra={"cause": str(error)})
            else:
                return process, deaths
