"""Everything goes wrong at once in an engine with all its parts: whoever was not hurt says what it says alone.

Suffix and EAGLE-3 drafts under the measured policy, shared beginnings, and more calls than the pool and the host memory
hold. Calls are cancelled, held and closed in every state that they can be in; readers, grammars and drafters raise, the
last also over what is pinned. Whoever was hurt goes on from what it was told.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from engine import records
from engine.cache import ABSENT
from engine.config import EngineConfig
from engine.constraint import Constraint, JsonConstraint
from engine.hibernation import Hibernation
from engine.host import EngineHost
from engine.interfaces import Draft, Grammar
from engine.load import load_proposer, load_target_for, measured_engine, reader_of
from engine.measured_policy import MeasuredPolicy
from engine.prefixes import Prefixes
from engine.sampling import Sampling
from engine.schedule import DeadlineScheduler
from engine.session import Session
from engine.text.reply import Read, ReplyReader
from engine.tree import DraftTree
from tests.engine.embedded import HEAD, MODEL, codec
from tests.engine.equal import held_out
from tests.engine.test_hibernation import made

POOL_TOKENS, HOST_BYTES = 800 + 3 * 96, 1 << 20
"""Of the pool, what is pinned takes the last part."""
LONGEST = 200
"""Tokens of a log that is hurt again and again: it is rewound then, or it would not fit the pool for ever."""
TURNS, TOKENS, AT_ONCE = 2, 10, 3
BEGINNING, OWN = 96, 12
ROLES = (
    "fine",
    "fine",
    "fine",
    "held",
    "held",
    "closed",
    "closed",
    "cancelled",
    "reader",
    "taker",
    "forced",
    "grammar",
    "drafter",
    "aside",
)
UNHURT, HURT = ("fine", "held", "aside"), ("closed", "cancelled")
FORCED = (9, 10, 11, 12)
AFTERWARDS = 5
"""The request of a reply in which nothing goes wrong any more."""
PIN_FAILURES = 2
STATES = ("waits for a beginning", "computes one", "in host memory", "dropped", "replies", "was just woken")
"""In which a call is hurt at least once."""


@dataclass
class Caller:
    """One call: its commands, and what came of them."""

    number: int
    role: str
    prompt: tuple[int, ...]
    lines: tuple[tuple[int, ...], ...]
    turn: int = 0
    length: int = 0
    busy: bool = False
    held: bool = False
    said: list[tuple[int, ...]] = field(default_factory=list)
    finishes: list[str] = field(default_factory=list)
    failures: list[records.Failed] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.role} {self.number}"

    @property
    def done(self) -> bool:
        return self.turn >= TURNS and not self.busy

    def open(self) -> list[records.Command]:
        self.length, preamble = len(self.prompt), records.Preamble("ab"[self.number % 2], BEGINNING)
        return [records.Open(self.name, self.prompt, self.number, preamble=preamble)]

    def announce(self, part: int) -> list[records.Command]:
        heard = self.lines[self.turn % TURNS][:part]
        return [records.Wake(self.name), records.Sync(self.name, self.length, heard, ahead=part)]

    def ask(self) -> list[records.Command]:
        line = self.lines[self.turn % TURNS]
        self.turn, self.busy = self.turn + 1, True
        self.said.append(())
        sampling = Sampling(0.0 if self.number % 3 else 0.8)
        form = JsonConstraint("{}") if self.role == "grammar" else None
        ask = records.Submit(self.name, self.turn, self.length, line, sampling, TOKENS, constraint=form)
        return [replace(ask, forced=FORCED)] if self.role == "forced" else [ask]

    def ask_afterwards(self, log: Sequence[int]) -> list[records.Command]:
        self.turn, self.busy = self.turn + 1, True
        self.said.append(())
        line = self.lines[0]
        return [records.Submit(self.name, self.turn, len(log), line, Sampling(0.8), TOKENS, request=AFTERWARDS)]

    def hear(self, event: records.Event) -> None:
        match event:
            case records.Progress():
                self.said[-1] += event.tokens
            case records.Ended():
                self.busy = self.held = False
                self.length = event.log_tokens
                told = FORCED if self.role == "forced" and event.stats.steps == 0 else self.said[-1]
                assert event.reply_tokens == len(told), f"{self.name} has a log that it was not told"
                self.finishes.append(event.finish)
            case records.Failed():
                self.failures.append(event)
            case _:
                pass


def callers() -> list[Caller]:
    prompts = [tuple(prompt.ids) for prompt in held_out(len(ROLES) + 8) if len(prompt.ids) > BEGINNING + 2 * OWN]
    begin = [prompts[0][:BEGINNING], prompts[1][:BEGINNING]]
    return [
        Caller(at, role, begin[at % 2] + prompts[at][-OWN:], (prompts[at + 1][-9:], prompts[at + 2][-7:]))
        for at, role in enumerate(ROLES)
    ]


@cache
def alone() -> dict[str, list[tuple[int, ...]]]:
    """What each says where nobody else is, nothing is moved and nothing shared."""
    host, everybody = made(4096, None), callers()
    for caller in everybody:
        if caller.role in UNHURT:
            commands = caller.open()
            for _ in range(TURNS):
                for command in (*commands, *caller.ask()):
                    host.handle(command)
                commands = []
                while host.busy:
                    for event in host.advance():
                        caller.hear(event)
            host.handle(records.Close(caller.name))
    return {caller.name: caller.said for caller in everybody}


class FaultyReader(ReplyReader):
    """Raises inside of the step that makes its third token."""

    count = 0

    def push(self, token: int) -> str:
        self.count += 1
        if self.count == 3:
            raise RuntimeError("a fault in a reader")
        return super().push(token)


class FaultyTake(ReplyReader):
    """Raises where what the step has added to it is asked for, from its third token on."""

    count = 0

    def push(self, token: int) -> str:
        self.count += 1
        return super().push(token)

    def take(self, *, final: bool = False, cut: bool = False) -> Read:
        if self.count >= 3:
            raise RecursionError("a fault in what was read")
        return super().take(final=final, cut=cut)


class FaultyGrammar:
    """A ``Grammar`` that allows everything, and raises behind its third token."""

    count = 0

    def mask(self, tree: DraftTree) -> Tensor:
        if self.count >= 3:
            raise RuntimeError("a fault in a grammar")
        return torch.ones(len(tree), codec().vocab_size, dtype=torch.bool)

    def narrow(self, tree: DraftTree, budget: int, room: int) -> DraftTree:
        return tree

    def consume(self, tokens: Sequence[int]) -> None:
        self.count += len(tokens)


class FaultyGrammars:
    def prepare(self, constraint: Constraint) -> None:
        pass

    def ready(self, constraint: Constraint) -> bool:
        return True

    def grammar(self, constraint: Constraint) -> Grammar:
        return FaultyGrammar()


def new_reader(command: records.Submit) -> ReplyReader:
    if command.request != AFTERWARDS:
        if command.session.startswith(("reader", "forced")):
            return FaultyReader(codec(), command.stop_strings)
        if command.session.startswith("taker"):
            return FaultyTake(codec(), command.stop_strings)
    return reader_of(codec(), command)


CONFIG = EngineConfig(str(MODEL), f"suffix+eagle3:{HEAD}", dtype="float64", pool_tokens=POOL_TOKENS)


class House:
    """The engine's host, with drafters that raise now and then, and its callers."""

    def __init__(self, chance: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
        target = load_target_for(CONFIG)
        proposer = load_proposer(CONFIG, target)
        self.chance, self.everybody = chance, callers()
        self.engine = measured_engine(target, proposer, CONFIG)
        assert isinstance(self.engine.drafting.policy, MeasuredPolicy)
        self.prefixes = Prefixes(self.engine)
        self.hibernation = Hibernation(self.engine, HOST_BYTES, idle_s=0.0, beginnings=self.prefixes)
        scheduler = DeadlineScheduler(64)
        self.host = EngineHost(self.engine, scheduler, new_reader, FaultyGrammars(), self.hibernation, self.prefixes)
        self.pools = [self.engine.target.new_cache().pool, *(c.pool for c in proposer.start().caches())]
        self.seen: set[str] = set()
        self.calm = False
        """Whether drafters do not raise any more where that fails a reply."""
        self.pin_failures: Counter[str] = Counter()
        self._observe, self._propose = proposer.observe, proposer.propose
        monkeypatch.setattr(proposer, "observe", self._observe_or_fail)
        monkeypatch.setattr(proposer, "propose", self._propose_or_fail)

    def _observe_or_fail(self, draft: Draft, *given: Any) -> None:
        owner = next((s for s in self.engine.sessions.values() if s.draft is draft), None)
        turn = None if owner is None else owner.turn
        name = "" if owner is None else owner.name
        if name.startswith("drafter") and turn is not None and turn.num_tokens > 3 and not self.calm:
            raise RuntimeError("a fault in a drafter")
        if name.startswith("\npin") and self.pin_failures[name] < PIN_FAILURES:
            self.pin_failures[name] += 1
            raise RuntimeError("a fault in a drafter that reads what is pinned")
        self._observe(draft, *given)

    def _propose_or_fail(self, *given: Any) -> list[DraftTree]:
        if self.chance.random() < 0.1:
            raise RuntimeError("no idea")
        return self._propose(*given)

    def do(self, commands: Iterable[records.Command]) -> None:
        for command in commands:
            self.tell(self.host.handle(command))

    def run(self, steps: int = 100_000) -> None:
        while self.host.busy and steps:
            self.tell(self.host.advance())
            steps -= 1

    def tell(self, events: Iterable[records.Event]) -> None:
        by_name = {caller.name: caller for caller in self.everybody}
        for event in events:
            if (name := getattr(event, "session", "")) in by_name:
                by_name[name].hear(event)

    def state(self, session: Session) -> str:
        """Which of ``STATES`` it is in, or ""."""
        if session.held:
            return STATES[0]
        if session.name in self.prefixes._computing.values():
            return STATES[1]
        if not session.resident:
            return STATES[2]
        if session.asleep:
            return STATES[3]
        return STATES[4] if session.turn is not None else ""

    def is_new(self, caller: Caller) -> bool:
        """Whether it is in a state in which none has been hurt, or has not been as it was woken."""
        state = self.state(self.engine.session(caller.name))
        return state not in {*self.seen, ""} or (state in STATES[2:4] and STATES[5] not in self.seen)

    def hurt(self, caller: Caller) -> None:
        """Cancel or close a call as it is, or as it is woken."""
        session = self.engine.session(caller.name)
        state = self.state(session)
        if state in STATES[2:4] and state in self.seen:
            self.do(caller.announce(5))
            state = STATES[5]
        self.seen.add(state)
        if caller.role == "cancelled":
            if not caller.busy and caller.length > LONGEST:
                caller.length = len(caller.prompt)
            self.do([] if caller.busy else caller.ask())
            self.run(self.chance.randrange(3))
            self.do([records.Cancel(caller.name, caller.turn)] if caller.busy else [])
        else:
            self.do([records.Close(caller.name)])
            self.do(caller.open())

    def act(self, caller: Caller) -> None:
        if caller.role in HURT and self.chance.random() < 0.2:
            self.hurt(caller)
        elif caller.busy:
            if caller.role == "held":
                caller.held = not caller.held
                command = records.Hold if caller.held else records.Release
                self.do([command(caller.name, caller.turn)])
        elif not caller.done and sum(other.busy and not other.held for other in self.everybody) < AT_ONCE:
            if self.chance.random() < 0.5:
                self.do(caller.announce(self.chance.randrange(1, 6)))
                self.run(self.chance.randrange(6))
            self.do(caller.ask())
            if caller.role == "aside":
                self.ask_aside(caller)

    def pin(self) -> None:
        """What calls of both tenants begin with, and what none of them does, so that nobody else computes it."""
        for at, tenant in enumerate("ab"):
            self.do([records.Pin(self.everybody[at].prompt[:BEGINNING], tenant)])
        self.do([records.Pin(self.everybody[0].prompt[BEGINNING - 1 :: -1], None)])

    def ask_afterwards(self, caller: Caller) -> None:
        """Whoever was hurt goes on, and says what one with such a log says alone."""
        log = tuple(self.engine.session(caller.name).tokens)
        assert len(log) == caller.length, caller.name
        asked = caller.ask_afterwards(log)
        self.do(asked)
        self.run()
        assert not caller.busy and caller.finishes[-1] == "length", caller.name
        host = made(4096, None)
        host.handle(records.Open(caller.name, log, caller.number))
        alone = Caller(caller.number, "fine", log, caller.lines, said=[()])
        for command in asked:
            host.handle(command)
        while host.busy:
            for event in host.advance():
                alone.hear(event)
        assert caller.said[-1] == alone.said[-1] and len(alone.said[-1]) == TOKENS, caller.name

    def ask_aside(self, caller: Caller) -> None:
        child = f"{caller.name}/aside"
        aside = records.Submit(child, 1, len(caller.prompt), (9, 10), Sampling(), 6, request=7, aside=True)
        self.do([records.Close(child), records.Fork(caller.name, child), aside])


def assert_nothing_is_left(house: House) -> None:
    """Of calls that are closed, but what is pinned."""
    for caller in house.everybody:
        house.do([records.Close(f"{caller.name}/aside"), records.Close(caller.name)])
    house.run()
    for pool in house.pools:
        while house.prefixes.give_up(pool, shared=True):
            pass
    pinned = [len(house.prefixes.pages(pool, pinned=True) - {ABSENT}) for pool in house.pools]
    assert [pool.pages_in_use for pool in house.pools] == pinned and len(house.pools) == 2 and all(pinned)
    assert max(house.pin_failures.values()) == PIN_FAILURES
    assert house.hibernation.bytes_in_host == house.host.beat().sessions == 0
    for owner in (house.host, house.host.scheduler, house.hibernation, house.prefixes):
        left = {name: kept for name, kept in vars(owner).items() if isinstance(kept, dict | set) and kept}
        assert left == {}, owner


@pytest.mark.parametrize("seed", [1, 2])
def test_whoever_is_not_hurt_says_what_it_says_alone(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    house = House(chance, monkeypatch)
    hurt = [caller for caller in house.everybody if caller.role in HURT]
    unhurt = [caller for caller in house.everybody if caller.role not in HURT]
    for caller in hurt:  # at once, so that one computes the beginning and the others wait for it
        house.do(caller.open())
    house.pin()
    for caller in reversed(hurt):
        if house.is_new(caller):
            house.hurt(caller)
    for caller in chance.sample(unhurt, len(unhurt)):
        house.do(caller.open())
        house.run(chance.randrange(4))
    for _ in range(4000):
        if all(caller.done for caller in unhurt) and house.seen >= set(STATES):
            break
        for caller in hurt:
            if house.is_new(caller):
                house.hurt(caller)
        house.act(chance.choice(house.everybody))
        house.run(chance.randrange(5))
    house.do(records.Release(caller.name, caller.turn) for caller in house.everybody if caller.held)
    house.run()

    for caller in house.everybody:
        assert caller.failures == [], caller.name
        if caller.role in UNHURT:
            assert caller.said == alone()[caller.name] and caller.finishes == ["length"] * TURNS, caller.name
        elif caller.role in HURT:
            assert set(caller.finishes) <= {"length", "cancelled"}, caller.name
        else:
            assert caller.finishes == ["failed"] * TURNS, caller.name
    beat = house.host.beat()
    assert beat.hibernated and beat.dropped and beat.shared_tokens and beat.host_bytes <= HOST_BYTES
    assert house.seen >= set(STATES)
    house.calm = True
    for caller in house.everybody:
        if caller.role not in UNHURT:
            house.ask_afterwards(caller)
    assert_nothing_is_left(house)
