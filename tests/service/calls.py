"""Whole calls without a socket: the real state machine, conversation and mirrors over a real engine in this process."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar, TypeVar

from engine import records
from engine.config import EngineConfig
from engine.constraint import Constraint
from engine.engine import Engine
from engine.host import EngineHost
from engine.interfaces import Proposer
from engine.load import load_proposer, load_target_for, reader_of
from engine.models.decoder import Decoder
from engine.policy import FixedPolicy
from engine.proposers.none import NoProposer
from engine.schedule import DeadlineScheduler
from engine.text.chat import Chat
from engine.text.reply import ReplyReader
from service import client_events as client
from service import server_events as server
from service.call import Call
from service.call_services import CallServices, Resident
from service.call_state import CallState
from service.config import EMBEDDED_MODEL, CallConfig, TelemetryConfig
from service.conversation import Conversation, load_chat
from service.items import ToolDefinition
from service.mirror import Repeat, ReplySink, SessionMirror
from service.problems import Problem
from service.reply import Reply
from service.signing import Signing
from service.store import MemoryStore, Store
from service.telemetry import Telemetry
from tests.e2e.server import example_calls
from tests.engine.embedded import grammars

SYSTEM, _tools, LINES = example_calls(1)[0]
TOOLS = tuple(ToolDefinition(tool.name, tool.description, json.loads(tool.parameters_json_schema)) for tool in _tools)
MODEL = "receptionist"

E = TypeVar("E", bound=server.ServerEvent)


DRAFTER = f"suffix+eagle3:{EMBEDDED_MODEL / 'eagle3'}"
"""What the embedded model is served with."""


@cache
def chat() -> Chat:
    return load_chat(str(EMBEDDED_MODEL))


@cache
def target() -> Decoder:
    return load_target_for(EngineConfig(str(EMBEDDED_MODEL), pool_tokens=16_384))


@cache
def exact_target() -> Decoder:
    """The same in float64: whatever a window's width, a reply is the same."""
    return load_target_for(EngineConfig(str(EMBEDDED_MODEL), dtype="float64", pool_tokens=16_384))


@cache
def default_drafter() -> Proposer:
    """``DRAFTER`` over ``exact_target``."""
    return load_proposer(EngineConfig(str(EMBEDDED_MODEL), DRAFTER, pool_tokens=16_384), exact_target())


class LocalEngine:
    """An ``EnginePort`` on a real engine that works only while it is told to, and can be made to die.

    proposer: drafts trees of ``nodes``; without it nobody drafts. new_host: makes an engine in place of all that.
    """

    def __init__(
        self,
        model: Decoder | None = None,
        chunk_tokens: int = 256,
        proposer: Proposer | None = None,
        nodes: int = 1,
        *,
        new_host: Callable[[], EngineHost] | None = None,
    ) -> None:
        self._model = model
        self._chunk_tokens = chunk_tokens
        self._proposer, self._nodes = proposer or NoProposer(), nodes
        self._new_host = new_host or self._plain_host
        self._sessions: dict[str, SessionMirror] = {}
        self._commands: deque[records.Command] = deque()
        self._host = self._new_host()
        self.serving = True
        self.on_expected: Callable[[records.Expected], object] = lambda record: None

    def open(
        self,
        session: str,
        tokens: tuple[int, ...],
        seed: int,
        on_failed: Callable[[records.Failed], None],
        constraint: Constraint | None = None,
        preamble: records.Preamble | None = None,
    ) -> None:
        send = self._commands.append
        mirror = SessionMirror(session, seed, tokens, send, on_failed, constraint, preamble)
        self._sessions[session] = mirror
        mirror.open()

    def sync(
        self,
        session: str,
        keep: int,
        tokens: tuple[int, ...],
        ahead: int = 0,
        on_prefilled: Callable[[records.Prefilled], None] | None = None,
    ) -> None:
        self._sessions[session].sync(keep, tokens, ahead, on_prefilled)

    def fork(self, session: str, child: str) -> None:
        self._sessions[child] = self._sessions[session].fork(child)

    def wake(self, session: str) -> None:
        self._sessions[session].wake()

    def prepare(self, session: str, constraint: Constraint) -> None:
        self._sessions[session].prepare(constraint)

    def submit(self, command: records.Submit, sink: ReplySink, told: Repeat | None = None) -> None:
        self._sessions[command.session].submit(command, sink, told)

    def release(self, session: str, turn: int, deadline: float, speaking_rate: float = 0.0) -> None:
        self._sessions[session].release(turn, deadline, speaking_rate)

    def hold(self, session: str, held: bool) -> None:
        if session in self._sessions:  # of a pod that was killed meanwhile its calls may still hear
            self._sessions[session].hold(held)

    def close(self, session: str) -> None:
        self._sessions.pop(session, None)
        self._commands.append(records.Close(session))

    def step(self) -> bool:
        """Carry out what was sent and do one step of work; whether there was anything to do."""
        worked = bool(self._commands) or self._host.busy
        while self._commands:
            self._hand_on(self._host.handle(self._commands.popleft()))
        self._hand_on(self._host.advance())
        return worked

    def run(self) -> None:
        while self.step():
            pass

    def die(self) -> None:
        """All that the engine has of its sessions is lost, and what was sent and not done; a new one takes over."""
        for name in list(self._host.engine.sessions):
            self._host.engine.close(self._host.engine.session(name))
        self._commands.clear()
        self._host = self._new_host()
        for mirror in list(self._sessions.values()):
            mirror.reopen()

    def refuse(self, session: str, turn: int, reason: str) -> None:
        """Say that what was asked for this reply cannot be done, as the engine would."""
        self._sessions[session].failed(records.Failed(session, turn, reason, "cannot be done"))

    def says(self, record: records.Progress) -> None:
        """Report a step that this model would not make."""
        self._sessions[record.session].progress(record)

    def expects(self, session: str, turn: int, in_s: float) -> None:
        """Say that a reply's first token will take so long from now."""
        self._sessions[session].expected(records.Expected(session, turn, time.monotonic() + in_s))

    def log(self, session: str) -> tuple[int, ...]:
        """The engine's own token log."""
        return tuple(self._host.engine.session(session).tokens)

    def standing(self, session: str) -> tuple[int, ...]:
        """What a reply in progress has said that stands still, for it was made ahead."""
        turn = self._host.engine.session(session).turn
        assert turn is None or turn.waits
        return () if turn is None else tuple(turn.tokens)

    def mirrored(self, session: str) -> tuple[int, ...]:
        return tuple(self._sessions[session].tokens)

    @property
    def beat(self) -> records.Beat:
        return self._host.beat()

    @property
    def pages_in_use(self) -> int:
        return self.beat.pages_in_use

    @property
    def model(self) -> Decoder:
        return self._model or target()

    def _plain_host(self) -> EngineHost:
        engine = Engine(self.model, self._proposer, FixedPolicy(self._nodes))
        return EngineHost(engine, DeadlineScheduler(self._chunk_tokens), self._new_reader, grammars())

    def _new_reader(self, command: records.Submit) -> ReplyReader:
        return reader_of(chat().codec, command)

    def _hand_on(self, events: list[records.Event]) -> None:
        for event in events:
            mirror = self._sessions.get(getattr(event, "session", ""))
            match event:
                case _ if mirror is None:
                    pass
                case records.Progress():
                    mirror.progress(event)
                case records.Expected():
                    self.on_expected(event)
                    mirror.expected(event)
                case records.Prefilled():
                    mirror.prefilled(event)
                case records.Ended():
                    mirror.ended(event)
                case records.Failed():
                    mirror.failed(event)


def drafting_engine() -> LocalEngine:
    """One that drafts as the service does, several tokens a step."""
    return LocalEngine(exact_target(), proposer=default_drafter(), nodes=16)


def accepted_tokens(call: CallUnderTest) -> int:
    """How many tokens of its replies a drafter had guessed."""
    return sum(stats.accepted for end in call.of(server.TurnEnded) for stats in end.account.stats)


class BegunEngine(LocalEngine):
    """One whose next reply begins with given text, tool calls included, as one does that is gone on with; the model
    goes on from there. tokens: how many of that there are; None for all. like: whose model and drafter it has.
    """

    def __init__(self, beginning: str, tokens: int | None = None, like: LocalEngine | None = None) -> None:
        if like is None:
            super().__init__()
        else:
            super().__init__(like.model, proposer=like._proposer, nodes=like._nodes)
        self.beginning = tuple(chat().codec.encode(beginning))[:tokens]

    def submit(self, command: records.Submit, sink: ReplySink, told: Repeat | None = None) -> None:
        forced, self.beginning = self.beginning, ()
        untold = forced

        def hear(record: records.Expected | records.Progress | records.Ended | records.Failed) -> None:
            nonlocal untold
            if isinstance(record, records.Progress):
                record, untold = dataclasses.replace(record, tokens=(*untold, *record.tokens)), ()
            sink(record)

        super().submit(dataclasses.replace(command, forced=forced or command.forced), hear, told)


def fresh_reply(call: CallUnderTest, reply: Reply) -> list[int]:
    """The tokens of a reply's first generation in a fresh session, in an engine of its own, on the ids that the history
    holds before it.
    """
    conversation, generation = call.conversation, reply.generation
    assert conversation is not None
    before = conversation.tokens[: reply.before] + conversation.prompt
    fresh, said = LocalEngine(call.engine.model), []
    fresh.open("fresh", before, call.of(server.Opened)[0].seed, lambda failed: None)
    constraint = conversation.constraint(generation, goes_on=False)
    stops, limit = conversation.stop_tokens, generation.max_tokens
    asked = records.Submit("fresh", 1, len(before), (), generation.sampling, limit, stops, constraint=constraint)
    fresh.submit(asked, said.append)
    fresh.run()
    fresh.close("fresh")
    fresh.run()
    return [token for record in said if isinstance(record, records.Progress) for token in record.tokens]


class CallUnderTest:
    """One open call: client events in, server events out, in ``events``."""

    _made: ClassVar[list[CallUnderTest]] = []

    def __init__(
        self,
        opening: client.Open | None = None,
        engine: LocalEngine | None = None,
        config: CallConfig | None = None,
        residents: Sequence[Resident] = (),
        telemetry: TelemetryConfig | None = None,
        store: Store | None = None,
        opens: bool = True,
    ) -> None:
        self.residents = {resident.name: resident for resident in residents}
        self.engine = engine or LocalEngine()
        self.conversation: Conversation | None = None
        self.envelopes: list[server.Envelope] = []
        self.ended_with: list[Problem | None] = []
        self.timers: list[tuple[float, Callable[[], None]]] = []
        services = CallServices(
            engine=self.engine,
            new_conversation=self._new_conversation,
            restored_conversation=self._restored_conversation,
            store=store or MemoryStore(),
            signing=Signing(("a secret of the tests",), 3600.0),
            telemetry=Telemetry(MODEL, telemetry),
            config=config or CallConfig(),
            model=MODEL,
            max_context_tokens=target().max_context_tokens,
            later=self._later,
            residents=self.residents,
        )
        self.call = Call(services, self.envelopes.append, self.ended_with.append)
        self._made.append(self)
        if opens:
            self.send(opening or client.Open(system=SYSTEM))

    @classmethod
    def unopened(cls, engine: LocalEngine | None = None, **given: Any) -> CallUnderTest:
        """One on which nothing has been said yet."""
        return cls(None, engine, opens=False, **given)

    @classmethod
    def end_all(cls) -> None:
        """End every call that was made, so that its pages return."""
        while cls._made:
            call = cls._made.pop()
            call.call.disconnect()
            call.run()
            for resident in call.residents.values():
                assert isinstance(resident.engine, LocalEngine)
                resident.engine.run()

    def send(self, *sent: client.ClientEvent) -> None:
        for event in sent:
            self.call.handle(0, event)

    def run(self) -> None:
        """Let the engine finish its work, and the event loop what was put off to its next round."""
        self.run_due()
        self.engine.run()
        self.run_due()

    def step_until_text(self) -> None:
        """Let the engine work until the newest turn has said something."""
        seen = len(self.of(server.TextDelta))
        while len(self.of(server.TextDelta)) == seen:
            self.run_due()
            assert self.engine.step()

    @property
    def events(self) -> list[server.ServerEvent]:
        return [envelope.event for envelope in self.envelopes]

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def text(self, turn_id: int) -> str:
        return "".join(delta.text for delta in self.of(server.TextDelta) if delta.turn_id == turn_id)

    def wait(self) -> None:
        """Let the time pass that the call waits for."""
        due, self.timers = self.timers, []
        for _, work in due:
            work()

    def run_due(self) -> None:
        """What was put off to the event loop's next round."""
        while due := [timer for timer in self.timers if timer[0] == 0.0]:
            self.timers.remove(due[0])
            due[0][1]()

    def _later(self, seconds: float, work: Callable[[], None]) -> Callable[[], None]:
        self.timers.append(timer := (seconds, work))

        def call_off() -> None:
            if timer in self.timers:
                self.timers.remove(timer)

        return call_off

    def _restored_conversation(self, state: CallState) -> Conversation:
        self.conversation = Conversation.restored(chat(), state)
        return self.conversation

    def _new_conversation(self, opening: client.Open) -> Conversation:
        self.conversation = Conversation.opened(chat(), opening)
        return self.conversation
