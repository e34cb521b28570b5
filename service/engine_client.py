"""The asyncio side of one engine process: starts it, watches it, and hides its death from every call.

Owns a mirror of each session's token log and of each reply in progress. When the process dies or hangs it is replaced,
each log is opened again and each reply goes on from the tokens that were got, so that whoever reads a reply sees a
pause and the same text. Knows tokens and records; knows no items, no calls and no gRPC.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import engine
from engine import records
from engine.config import EngineConfig
from engine.session import Finish, TurnStats
from service.config import WatchdogConfig
from service.link import RecordLink

log = logging.getLogger(__name__)

MAX_RESUMES = 3
"""How many engine deaths one reply survives: one that kills every engine must not take the others with it for ever."""


class EngineState(enum.Enum):
    """starting: the model is being loaded for the first time. restarting: again, after a death."""

    STARTING = "starting"
    SERVING = "serving"
    RESTARTING = "restarting"
    STOPPED = "stopped"


class EngineStartError(Exception):
    """The engine process could not be started on its model; the message is the engine's own."""


ReplySink = Callable[[records.Progress | records.Ended | records.Failed], None]
"""Called on the event loop with each record of one reply, in order; the last is Ended or Failed."""


@dataclasses.dataclass(eq=False)
class _Reply:
    """A reply asked for and not over, with what has been handed on of it."""

    submit: records.Submit
    sink: ReplySink
    tokens: list[int] = dataclasses.field(default_factory=list)
    chars: int = 0
    clause_ends: int = 0
    calls: int = 0
    resumes: int = 0
    cancelled: bool = False
    repeat: _Repeat | None = None


@dataclasses.dataclass
class _Repeat:
    """What of a resumed reply the engine will say a second time, and nobody must hear twice."""

    chars: int
    clause_ends: int
    calls: int

    def strip(self, progress: records.Progress) -> records.Progress:
        """``progress`` without what was handed on before the restart."""
        text = progress.text[self.chars :]
        ends = progress.clause_ends[self.clause_ends :]
        calls = progress.calls[self.calls :]
        self.chars -= min(self.chars, len(progress.text))
        self.clause_ends -= min(self.clause_ends, len(progress.clause_ends))
        self.calls -= min(self.calls, len(progress.calls))
        return dataclasses.replace(progress, text=text, clause_ends=ends, calls=calls)


@dataclasses.dataclass(eq=False)
class _Mirror:
    """One session as the engine has it once it has done all that was sent."""

    seed: int
    on_failed: Callable[[records.Failed], None]
    tokens: list[int]
    reply: _Reply | None = None
    ending: dict[int, _Reply] = dataclasses.field(default_factory=dict)
    """Replies that were overtaken by a later command: only their Ended is still of interest."""


class EngineClient:
    """One engine process and the sessions in it. All methods belong to the event loop and none of them blocks.

    on_state: told of every change of ``state``.
    """

    def __init__(
        self,
        config: EngineConfig,
        watchdog: WatchdogConfig,
        on_state: Callable[[EngineState], None] = lambda state: None,
    ) -> None:
        self._config = config
        self._watchdog = watchdog
        self._on_state = on_state
        self._sessions: dict[str, _Mirror] = {}
        self._link: RecordLink | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._heard_at = 0.0
        self._started: asyncio.Future[records.Ready] | None = None
        self._lost = asyncio.Event()
        self._failure = ""
        self.state = EngineState.STARTING
        self.ready: records.Ready | None = None
        self.beat: records.Beat | None = None
        self.restarts = 0

    async def start(self) -> records.Ready:
        """Start the process and wait until its model is loaded. Raises EngineStartError."""
        if self._supervisor is not None or self._process is not None:
            raise RuntimeError("the engine was started already")
        await self._spawn()
        self._supervisor = asyncio.create_task(self._supervise(), name="engine supervisor")
        assert self.ready is not None
        return self.ready

    async def stop(self) -> None:
        """End the process, whatever it is doing. Idempotent."""
        self._set_state(EngineState.STOPPED)
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
            self._supervisor = None
        self._send(records.Shutdown())
        if self._process is not None:
            try:
                await asyncio.wait_for(self._process.wait(), timeout=1.0)
            except TimeoutError:
                self._kill()
        await self._reap()

    def log_tokens(self, session: str) -> int:
        """Length of a session's token log, the reply in progress not counted."""
        return len(self._sessions[session].tokens)

    def tokens(self, session: str) -> tuple[int, ...]:
        """A session's token log, the reply in progress not included."""
        return tuple(self._sessions[session].tokens)

    def open(
        self, session: str, tokens: tuple[int, ...], seed: int, on_failed: Callable[[records.Failed], None]
    ) -> None:
        """Open a session. ``on_failed``: told when a command of it fails that belongs to no reply."""
        if session in self._sessions:
            raise ValueError(f"session {session} is open already")
        self._sessions[session] = _Mirror(seed, on_failed, list(tokens))
        self._send(records.Open(session, tokens, seed))

    def sync(self, session: str, keep: int, tokens: tuple[int, ...]) -> None:
        """Make the log its first ``keep`` tokens and ``tokens``. The reply in progress, if any, ends there.

        ``keep`` may reach into the tokens that the reply has reported so far.
        """
        self._rewrite(session, keep, tokens)
        self._send(records.Sync(session, keep, tokens))

    def submit(self, command: records.Submit, sink: ReplySink) -> None:
        """Ask for a reply. One in progress is overtaken: it ends, and only its Ended still comes."""
        mirror = self._rewrite(command.session, command.keep, command.tokens)
        mirror.reply = _Reply(command, sink)
        mirror.reply.tokens.extend(command.forced)
        self._send(command)

    def cancel(self, session: str) -> None:
        """End the reply in progress, if any, where it stands; its Ended follows."""
        mirror = self._sessions.get(session)
        if mirror is not None and mirror.reply is not None:
            mirror.reply.cancelled = True
            self._send(records.Cancel(session, mirror.reply.submit.turn))

    def close(self, session: str) -> None:
        """End a session; nothing is heard of it any more. Idempotent."""
        if self._sessions.pop(session, None) is not None:
            self._send(records.Close(session))

    def ping(self) -> None:
        """Ask for a beat, which updates ``beat``."""
        self._send(records.Ping())

    def _rewrite(self, session: str, keep: int, tokens: tuple[int, ...]) -> _Mirror:
        """Apply to the mirror what ``Sync`` does to the log, with the reply so far counted as log."""
        mirror = self._sessions[session]
        if (reply := mirror.reply) is not None:
            mirror.tokens.extend(reply.tokens)
            mirror.ending[reply.submit.turn] = reply
            mirror.reply = None
        if not 0 <= keep <= len(mirror.tokens):
            raise ValueError(f"the log has {len(mirror.tokens)} tokens, not the {keep} to keep")
        mirror.tokens[keep:] = tokens
        return mirror

    def _send(self, command: records.Command) -> None:
        """Send, unless the process is being replaced: then the mirror says it all when it is back."""
        if self._link is not None:
            self._link.send(command)

    def _set_state(self, state: EngineState) -> None:
        if state is not self.state and self.state is not EngineState.STOPPED:
            self.state = state
            self._on_state(state)

    # What arrives

    def _received(self, record: object) -> None:
        self._heard_at = time.monotonic()
        match record:
            case records.Progress():
                self._progress(record)
            case records.Ended():
                self._ended(record)
            case records.Failed():
                self._failed(record)
            case records.Beat():
                self.beat = record
            case records.Ready():
                if self._started is not None and not self._started.done():
                    self._started.set_result(record)

    def _progress(self, record: records.Progress) -> None:
        mirror = self._sessions.get(record.session)
        reply = mirror.reply if mirror is not None else None
        if reply is None or reply.submit.turn != record.turn:
            return  # overtaken: what it still said is not in the log any more
        reply.tokens.extend(record.tokens)
        if reply.repeat is not None:
            record = reply.repeat.strip(record)
        reply.chars += len(record.text)
        reply.clause_ends += len(record.clause_ends)
        reply.calls += len(record.calls)
        reply.sink(record)

    def _ended(self, record: records.Ended) -> None:
        mirror = self._sessions.get(record.session)
        if mirror is None:
            return
        reply = mirror.ending.pop(record.turn, None)
        if reply is None and mirror.reply is not None and mirror.reply.submit.turn == record.turn:
            reply, mirror.reply = mirror.reply, None
            mirror.tokens.extend(reply.tokens[: record.reply_tokens])
            if len(mirror.tokens) != record.log_tokens:
                raise AssertionError(f"log of {record.log_tokens} tokens, mirror of {len(mirror.tokens)}")
        if reply is not None:
            reply.sink(record)

    def _failed(self, record: records.Failed) -> None:
        if record.session == "" and self._started is not None and not self._started.done():
            self._started.set_exception(EngineStartError(f"{record.reason}: {record.message}"))
            return
        mirror = self._sessions.get(record.session)
        if mirror is None:
            return
        if record.turn is not None and mirror.reply is not None and mirror.reply.submit.turn == record.turn:
            reply, mirror.reply = mirror.reply, None
            # The log may have been rewound before the command failed: say again what it should be.
            self._send(records.Sync(record.session, 0, tuple(mirror.tokens)))
            reply.sink(record)
        else:
            mirror.on_failed(record)

    # The process

    async def _spawn(self) -> None:
        """Start a process and wait for its Ready. Raises EngineStartError; leaves no process behind then."""
        loop = asyncio.get_running_loop()
        near, far = socket.socketpair()
        self._lost = lost = asyncio.Event()
        self._started = loop.create_future()
        try:
            # A session of its own, so that Ctrl-C at a terminal reaches us alone and calls can be drained; the
            # process ends by itself when this end of the socket closes.
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "engine.worker",
                str(far.fileno()),
                pass_fds=(far.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                cwd=Path(engine.__path__[0]).parent,
                start_new_session=True,
            )
        finally:
            far.close()
        _, link = await loop.create_connection(lambda: RecordLink(self._received, lost.set), sock=near)
        link.send(self._config)
        waiter = asyncio.create_task(lost.wait())
        waiter.add_done_callback(lambda _: self._died_early())
        try:
            self.ready = await self._started
        except BaseException:
            link.close()
            self._kill()
            await self._reap()
            raise
        finally:
            waiter.cancel()
        self._link = link
        self._heard_at = time.monotonic()
        self._set_state(EngineState.SERVING)
        log.info("engine ready", extra={"pid": self._process.pid, "model": self.ready.model, "costs": self.ready.costs})

    def _died_early(self) -> None:
        if self._started is not None and not self._started.done():
            self._started.set_exception(EngineStartError("the engine process ended before its model was ready"))

    async def _supervise(self) -> None:
        """Replace the process whenever it dies or hangs."""
        deaths = 0
        while True:
            served_from = time.monotonic()
            cause = await self._until_dead()
            self._set_state(EngineState.RESTARTING)
            self._link = None
            self._kill()
            await self._reap()
            self.restarts += 1
            deaths = 1 if time.monotonic() - served_from > self._watchdog.backoff_max_s else deaths + 1
            log.error("engine lost, restarting", extra={"cause": cause, "restarts": self.restarts})
            deaths = await self._respawn(deaths)
            self._reopen()

    async def _respawn(self, deaths: int) -> int:
        """Start a new process, as often as it takes. The first attempt after a healthy run waits for nothing."""
        while True:
            if deaths > 1:
                backoff = self._watchdog.backoff_s * 2 ** min(deaths - 2, 16)
                await asyncio.sleep(min(backoff, self._watchdog.backoff_max_s))
            try:
                await self._spawn()
            except (EngineStartError, OSError) as error:
                deaths += 1
                log.error("engine did not start", extra={"cause": str(error)})
            else:
                return deaths

    async def _until_dead(self) -> str:
        """Wait until the process is gone, or is silent for too long although asked. Returns the cause in words."""
        interval = self._watchdog.silence_s / 4
        while True:
            try:
                await asyncio.wait_for(self._lost.wait(), timeout=interval)
            except TimeoutError:
                if time.monotonic() - self._heard_at > self._watchdog.silence_s:
                    # Perhaps it was this process that stood still: read what has come in meanwhile.
                    await asyncio.sleep(interval)
                silence = time.monotonic() - self._heard_at
                if silence > self._watchdog.silence_s:
                    return f"no sign of life for {silence:.1f} s"
                self.ping()
            else:
                return "the process ended"

    def _reopen(self) -> None:
        """Bring a fresh process to where the last one would be by now, from the mirrors alone."""
        for session, mirror in self._sessions.items():
            self._send(records.Open(session, tuple(mirror.tokens), mirror.seed))
            for overtaken in mirror.ending.values():
                overtaken.sink(_ended_here(mirror, overtaken, Finish.CANCELLED))
            mirror.ending.clear()
            if mirror.reply is not None:
                self._resume(session, mirror, mirror.reply)

    def _resume(self, session: str, mirror: _Mirror, reply: _Reply) -> None:
        """Submit a reply again with the tokens that were got as its beginning, unless nobody wants it any more."""
        reply.resumes += 1
        if reply.cancelled or reply.resumes > MAX_RESUMES:
            self._send(records.Sync(session, len(mirror.tokens), tuple(reply.tokens)))
            mirror.reply = None
            mirror.tokens.extend(reply.tokens)
            reply.sink(_ended_here(mirror, reply, Finish.CANCELLED if reply.cancelled else Finish.FAILED))
            return
        reply.repeat = _Repeat(reply.chars, reply.clause_ends, reply.calls)
        start = len(mirror.tokens)
        self._send(dataclasses.replace(reply.submit, keep=start, tokens=(), forced=tuple(reply.tokens)))

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)

    async def _reap(self) -> None:
        if self._process is not None:
            await self._process.wait()
            self._process = None
        if self._link is not None:
            self._link.close()
            self._link = None


def _ended_here(mirror: _Mirror, reply: _Reply, finish: Finish) -> records.Ended:
    """The end of a reply whose engine process did not live to say it."""
    return records.Ended(
        session=reply.submit.session,
        turn=reply.submit.turn,
        finish=finish.value,
        log_tokens=len(mirror.tokens),
        reply_tokens=len(reply.tokens),
        stats=TurnStats(ended=time.monotonic()),
        error="" if finish is Finish.CANCELLED else f"{MAX_RESUMES} engine processes died over this reply",
    )
