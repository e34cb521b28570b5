"""What the engine process should hold of one session, kept where its death does not reach.

From a mirror a fresh process is brought to where the last one would be by now: the log is opened again, and a reply in
progress goes on from the tokens that were got, so that whoever reads it sees a pause and the same text. Knows tokens
and records; knows no items, no calls and no process.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from engine import records
from engine.constraint import Constraint
from engine.session import Finish, TurnStats

MAX_RESUMES = 3
"""How many engine deaths one reply survives: one that kills every engine must not take the others with it for ever."""

ReplySink = Callable[[records.Expected | records.Progress | records.Ended | records.Failed], None]
"""Called on the event loop with each record of one reply, in order; the last is Ended or Failed."""


@dataclasses.dataclass
class Repeat:
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
class ReplyMirror:
    """A reply asked for and not over, with what has been handed on of it."""

    submit: records.Submit
    sink: ReplySink
    tokens: list[int]
    chars: int = 0
    clause_ends: int = 0
    calls: int = 0
    resumes: int = 0
    repeat: Repeat | None = None
    held: bool = False
    """Whether the engine was told to let it stand where it is."""

    def progress(self, record: records.Progress) -> None:
        """Hand on one step, but for what was handed on before."""
        self.tokens.extend(record.tokens)
        if self.repeat is not None:
            record = self.repeat.strip(record)
        self.chars += len(record.text)
        self.clause_ends += len(record.clause_ends)
        self.calls += len(record.calls)
        self.sink(record)


class SessionMirror:
    """One session as the engine has it once it has done all that was sent.

    send: takes each command for the engine. on_failed: told when a command fails that belongs to no reply. constraint:
    that its replies will probably have. preamble: what of the log its tenant's sessions share.
    """

    def __init__(
        self,
        name: str,
        seed: int,
        tokens: tuple[int, ...],
        send: Callable[[records.Command], None],
        on_failed: Callable[[records.Failed], None],
        constraint: Constraint | None = None,
        preamble: records.Preamble | None = None,
    ) -> None:
        self._name = name
        self._seed = seed
        self._send = send
        self._on_failed = on_failed
        self._constraint = constraint
        self._preamble = preamble
        self._reply: ReplyMirror | None = None
        self._overtaken: dict[int, ReplyMirror] = {}
        self._syncs = 0
        self._holds = False
        self._on_prefilled: Callable[[records.Prefilled], None] | None = None
        self.tokens = list(tokens)
        """The token log, the reply in progress not included."""

    def open(self) -> None:
        """Open the session, with the log as it is now."""
        self._send(records.Open(self._name, tuple(self.tokens), self._seed, self._constraint, self._preamble))

    def fork(self, child: str) -> SessionMirror:
        """The mirror of a fork, which the engine makes now. It begins with what this one has of the log."""
        self._send(records.Fork(self._name, child))
        return SessionMirror(child, self._seed, tuple(self.tokens), self._send, self._on_failed, None)

    def wake(self) -> None:
        """Something will be asked in a moment."""
        self._send(records.Wake(self._name))

    def prepare(self, constraint: Constraint) -> None:
        """Replies will probably have this constraint from now on."""
        self._constraint = constraint
        self._send(records.Prepare(self._name, constraint))

    def sync(
        self,
        keep: int,
        tokens: tuple[int, ...],
        ahead: int = 0,
        on_prefilled: Callable[[records.Prefilled], None] | None = None,
    ) -> None:
        """Make the log its first ``keep`` tokens and ``tokens``, the last ``ahead`` of which are a hypothesis. The
        reply in progress, if any, ends there. on_prefilled: told when all is computed, if it comes to that.
        """
        self._rewrite(keep, tokens)
        self._syncs += 1
        self._on_prefilled = on_prefilled
        number = self._syncs if on_prefilled is not None else 0
        self._send(records.Sync(self._name, keep, tokens, ahead, number))

    def submit(self, command: records.Submit, sink: ReplySink, told: Repeat | None = None) -> None:
        """Ask for a reply. One in progress is overtaken: it ends, and only its Ended still comes. told: what is known
        already of the tokens that it is forced to begin with.
        """
        self._rewrite(command.keep, command.tokens)
        self._on_prefilled = None
        self._reply = ReplyMirror(command, sink, list(command.forced))
        if told is not None:
            self._reply.chars, self._reply.clause_ends, self._reply.calls = told.chars, told.clause_ends, told.calls
            self._reply.repeat = told
        self._send(command)

    def release(self, turn: int, deadline: float, speaking_rate: float = 0.0) -> None:
        """A reply made ahead is wanted now. One that is over needs no release."""
        if self._reply is not None and self._reply.submit.turn == turn:
            asked = self._reply.submit
            asked = dataclasses.replace(asked, hold=None, deadline=deadline, speaking_rate=speaking_rate)
            self._reply.submit = asked
        self._send(records.Release(self._name, turn, deadline, speaking_rate))
        self._hold()

    def hold(self, held: bool) -> None:
        """Whether replies stand still, for whoever reads them does not keep up. A first token is made all the same, and
        so is what is made ahead: nobody has to read that.
        """
        self._holds = held
        reply = self._reply
        if held:
            self._hold()
        elif reply is not None and reply.held:
            reply.held = False
            self._send(records.Release(self._name, reply.submit.turn))

    def reopen(self) -> None:
        """Bring a fresh process to where the last one would be by now."""
        self.open()
        overtaken, self._overtaken = self._overtaken, {}
        for reply in overtaken.values():
            reply.sink(self._ended_here(reply, Finish.CANCELLED))
        if self._reply is not None:
            self._resume(self._reply)

    # What the engine says

    def progress(self, record: records.Progress) -> None:
        """More of a reply. What an overtaken one still said is not in the log any more."""
        if self._reply is not None and self._reply.submit.turn == record.turn:
            self._reply.progress(record)
            self._hold()

    def expected(self, record: records.Expected) -> None:
        """When a reply's first token will probably be there."""
        if self._reply is not None and self._reply.submit.turn == record.turn:
            self._reply.sink(record)

    def prefilled(self, record: records.Prefilled) -> None:
        """A hypothesis is computed. Of one that was replaced nobody wants to know."""
        if self._on_prefilled is not None and record.number == self._syncs:
            told, self._on_prefilled = self._on_prefilled, None
            told(record)

    def ended(self, record: records.Ended) -> None:
        """A reply is over: its tokens are part of the log, unless it was overtaken."""
        reply = self._overtaken.pop(record.turn, None)
        if reply is None and self._reply is not None and self._reply.submit.turn == record.turn:
            reply, self._reply = self._reply, None
            self.tokens.extend(reply.tokens[: record.reply_tokens])
            if len(self.tokens) != record.log_tokens:
                raise AssertionError(f"log of {record.log_tokens} tokens, mirror of {len(self.tokens)}")
        if reply is not None:
            reply.sink(record)

    def failed(self, record: records.Failed) -> None:
        """A command was not carried out. Of an overtaken reply's nobody expects anything any more but its end."""
        if record.turn is not None and (overtaken := self._overtaken.pop(record.turn, None)) is not None:
            overtaken.sink(record)
        elif record.turn is not None and self._reply is not None and self._reply.submit.turn == record.turn:
            reply, self._reply = self._reply, None
            # The log may have been rewound before the command failed: say again what it should be.
            self._send(records.Sync(self._name, 0, tuple(self.tokens)))
            reply.sink(record)
        else:
            self._on_failed(record)

    def _hold(self) -> None:
        """Let the reply in progress stand where it is, if replies shall and it has begun to be told."""
        reply = self._reply
        if self._holds and reply is not None and not reply.held and reply.tokens and reply.submit.hold is None:
            reply.held = True
            self._send(records.Hold(self._name, reply.submit.turn))

    def _rewrite(self, keep: int, tokens: tuple[int, ...]) -> None:
        """Apply to the mirror what ``Sync`` does to the log. ``keep`` may reach into what the reply has said so far."""
        if (reply := self._reply) is not None:
            self.tokens.extend(reply.tokens)
            self._overtaken[reply.submit.turn] = reply
            self._reply = None
        if not 0 <= keep <= len(self.tokens):
            raise ValueError(f"the log has {len(self.tokens)} tokens, not the {keep} to keep")
        self.tokens[keep:] = tokens
        if self._preamble is not None and keep < self._preamble.length:
            self._preamble = None  # other instructions since, perhaps with what was said in them

    def _resume(self, reply: ReplyMirror) -> None:
        """Submit a reply again with the tokens that were got as its beginning, unless too many engines died of it."""
        reply.resumes += 1
        start = len(self.tokens)
        if reply.resumes > MAX_RESUMES:
            self._reply = None
            self.tokens.extend(reply.tokens)
            self._send(records.Sync(self._name, start, tuple(reply.tokens)))
            reply.sink(self._ended_here(reply, Finish.FAILED))
            return
        reply.repeat = Repeat(reply.chars, reply.clause_ends, reply.calls)
        self._send(dataclasses.replace(reply.submit, keep=start, tokens=(), forced=tuple(reply.tokens)))
        reply.held = False
        self._hold()

    def _ended_here(self, reply: ReplyMirror, finish: Finish) -> records.Ended:
        """The end of a reply whose engine process did not live to say it."""
        return records.Ended(
            session=self._name,
            turn=reply.submit.turn,
            finish=finish.value,
            log_tokens=len(self.tokens),
            reply_tokens=len(reply.tokens),
            stats=TurnStats(ended=time.monotonic()),
            error="" if finish is Finish.CANCELLED else f"{MAX_RESUMES + 1} engine processes died over this reply",
        )
