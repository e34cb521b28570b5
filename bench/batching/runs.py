"""Contenders on one target, and the runs in which so many replies of each are made at a time."""

from __future__ import annotations

import dataclasses
import hashlib
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import harness
from engine.config import EngineConfig
from engine.costs import measure_costs
from engine.engine import Engine, Work
from engine.load import choose_policy, load_proposer, load_target_for, measured_engine
from engine.models.decoder import Decoder
from engine.pace import Pace, StepCosts
from engine.proposers.search import shape_for
from engine.proposers.table import cheaper_ways
from engine.sampling import Sampling
from engine.session import Turn
from engine.text.common import common_length

OURS, PLAIN, SELF, EAGLE = "ours", "plain", "self-speculation", "EAGLE-3"
HEAD = "eagle3"
"""In the name of a way of drafting that asks the head."""
WAYS: Mapping[str, Mapping[str, str | int]] = {
    OURS: {},
    PLAIN: {"draft_mode": "plain", "drafter": "none"},
    SELF: {"drafter": "suffix"},
    f"{EAGLE}, 4 nodes": {"drafter": "eagle3:{model}/eagle3", "draft_nodes": 4},
    f"{EAGLE}, 8 nodes": {"drafter": "eagle3:{model}/eagle3", "draft_nodes": 8},
    f"{EAGLE}, 24 nodes": {"drafter": "eagle3:{model}/eagle3", "draft_nodes": 24},
}
"""Keys of ``[engine]`` as they differ from the defaults. The fixed trees are what an engine drafts that chooses its
drafter at its start."""
MAX_TOKENS = 64
LONGEST_PROMPT = 1024
SPARE_CONTEXTS = 8
"""That the page pools have room for beside those of the replies at a time: costs are measured on scratch sessions."""
PATIENCE = 2.5
"""Times a run's counted seconds that it may take with all that does not count."""
COMPARED_NODES = 16
"""The largest tree that tells what a step of the head takes: of larger ones, more than its forwards."""


@dataclass
class Contender:
    """One way of drafting with its own engine; all share the target's weights and pages. head: what the draft head's
    time counts. going: replies that are being made, by their numbers; they go on from run to run.
    """

    name: str
    engine: Engine
    head: float = 1.0
    going: dict[int, Turn] = field(default_factory=dict)
    begun: int = 0


@dataclass(frozen=True)
class Found:
    """One run of one contender. modes: steps of its replies by what they drafted with. texts: by number of the reply,
    a digest of what was said.
    """

    contender: str
    calls: int
    tokens_per_second: float
    modes: Mapping[str, int]
    texts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """The prompt of a reply. known: tokens that the call had before its newest lines, which drafters have read."""

    ids: list[int]
    known: int


def asked(prompts: Sequence[harness.Prompt]) -> list[Asked]:
    """Prompts in the order of their calls. What a prompt has in common with the one before was read for that; with that
    of another call, it is the beginning that calls share.
    """
    before: list[int] = []
    found = []
    for prompt in prompts:
        if len(prompt.ids) <= LONGEST_PROMPT:
            found.append(Asked(prompt.ids, max(1, common_length(before, prompt.ids))))
        before = prompt.ids
    return found


class Replies:
    """Prompts without end, in the same order for all: the reply of a number is the same whoever makes it."""

    def __init__(self, prompts: Sequence[Asked], sampling: Sampling, stop: frozenset[int]) -> None:
        self.prompts = prompts
        self._sampling = sampling
        self._stop = stop

    def begin(self, engine: Engine, number: int) -> Turn:
        """The target has read the reply's prompt, its drafter what was there before the newest lines."""
        prompt = self.prompts[number % len(self.prompts)]
        session = harness.warm(engine, prompt.ids[: prompt.known], seed=number, name=f"reply-{number}")
        engine.append(session, prompt.ids[prompt.known :])
        while session.num_pending > 1:
            engine.step([Work(session, max_tokens=4096)])
        return engine.submit(session, self._sampling, max_tokens=MAX_TOKENS, stop_tokens=self._stop)


class HeadPace(Pace):
    """Of a machine on which drafting with the head takes ``head`` times as long as here."""

    def __init__(self, costs: StepCosts, ways: Sequence[str], head: float) -> None:
        self._times = [head if HEAD in way else 1.0 for way in ways]
        draft = tuple(tuple(times * s for s in way) for times, way in zip(self._times, costs.draft, strict=True))
        super().__init__(dataclasses.replace(costs, draft=draft))

    def observe_draft(self, way: int, nodes: int, sessions: int, seconds: float) -> None:
        super().observe_draft(way, nodes, sessions, self._times[way] * seconds)


def head_step(engine: Engine) -> float:
    """What one step of the draft head takes, as a part of a plain forward: a tree has as many as it has levels."""
    costs = engine.pace.costs
    assert costs is not None
    sizes = [(n, seconds) for n, seconds in zip(costs.nodes, costs.draft[0], strict=True) if 1 < n <= COMPARED_NODES]
    return statistics.median(seconds / shape_for(n).depth for n, seconds in sizes) / costs.verify[0]


def contenders(
    model: Path, names: Sequence[str], calls: int, step: float | None = None, tokens: int = LONGEST_PROMPT
) -> list[Contender]:
    """calls: most replies at a time, of so many tokens. step: of the head, as a part of a plain forward; None: as it is
    here.
    """
    room = calls * (tokens + MAX_TOKENS) + SPARE_CONTEXTS * 2048
    target = load_target_for(EngineConfig(model=str(model), threads=1, pool_tokens=len(names) * room))

    def config(name: str) -> EngineConfig:
        base = {"model": str(model), "drafter": f"suffix+eagle3:{model}/eagle3", "threads": 1, "pool_tokens": room}
        settings = {key: str(value).replace("{model}", str(model)) for key, value in WAYS[name].items()}
        return EngineConfig(**{**base, **settings})  # type: ignore[arg-type]

    if step is None:
        return [
            Contender(name, measured_engine(target, load_proposer(config(name), target), config(name)))
            for name in names
        ]
    ours = config(OURS)
    head = step / head_step(measured_engine(target, load_proposer(ours, target), ours))
    return [Contender(name, _engine(target, config(name), head), head) for name in names]


def _engine(target: Decoder, config: EngineConfig, head: float) -> Engine:
    """One that takes the head's time for ``head`` times what it is."""
    proposer = load_proposer(config, target)
    cheaper = cheaper_ways(proposer)
    names = [way.name for way in (proposer, *cheaper)]
    pace = HeadPace(measure_costs(target, [proposer, *cheaper]), names, head)
    policy = choose_policy(config, pace, names)
    return Engine(target, proposer, policy, coupled=config.couples, cheaper=cheaper, pace=pace)


def run(contender: Contender, replies: Replies, calls: int, seconds: float) -> Found:
    """``calls`` replies at a time for so long, or until more than ``PATIENCE`` times that is over with what does not
    count.
    """
    while len(contender.going) < calls:
        _begin(contender, replies)
    for number in list(contender.going)[calls:]:
        contender.engine.close(contender.going.pop(number).session)
    modes, texts = Counter[str](), dict[str, str]()
    spent, tokens, ends = 0.0, 0, time.perf_counter() + PATIENCE * seconds
    while spent < seconds and (not tokens or time.perf_counter() < ends):
        more, gained = _step(contender, modes)
        spent, tokens = spent + more, tokens + gained
        for number, turn in list(contender.going.items()):
            if turn.finish is not None:
                texts[str(number)] = hashlib.sha256(repr(turn.tokens).encode()).hexdigest()[:16]
                contender.engine.close(contender.going.pop(number).session)
                _begin(contender, replies)
    return Found(contender.name, calls, tokens / spent, dict(modes), texts)


def stop(contender: Contender) -> None:
    for turn in contender.going.values():
        contender.engine.close(turn.session)
    contender.going.clear()


def _begin(contender: Contender, replies: Replies) -> None:
    contender.going[contender.begun] = replies.begin(contender.engine, contender.begun)
    contender.begun += 1


def _step(contender: Contender, modes: Counter[str]) -> tuple[float, int]:
    """(seconds that count, tokens) of one step of all."""
    engine, turns = contender.engine, list(contender.going.values())
    plan, before = [Work(turn.session) for turn in turns], [turn.stats.draft_seconds for turn in turns]
    started = time.perf_counter()
    steps = engine.step(plan)
    seconds = time.perf_counter() - started
    for turn, drafted in zip(turns, before, strict=True):
        choice = turn.choice
        way = PLAIN if choice is None else engine.drafting.ways[choice.way].name
        modes[way if choice is not None and choice.drafts else PLAIN] += 1
        if HEAD in way:
            seconds += (contender.head - 1.0) * (turn.stats.draft_seconds - drafted)
    return seconds, sum(len(step.tokens) for step in steps)


def differing(found: Sequence[Found]) -> tuple[int, int]:
    """(replies that were made more than once and said differently, replies that were made more than once)."""
    said: dict[str, list[str]] = {}
    for one in found:
        for number, text in one.texts.items():
            said.setdefault(number, []).append(text)
    several = [texts for texts in said.values() if len(texts) > 1]
    return sum(len(set(texts)) > 1 for texts in several), len(several)
