"""Carries out an engine's commands and turns its steps into events: the message boundary, without a transport.

The same host runs inside an engine process (``engine.worker``) and in-process for tests and benchmarks. It joins what
the engine keeps apart: tokens (``engine.engine``), urgency (``engine.schedule``) and text (``engine.text``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from engine import records
from engine.demand import Demand
from engine.engine import Engine, Step
from engine.errors import EngineError
from engine.hibernation import Counts, Hibernation
from engine.hypotheses import Hypothesis
from engine.interfaces import Grammars
from engine.parking import Parking
from engine.prefixes import Beginning, Prefixes
from engine.replies import Reply
from engine.schedule import Scheduler, has_work
from engine.session import Finish, Session
from engine.text.common import common_length
from engine.text.reply import ReplyReader

log = logging.getLogger(__name__)

GRAMMAR_POLL_S = 0.0005
"""How often an engine with nothing else to do looks whether a grammar is there."""


@dataclass
class EngineHost:
    """One engine behind records.

    new_reader: makes what reads a reply's ids as text, for the command that asked for it. grammars: makes what holds a
    reply to a constraint. hibernation: moves idle sessions out of the pools; None: every session keeps its pages.
    prefixes: what sessions share; None: nothing.
    """

    engine: Engine
    scheduler: Scheduler
    new_reader: Callable[[records.Submit], ReplyReader]
    grammars: Grammars
    hibernation: Hibernation | None = None
    prefixes: Prefixes | None = None
    _replies: dict[str, Reply] = field(default_factory=dict)
    _behind: set[str] = field(default_factory=set)
    """Sessions whose drafter has something to catch up on when there is nothing else to do."""
    _taken_back: dict[str, list[int]] = field(default_factory=dict)
    """By session, the tokens of a stop string that were reported before it was known to be one."""
    _hypotheses: dict[str, Hypothesis] = field(default_factory=dict)
    _steps: int = 0
    _prefilled: int = 0

    def __post_init__(self) -> None:
        self._parking = Parking(self.grammars.ready)
        self._demand = Demand(self.engine.pace)

    @property
    def busy(self) -> bool:
        """Whether a step would do anything, or somebody waits for a grammar."""
        return (
            bool(self._behind)
            or bool(self._parking)
            or any(has_work(s) for s in self.engine.sessions.values())  # asked before each step, so before what is dear
            or (self.prefixes is not None and self.prefixes.due)
            or (self.hibernation is not None and self.hibernation.due)
        )

    def handle(self, command: records.Command) -> list[records.Event]:
        """Carry out one command. Whatever a caller got wrong comes back as ``Failed``, and what went before stands. So
        does whatever else goes wrong: it is no reason to end the calls of others.
        """
        events: list[records.Event] = []
        if self._parking.queues(command):
            return events
        try:
            if isinstance(command, records.Wake | records.Sync | records.Submit | records.Release | records.Fork):
                self._wake(self.engine.session(command.session))
            if isinstance(command, records.Submit) and self._parking.must_wait(command):
                # The log is at once what whoever sends the next command takes it for, and is prefilled meanwhile.
                self._sync(self.engine.session(command.session), command, events)
                self._parking.begin(command)
            else:
                self._dispatch(command, events)
        except Exception as error:
            if not isinstance(error, EngineError | ValueError):
                log.exception("a command could not be carried out")
            session = getattr(command, "session", "")
            turn = command.turn if isinstance(command, records.Submit) else None
            events.append(records.Failed(session, turn, type(error).__name__, str(error)))
        return events

    def advance(self) -> list[records.Event]:
        """Do the next step and report it; with none to do, let one session's drafter catch up."""
        events = [event for command in self._parking.leave() for event in self.handle(command)] if self._parking else []
        if plan := self.scheduler.plan(self.engine):
            self._steps += 1
            if self.hibernation is not None:
                plan = self.hibernation.admit(plan)
            for step in self.engine.step(plan):
                events += self._done(step)
        elif self._behind:
            session = self.engine.sessions.get(self._behind.pop())
            if session is not None and session.resident:
                if self.hibernation is not None:
                    self.hibernation.works([session])
                if self.engine.catch_up(session):
                    self._behind.add(session.name)
        elif self.prefixes is not None and self.prefixes.due:
            self.prefixes.tend()
        elif self.hibernation is not None and self.hibernation.due:
            self.hibernation.tend()
        elif self._parking:
            time.sleep(GRAMMAR_POLL_S)
        return events

    def _done(self, step: Step) -> list[records.Event]:
        """What is to be told of one session's share of a step."""
        events: list[records.Event] = []
        if step.prefilled or step.tokens:
            self.scheduler.served(step.session)
        self._prefilled += step.prefilled
        # A pin's session is closed as soon as anybody has computed what it is for, also earlier in the same step.
        if (session := self.engine.sessions.get(step.session)) is not None:
            if step.prefilled:
                self._learn(session)
            elif session.failures and self.prefixes is not None:
                self.prefixes.failed(session)
        if step.turn is None and step.prefilled and (session := self.engine.sessions.get(step.session)) is not None:
            self._behind.add(step.session)
            events += self._news(session)
        events += self._report(step)
        session = self.engine.sessions.get(step.session)
        if (step.prefilled or step.tokens) and session is not None and not has_work(session):
            self._rests()
        return events

    def beat(self) -> records.Beat:
        pool, sessions = self.engine.target.new_cache().pool, self.engine.sessions
        pending = [session.num_pending for session in sessions.values() if has_work(session)]
        prompts = [tokens for tokens in pending if tokens > 1]
        speakers, chunk, pace = len(pending) - len(prompts), self.scheduler.chunk_tokens, self.engine.pace
        step_s = pace.forward(speakers, speakers) if speakers else 0.0
        voices, rate = self.scheduler.voices({name for name, reply in self._replies.items() if reply.turn.awaited})
        counts, in_host = Counts(), 0
        if self.hibernation is not None:
            counts, in_host = self.hibernation.counts, self.hibernation.bytes_in_host
        return records.Beat(
            at=time.monotonic(),
            sessions=len(sessions),
            pages_in_use=pool.pages_in_use,
            steps=self._steps,
            pages_total=pool.num_pages,
            host_pages=0 if self.hibernation is None else self.hibernation.host_pages,
            backlog_s=step_s + sum(pace.prefill(tokens, chunk) for tokens in prompts),
            token_s=pace.prefill(chunk, chunk) / chunk,
            speech_load=self._demand.load(voices, rate),
            voice_load=self._demand.one_more(voices, rate),
            silent=self._demand.silent,
            host_bytes=in_host,
            hibernated=counts.hibernated,
            dropped=counts.dropped,
            woken_from_host=counts.woken_from_host,
            woken_from_log=counts.woken_from_log,
            prefilled_tokens=self._prefilled,
            shared_tokens=0 if self.prefixes is None else self.prefixes.tokens_saved,
            kept_pages=0 if self.prefixes is None else self.prefixes.num_pages,
        )

    def _open(self, command: records.Open) -> None:
        session, preamble = self.engine.open(command.session, command.tokens, seed=command.seed), command.preamble
        self._demand.opened(session.name)
        self._wake(session)
        if self.prefixes is not None and preamble is not None:
            self.prefixes.join(session, Beginning(preamble.tenant, command.tokens[: preamble.length]))

    def _learn(self, session: Session) -> None:
        """More of a session was computed, or its log is another."""
        if self.prefixes is not None:
            self.prefixes.learn(session)
            self._close_pins()

    def _close_pins(self) -> None:
        """Of what is kept by now."""
        assert self.prefixes is not None
        for name in self.prefixes.take_pinned():
            self._close(name, [])  # nobody has ever asked it for a reply

    def _rests(self) -> None:
        """Somebody's work is done, and its pages may move or come back: whoever has waited for some tries again."""
        for session in self.engine.sessions.values():
            session.retry()

    def _wake(self, session: Session) -> None:
        """Something is asked of the session, or will be in a moment."""
        if self.hibernation is None:
            return
        if not session.resident:
            self._behind.add(session.name)  # its drafter may have gone to sleep behind its text
        dropped = session.asleep
        self.hibernation.wake(session)
        if self.prefixes is not None and dropped:
            self.prefixes.take(session)

    def _dispatch(self, command: records.Command, events: list[records.Event]) -> None:
        match command:
            case records.Open():
                self._open(command)
                if command.constraint is not None:
                    self.grammars.prepare(command.constraint)
            case records.Pin():
                if self.prefixes is not None:
                    self.prefixes.pin(command.tokens, command.tenant)
                    self._close_pins()
            case records.Sync():
                session = self.engine.session(command.session)
                self._sync(session, command, events)
                self._hypothesis(session).number = command.number
                events += self._news(session)
            case records.Submit():
                self._submit(command, events)
            case records.Release():
                self._release(command, events)
            case records.Hold():
                self._hold(command)
            case records.Cancel():
                self._cancel(command.session, command.turn, events)
            case records.Fork():
                self._wake(self.engine.fork(self.engine.session(command.session), command.child))
                if taken_back := self._taken_back.get(command.session):
                    self._taken_back[command.child] = taken_back.copy()
            case records.Prepare():
                self.grammars.prepare(command.constraint)
            case records.Close():
                self._close(command.session, events)
                events.append(records.Closed(command.session))
            case records.Ping():
                events.append(self.beat())

    def _sync(self, session: Session, command: records.Sync | records.Submit, events: list[records.Event]) -> None:
        """Make the log what the command says, keeping all that agrees already."""
        keep, tokens, cached = command.keep, command.tokens, session.cache.length
        taken_back = self._taken_back.pop(session.name, [])
        missing = keep - len(session.tokens)
        if keep < 0 or missing > len(taken_back):
            raise ValueError(f"the log has {len(session.tokens)} tokens, not the {keep} to keep")
        self.engine.check(keep, tokens)
        self._cancel(session.name, None, events)
        if missing > 0:  # the command was sent before the stop string's end was known
            self.engine.append(session, taken_back[:missing])
        agreeing = common_length(session.tokens[keep : keep + len(tokens)], tokens)
        if keep + agreeing < len(session.tokens):
            self.engine.truncate(session, keep + agreeing)
        self.scheduler.heard(session)
        self.engine.append(session, tokens[agreeing:])
        self._hypothesis(session).replace(session, cached, command.ahead)
        self._learn(session)
        if not has_work(session):
            self._rests()

    def _hypothesis(self, session: Session) -> Hypothesis:
        return self._hypotheses.setdefault(session.name, Hypothesis())

    def _news(self, session: Session) -> list[records.Event]:
        """What there is to tell of the hypothesis."""
        news = self._hypothesis(session).take_news(session)
        return [] if news is None else [news]

    def _submit(self, command: records.Submit, events: list[records.Event]) -> None:
        session = self.engine.session(command.session)
        self._demand.known(session.name)
        reader = self.new_reader(command)
        hypothesis = self._hypothesis(session)
        start = hypothesis.start if hypothesis.start < hypothesis.end else None
        self._sync(session, command, events)
        grammar = None if command.constraint is None else self.grammars.grammar(command.constraint)
        turn = self.engine.submit(
            session,
            command.sampling,
            max_tokens=command.max_tokens,
            stop_tokens=command.stop_tokens,
            forced=command.forced,
            watcher=reader,
            grammar=grammar,
            request=command.request,
            first_index=command.first_index,
            drafting=command.drafting,
            hold=command.hold,
            aside=command.aside,
        )
        reply = self._replies[session.name] = Reply(command.turn, turn, reader)
        hypothesis.account(session, turn.stats, start)
        if command.hold is None:
            hypothesis.become_history(session)
        self.scheduler.expect(session.name, command.deadline, aside=command.aside, rate=command.speaking_rate)
        if command.deadline and command.hold is None:
            events.append(self._expected(session, command.turn))
        if turn.finish is not None:
            events.append(self._ended(session.name, reply, str(turn.error or "")))

    def _expected(self, session: Session, number: int) -> records.Expected:
        """When the first token of a reply that was just asked for will probably be there."""
        at = time.monotonic() + self.scheduler.expected(self.engine, session)
        return records.Expected(session.name, number, at)

    def _release(self, command: records.Release, events: list[records.Event]) -> None:
        """Let a reply that was made ahead or held go on, as one that somebody waits for."""
        session, reply = self.engine.session(command.session), self._replies.get(command.session)
        hypothesis = self._hypothesis(session)
        if reply is not None and reply.number == command.turn:
            if reply.held_at is not None:
                reply.go_on()  # its place among the others was never lost
                return
            hypothesis.account(session, reply.turn.stats, hypothesis.start)
            reply.turn.hold = None
            self.scheduler.expect(command.session, command.deadline, rate=command.speaking_rate)
            if reply.clauses:
                self.scheduler.spoke(command.session, reply.turn.num_tokens)
            if command.deadline and not reply.turn.num_tokens:
                events.append(self._expected(session, command.turn))
        hypothesis.become_history(session)

    def _hold(self, command: records.Hold) -> None:
        """Let a reply stand where it is, if somebody has it told as it is made."""
        reply = self._replies.get(command.session)
        if reply is not None and reply.number == command.turn and reply.turn.hold is None:
            reply.stand_still()
            self._rests()

    def _cancel(self, name: str, number: int | None, events: list[records.Event]) -> None:
        """End the reply numbered ``number`` (any, for None), if it is still being made."""
        reply = self._replies.get(name)
        if reply is not None and number in (None, reply.number):
            self.engine.cancel(reply.turn)
            events.append(self._ended(name, reply))

    def _close(self, name: str, events: list[records.Event]) -> None:
        if name in self.engine.sessions:
            self._cancel(name, None, events)
            self.engine.close(self.engine.session(name))
            self.scheduler.forget(name)
            self._demand.known(name)
            self._taken_back.pop(name, None)
            self._hypotheses.pop(name, None)
            self._behind.discard(name)
            if self.hibernation is not None:
                self.hibernation.forget(name)
            if self.prefixes is not None:
                self.prefixes.forget(name)

    def _report(self, step: Step) -> list[records.Event]:
        reply = self._replies.get(step.session)
        if reply is None or step.turn is not reply.turn:
            if step.error is None:
                return []
            return [records.Failed(step.session, None, type(step.error).__name__, str(step.error))]
        events: list[records.Event] = []
        try:
            if step.tokens:
                events.append(reply.progress(step, self.scheduler))
            if step.finish is not None:
                events.append(self._ended(step.session, reply, str(step.error or "")))
        except Exception as error:  # what reads the reply is injected: whatever it raises is that reply's own affair
            return [self._unreadable(step, reply, error)]
        return events

    def _unreadable(self, step: Step, reply: Reply, error: Exception) -> records.Ended:
        """What the reply has gained in the step could not be read, and so not be told: it ends before that."""
        log.error("a step of a reply could not be told", exc_info=error)
        turn = reply.turn
        self.engine.cancel(turn)
        turn.finish = Finish.FAILED
        self.engine.truncate(turn.session, len(turn.session.tokens) - len(step.tokens))
        return self._ended(step.session, reply, f"{type(error).__name__}: {error}")

    def _ended(self, name: str, reply: Reply, error: str = "") -> records.Ended:
        self._replies.pop(name, None)
        reply.go_on()
        self._rests()
        turn = reply.turn
        if turn.finish is Finish.STOP_STRING:
            stop = turn.start + reply.reader.kept_tokens
            self._taken_back[name] = turn.session.tokens[stop:]
            self.engine.truncate(turn.session, stop)
        return reply.account(error)
