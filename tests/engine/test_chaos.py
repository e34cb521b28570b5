"""Everything goes wrong at once in an engine with all its parts: whoever was not hurt says what it says alone.

Suffix and EAGLE-3 drafts under the measured policy, shared beginnings, and more calls than the pool and the host memory
hold. Calls are cancelled, held and closed in every state that they can be in; readers, grammars and drafters raise.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from engine import records
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
from engine.text.reply import ReplyReader
from engine.tree import DraftTree
from tests.engine.embedded import HEAD, MODEL, codec
from tests.engine.equal import held_out
from tests.engine.test_hibernation import made

POOL_TOKENS, HOST_BYTES = 800, 1 << 20
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
    "grammar",
    "drafter",
    "aside",
)
UNHURT, HURT = ("fine", "held", "aside"), ("closed", "cancelled")
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
        return [records.Submit(self.name, self.turn, self.length, line, sampling, TOKENS, constraint=form)]

    def hear(self, event: records.Event) -> None:
        match event:
            case records.Progress():
                self.said[-1] += event.tokens
            case records.Ended():
                self.busy = self.held = False
                self.length = event.log_tokens
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
    if command.session.startswith("reader"):
        return FaultyReader(codec(), command.stop_strings)
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
        self._observe, self._propose = proposer.observe, proposer.propose
        monkeypatch.setattr(proposer, "observe", self._observe_or_fail)
        monkeypatch.setattr(proposer, "propose", self._propose_or_fail)

    def _observe_or_fail(self, draft: Draft, *given: Any) -> None:
        owner = next((s for s in self.engine.sessions.values() if s.draft is draft), None)
        turn = None if owner is None else owner.turn
        if owner is not None and owner.name.startswith("drafter") and turn is not None and turn.num_tokens > 3:
            raise RuntimeError("a fault in a drafter")
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

    def hurt(self, caller: Caller) -> None:
        """Cancel or close a call as it is, or as it is woken."""
        session = self.engine.session(caller.name)
        state = self.state(session)
        if state in STATES[2:4] and state in self.seen:
            self.do(caller.announce(5))
            state = STATES[5]
        self.seen.add(state)
        if caller.role == "cancelled":
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

    def ask_aside(self, caller: Caller) -> None:
        child = f"{caller.name}/aside"
        aside = records.Submit(child, 1, len(caller.prompt), (9, 10), Sampling(), 6, request=7, aside=True)
        self.do([records.Close(child), records.Fork(caller.name, child), aside])


@pytest.mark.parametrize("seed", [1, 2])
def test_whoever_is_not_hurt_says_what_it_says_alone(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    house = House(chance, monkeypatch)
    hurt = [caller for caller in house.everybody if caller.role in HURT]
    unhurt = [caller for caller in house.everybody if caller.role not in HURT]
    for caller in hurt:  # at once, so that one computes the beginning and the others wait for it
        house.do(caller.open())
    for caller in reversed(hurt):
        if house.state(house.engine.session(caller.name)) not in {*house.seen, ""}:
            house.hurt(caller)
    for caller in chance.sample(unhurt, len(unhurt)):
        house.do(caller.open())
        house.run(chance.randrange(4))
    for _ in range(4000):
        if all(caller.done for caller in unhurt) and house.seen >= set(STATES):
            break
        for caller in hurt:
            if house.state(house.engine.session(caller.name)) not in {*house.seen, ""}:
                house.hurt(caller)
        house.act(chance.choice(house.everybody))
        house.run(chance.randrange(5))
    house.do(records.Release(caller.name, caller.turn) for caller in house.everybody if caller.held)
    house.run()

    for caller in house.everybody:
        assert caller.failures == [], caller.name
        if caller.role in UNHURT:
            assert caller.said == alone()[caller.name] and caller.finishes == ["length"] * TURNS, caller.name
        elif caller.role in ("reader", "grammar", "drafter"):
            assert caller.finishes == ["failed"] * TURNS, caller.name
    beat = house.host.beat()
    assert beat.hibernated and beat.dropped and beat.shared_tokens and beat.host_bytes <= HOST_BYTES
    assert house.seen >= set(STATES)
    for caller in house.everybody:
        house.do([records.Close(f"{caller.name}/aside"), records.Close(caller.name)])
    house.run()
    for pool in house.pools:
        while house.prefixes.give_up(pool, shared=True):
            pass
    assert [pool.pages_in_use for pool in house.pools] == [0] * len(house.pools) and len(house.pools) == 2
    assert house.hibernation.bytes_in_host == house.host.beat().sessions == 0
    for owner in (house.host, house.host.scheduler, house.hibernation, house.prefixes):
        left = {name: kept for name, kept in vars(owner).items() if isinstance(kept, dict | set) and kept}
        assert left == {}, owner
