"""Calls that share an engine under load: each one's text is what it would be alone, however it was drafted."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch

from engine import records
from engine.arrival import ArrivalScheduler
from engine.config import EngineConfig
from engine.engine import Engine, Work
from engine.host import EngineHost
from engine.interfaces import Output, Tap, Window
from engine.load import load_proposer, load_target_for, measured_engine
from engine.measured_policy import MeasuredPolicy
from engine.models.decoder import Decoder
from engine.pace import Pace, StepCosts
from engine.policy import NOTHING, Ask, Choice, FixedPolicy, Given
from engine.proposers.cascade import Cascade
from engine.proposers.eagle3 import load_eagle3
from engine.proposers.none import NoProposer
from engine.proposers.pairs.proposer import PairProposer
from engine.proposers.suffix import SuffixProposer
from engine.sampling import Sampling
from engine.schedule import DeadlineScheduler, Scheduler
from engine.text.reply import ReplyReader
from engine.tree import DraftTree
from tests.engine.drafters import held_out
from tests.engine.embedded import HEAD, MODEL, codec, grammars
from tests.engine.rounding import differ_by_rounding

CONFIG = EngineConfig(str(MODEL), f"suffix+eagle3:{HEAD}", dtype="float64", pool_tokens=16_384)
SERVED = replace(CONFIG, dtype="float32")
CALLS = 10


@cache
def loaded(config: EngineConfig) -> Decoder:
    return load_target_for(config)


def target() -> Decoder:
    return loaded(CONFIG)


@dataclass
class Said:
    """What a call has said."""

    text: str = ""
    tokens: tuple[int, ...] = ()

    def hear(self, progress: records.Progress) -> None:
        self.text += progress.text
        self.tokens += progress.tokens


class Fickle:
    """A policy that drafts every reply in every step in another way."""

    def __init__(self, ways: int, rng: random.Random) -> None:
        self._ways, self._rng = ways, rng

    def choose(self, asks: Sequence[Ask], given: Given = NOTHING) -> list[Choice]:
        return [
            Choice(self._rng.choice([1, 3, 8, 16]) if ask.room > 0 else 1, self._rng.randrange(self._ways))
            for ask in asks
        ]

    def prune(self, choices: Sequence[Choice], trees: Sequence[DraftTree], given: Given = NOTHING) -> list[DraftTree]:
        return [tree.best(self._rng.randrange(1, len(tree) + 1)) for tree in trees]

    def observe(self, choice: Choice, tree: DraftTree, path: Sequence[int]) -> None:
        assert len(tree) <= choice.nodes


def asked(number: int, prompt: tuple[int, ...]) -> records.Submit:
    sampling = Sampling(0.0 if number % 2 else 0.9, seed=number)
    stop = codec().stop_tokens
    return records.Submit(f"call {number}", 1, len(prompt), (), sampling, 24 + number, stop_tokens=stop)


def run(engine: Engine, scheduler: Scheduler, rng: random.Random) -> tuple[dict[str, Said], set[str]]:
    """(every reply, the ways in which they were drafted). Calls come in while others speak."""
    host = EngineHost(engine, scheduler, lambda command: ReplyReader(codec(), command.stop_strings), grammars())
    said: defaultdict[str, Said] = defaultdict(Said)
    modes: set[str] = set()
    prompts = [tuple(prompt.ids) for prompt in held_out(CALLS)]
    waiting = [asked(number, prompt) for number, prompt in enumerate(prompts)]
    ended = 0
    while ended < len(prompts):
        if waiting and (not host.busy or rng.random() < 0.2):
            command = waiting.pop()
            host.handle(records.Open(command.session, prompts[int(command.session.split()[1])], seed=1))
            assert host.handle(command) == []
        for event in host.advance():
            assert not isinstance(event, records.Failed), event
            if isinstance(event, records.Progress):
                said[event.session].hear(event)
                modes |= {event.drafting[0]} if event.drafting else set()
            elif isinstance(event, records.Ended):
                ended += 1
                modes |= {phase.mode for phase in event.stats.phases}
                assert sum(phase.steps for phase in event.stats.phases) == event.stats.steps
                host.handle(records.Close(event.session))
    assert engine.target.new_cache().pool.pages_in_use == 0
    return said, modes


@cache
def alone(config: EngineConfig = CONFIG) -> dict[str, Said]:
    """What the target says to each of them, where nobody drafts and nobody shares."""
    engine = Engine(loaded(config), NoProposer(), FixedPolicy(1))
    found: defaultdict[str, Said] = defaultdict(Said)
    for number, prompt in enumerate(held_out(CALLS)):
        host = EngineHost(engine, ArrivalScheduler(512), lambda c: ReplyReader(codec(), c.stop_strings), grammars())
        command = asked(number, tuple(prompt.ids))
        host.handle(records.Open(command.session, tuple(prompt.ids), seed=1))
        host.handle(command)
        while host.busy:
            for event in host.advance():
                if isinstance(event, records.Progress):
                    found[command.session].hear(event)
        host.handle(records.Close(command.session))
    return found


@pytest.mark.parametrize("order", ["deadline", "fcfs"])
def test_text_is_the_same_however_each_step_is_drafted_and_shared(order: str) -> None:
    engine = measured_engine(target(), load_proposer(CONFIG, target()), CONFIG)
    rng = random.Random(3)
    engine.drafting.policy = Fickle(len(engine.drafting.ways), rng)
    scheduler = DeadlineScheduler(64) if order == "deadline" else ArrivalScheduler(64)
    said, modes = run(engine, scheduler, rng)
    assert said == alone()
    assert modes == {"suffix+eagle3", "suffix", "plain"}


@pytest.mark.parametrize("order", ["deadline", "fcfs"])
def test_in_float32_only_what_rounding_decides_depends_on_who_shares_the_step(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The precision that is served. (What tells the two apart is tested in ``test_batched``.)"""
    model, widths = loaded(SERVED), list[int]()
    engine, rng = measured_engine(model, load_proposer(SERVED, model), SERVED), random.Random(3)
    engine.drafting.policy = Fickle(len(engine.drafting.ways), rng)
    forward = model.forward

    def counted(windows: Sequence[Window], taps: Sequence[Tap] = ()) -> list[Output]:
        widths.append(len(windows))
        return forward(windows, taps)

    monkeypatch.setattr(model, "forward", counted)
    said, _ = run(engine, DeadlineScheduler(64) if order == "deadline" else ArrivalScheduler(64), rng)
    monkeypatch.undo()
    assert sum(width > 1 for width in widths) > len(widths) / 3, f"steps were hardly shared: {widths}"
    close = 0
    for number, prompt in enumerate(held_out(CALLS)):
        command = asked(number, tuple(prompt.ids))
        wanted, got = alone(SERVED)[command.session], said[command.session]
        if got != wanted:
            close += 1
            rounded = differ_by_rounding(target(), prompt.ids, wanted.tokens, got.tokens, command.sampling)
            assert rounded, f"{wanted} became {got}"
    assert close <= CALLS // 4


SIZES = (1, 4, 8, 16, 32, 60)
ACCELERATOR = StepCosts(SIZES, tuple(0.01 + 1e-4 * n for n in SIZES), ((0.0, *[0.004] * 5), (0.0, *[0.0002] * 5)))
"""Where another node is nearly free and the head costs something for each call: what is best depends on who shares."""


def test_text_is_the_same_under_the_measured_policy() -> None:
    engine = measured_engine(target(), load_proposer(CONFIG, target()), CONFIG)
    # It goes by the costs of another machine: by those of this one it might never draft.
    engine.drafting.policy = MeasuredPolicy(Pace(ACCELERATOR), [way.name for way in engine.drafting.ways])
    said, modes = run(engine, DeadlineScheduler(64), random.Random(4))
    assert said == alone()
    assert modes >= {"suffix+eagle3", "suffix"}


def test_a_drafter_that_was_off_catches_up_and_drafts_as_if_it_had_never_been() -> None:
    """Its features are kept while the other way drafts; the next tree is the one that it would have drafted anyway."""
    proposer = load_proposer(EngineConfig(str(MODEL), f"eagle3:{HEAD}", dtype="float64"), target())
    prompt = held_out(1)[0].ids
    trees = []
    for off in (False, True):
        engine = Engine(target(), proposer, FixedPolicy(8))
        session = engine.open("call", prompt, seed=1)
        turn = engine.submit(session, Sampling(), max_tokens=12, drafting=not off)
        while turn.finish is None:
            engine.step([Work(session)])
        with torch.inference_mode():
            trees.append(proposer.propose([session.draft], [session.tokens[-1]], [None], 16)[0])
        engine.close(session)
    one, other = trees
    assert one.tokens.tolist() == other.tokens.tolist() and one.parents.tolist() == other.parents.tolist()


class ProbesOnce:
    """A policy of plain decoding, but for one probe by the first reply in the step numbered ``at``."""

    def __init__(self, at: int) -> None:
        self._steps_left = at
        self.probed: list[int] = []
        """Nodes of the probe's trees."""

    def choose(self, asks: Sequence[Ask], given: Given = NOTHING) -> list[Choice]:
        self._steps_left -= 1
        return [Choice(8, 0, "probing", True) if self._steps_left == at == 0 else Choice(1) for at in range(len(asks))]

    def prune(self, choices: Sequence[Choice], trees: Sequence[DraftTree], given: Given = NOTHING) -> list[DraftTree]:
        return list(trees)

    def observe(self, choice: Choice, tree: DraftTree, path: Sequence[int]) -> None:
        self.probed.append(len(tree))


@pytest.mark.parametrize(("shared", "alone"), [(True, 1024), (False, 1024), (False, 48)])
def test_a_probe_of_a_drafter_that_was_off_stalls_nobody_and_is_not_what_drafting_costs(
    shared: bool, alone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where others share the steps it reads piece by piece what it missed, and drafts when it has; alone at once, if
    it is not more than whoever comes next should wait for.
    """
    monkeypatch.setattr("engine.drafting.ALONE_TOKENS", alone)
    monkeypatch.setattr("engine.drafting.CATCH_UP_TOKENS", 32)
    monkeypatch.setattr("engine.proposers.pairs.proposer.CATCH_UP_TOGETHER", 32)
    config = EngineConfig(str(MODEL), f"eagle3:{HEAD}", dtype="float64")
    head = load_proposer(config, target())
    assert isinstance(head, PairProposer)
    read: list[int] = []
    real_read, timed = head._read, []

    def counted(pairs: dict) -> dict:  # type: ignore[type-arg]
        read[-1] += sum(tokens.numel() for _, tokens in pairs.values())
        return real_read(pairs)

    monkeypatch.setattr(head, "_read", counted)
    engine = Engine(target(), head, policy := ProbesOnce(20))
    monkeypatch.setattr(engine.pace, "observe_draft", lambda way, nodes, sessions, seconds: timed.append(read[-1]))
    prompts = [tuple(prompt.ids[:120]) for prompt in held_out(3)][: 3 if shared else 1]
    sessions = [engine.open(f"c{number}", prompt, seed=1) for number, prompt in enumerate(prompts)]
    turns = [engine.submit(session, Sampling(0.9, seed=3), max_tokens=40) for session in sessions]
    while any(turn.finish is None for turn in turns):
        read.append(0)
        engine.step([Work(turn.session) for turn in turns if turn.finish is None])
    missed = 120 + 20
    (nodes,) = policy.probed
    assert nodes > 1 and sum(read) >= missed - 2
    most = 32 if shared else alone
    assert max(read) <= most + 1 if most < missed else max(read) >= missed - 2
    assert all(pairs <= 8 + 1 for pairs in timed)
    plain = Engine(target(), NoProposer(), FixedPolicy(1))
    for session, prompt in zip(sessions, prompts, strict=True):
        lone = plain.submit(plain.open(session.name, prompt, seed=1), Sampling(0.9, seed=3), max_tokens=40)
        while lone.finish is None:
            plain.step([Work(lone.session)])
        assert session.tokens == lone.session.tokens
        plain.close(lone.session)
        engine.close(session)


class InTurn:
    """A policy of one reply that would always draft, and others each of which drafts in every ``every``-th step."""

    def __init__(self, every: int) -> None:
        self._every, self._steps = every, 0

    def choose(self, asks: Sequence[Ask], given: Given = NOTHING) -> list[Choice]:
        self._steps += 1
        mine = [at == 0 or (at + self._steps) % self._every == 0 for at in range(len(asks))]
        return [Choice(8 if drafts and ask.room > 0 else 1) for drafts, ask in zip(mine, asks, strict=True)]

    def prune(self, choices: Sequence[Choice], trees: Sequence[DraftTree], given: Given = NOTHING) -> list[DraftTree]:
        return list(trees)

    def observe(self, choice: Choice, tree: DraftTree, path: Sequence[int]) -> None:
        pass


def test_a_drafter_that_missed_much_catches_up_though_others_have_something_to_read_in_every_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.drafting.CATCH_UP_TOKENS", 32)
    monkeypatch.setattr("engine.proposers.pairs.proposer.CATCH_UP_TOGETHER", 32)
    others = 10
    head = load_proposer(EngineConfig(str(MODEL), f"eagle3:{HEAD}", dtype="float64"), target())
    engine = Engine(target(), head, InTurn(others))
    prompts = [tuple(prompt.ids[: 120 if at == 0 else 10]) for at, prompt in enumerate(held_out(others + 1))]
    sessions = [engine.open(f"c{number}", prompt, seed=1) for number, prompt in enumerate(prompts)]
    turns = [engine.submit(session, Sampling(0.9, seed=3), max_tokens=200) for session in sessions]
    for _ in range(30):
        engine.step([Work(turn.session) for turn in turns])
    assert all(turn.stats.drafted_by.get("eagle3") for turn in turns)
    plain = Engine(target(), NoProposer(), FixedPolicy(1))
    alone = plain.submit(plain.open("alone", prompts[0], seed=1), Sampling(0.9, seed=3), max_tokens=200)
    while alone.num_tokens < turns[0].num_tokens:
        plain.step([Work(alone.session)])
    assert alone.tokens == turns[0].tokens
    for session in sessions:
        engine.close(session)
    plain.close(alone.session)


def test_a_drafter_without_pages_to_catch_up_in_keeps_the_other_one_from_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.drafting.CATCH_UP_TOKENS", 32)
    head = load_eagle3(HEAD, target(), pool_tokens=32, source=1)
    engine = Engine(target(), Cascade([SuffixProposer(0), head], [0]), FixedPolicy(8))
    prompt = tuple(held_out(1)[0].ids[:40]) * 4
    sessions = [engine.open(name, prompt, seed=1) for name in ("one", "two")]
    turns = [engine.submit(session, Sampling(), max_tokens=30) for session in sessions]
    while any(turn.finish is None for turn in turns):
        engine.step([Work(turn.session) for turn in turns if turn.finish is None])
    assert all(turn.stats.drafted_by.get("suffix") for turn in turns)
    for session in sessions:
        engine.close(session)
