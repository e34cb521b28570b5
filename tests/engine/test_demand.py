"""How much of its time an engine needs for speech, by what a real one is asked for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine import arrival, demand, records, schedule
from engine.arrival import ArrivalScheduler
from engine.config import EngineConfig
from engine.demand import Demand
from engine.engine import Engine
from engine.host import EngineHost
from engine.load import load_target_for
from engine.pace import Pace, StepCosts
from engine.policy import FixedPolicy
from engine.proposers.none import NoProposer
from engine.sampling import Sampling
from engine.schedule import DeadlineScheduler
from engine.text.reply import ReplyReader
from tests.engine.clocks import Clock
from tests.engine.embedded import MODEL, codec, grammars

PROMPT = tuple(range(5, 40))
TOKENS = 20
RATE = 4.0
COSTS = StepCosts((1, 64), (0.010, 0.073), ((0.0, 0.0),))
"""A millisecond for each node."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (arrival, demand, schedule):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture(scope="module")
def engine() -> Engine:
    target = load_target_for(EngineConfig(str(MODEL), pool_tokens=4096))
    return Engine(target, NoProposer(), FixedPolicy(1), pace=Pace(COSTS))


@pytest.fixture(params=[DeadlineScheduler, ArrivalScheduler])
def host(engine: Engine, clock: Clock, request: pytest.FixtureRequest) -> Iterator[EngineHost]:
    scheduler = request.param(8, RATE)
    yield EngineHost(engine, scheduler, lambda command: ReplyReader(codec(), command.stop_strings), grammars())
    for session in list(engine.sessions.values()):
        engine.close(session)


def submit(session: str, **fields: object) -> records.Submit:
    return records.Submit(session, 1, 0, PROMPT, Sampling(), max_tokens=TOKENS, **fields)  # type: ignore[arg-type]


def run(host: EngineHost) -> None:
    while host.busy:
        host.advance()


def settled(host: EngineHost, clock: Clock) -> records.Beat:
    """What is said when all has long been as it is."""
    clock.now += 100 * demand.SMOOTHED_S
    return host.beat()


def needed(host: EngineHost, voices: int, rate: float = RATE) -> float:
    return rate * host.engine.pace.forward(voices, voices)


def test_it_is_what_steps_with_all_who_are_waited_for_take(host: EngineHost, clock: Clock) -> None:
    assert settled(host, clock).speech_load == 0.0
    for voices in range(1, 6):
        host.handle(records.Open(f"call {voices}", seed=1))
        host.handle(submit(f"call {voices}", speaking_rate=RATE))
        beat = settled(host, clock)
        assert beat.speech_load == pytest.approx(needed(host, voices))
        assert beat.voice_load == pytest.approx(needed(host, voices + demand.FEW) / (voices + demand.FEW))
    run(host)
    assert settled(host, clock).speech_load == pytest.approx(0.0)  # all was spoken long ago


def test_a_reply_that_is_made_is_a_voice_until_it_is_spoken(host: EngineHost, clock: Clock) -> None:
    host.handle(records.Open("call", seed=1))
    host.handle(submit("call"))
    run(host)  # in no time
    voices, rate = host.scheduler.voices(())
    assert (voices, rate) == (1, RATE)
    clock.now += TOKENS / RATE + 1.0
    assert host.scheduler.voices(()) == (0, RATE)
    host.handle(submit("call"))
    run(host)
    host.handle(records.Close("call"))
    assert host.scheduler.voices(()) == (0, RATE)


def test_what_nobody_listens_to_is_no_voice(host: EngineHost, clock: Clock) -> None:
    for name in ("ahead", "aside", "held"):
        host.handle(records.Open(name, seed=1))
    host.handle(submit("ahead", hold=TOKENS, ahead=len(PROMPT)))
    host.handle(submit("aside", aside=True))
    host.handle(submit("held"))
    host.handle(records.Hold("held", 1))
    assert settled(host, clock).speech_load == 0.0
    host.handle(records.Release("ahead", 1))
    host.handle(records.Release("held", 1))
    assert settled(host, clock).speech_load == pytest.approx(needed(host, 2))
    run(host)


def test_calls_that_have_not_spoken_are_counted_until_they_do_or_seem_never_to(host: EngineHost, clock: Clock) -> None:
    for name in ("one", "two", "three"):
        host.handle(records.Open(name, PROMPT, seed=1))
        clock.now += 1.0
    run(host)
    assert host.beat().silent == 3
    host.handle(submit("one"))
    host.handle(records.Fork("one", "aside"))
    assert host.beat().silent == 2
    host.handle(records.Close("two"))
    assert host.beat().silent == 1
    clock.now += demand.SILENT_S
    assert host.beat().silent == 0
    host.handle(records.Open("four", PROMPT))
    assert host.beat().silent == 1
    run(host)


def test_voices_that_speak_faster_need_more(clock: Clock) -> None:
    scheduler = DeadlineScheduler(8, RATE)
    for name, rate in (("slow", RATE), ("fast", 2 * RATE), ("unknown", 0.0)):
        scheduler.expect(name, 0.0, rate=rate)
    voices, rate = scheduler.voices({"slow", "fast", "unknown"})
    assert voices == 3 and rate == pytest.approx(4 / 3 * RATE)
    load = Demand(Pace(COSTS))
    clock.now += 100.0
    assert load.load(voices, rate) == pytest.approx(4 * RATE * (0.009 + 3 * 0.001) / 3)


def test_it_follows_within_seconds_however_often_it_is_asked(clock: Clock) -> None:
    for asked_every in (0.01, 1.0, 5.0):
        load, said = Demand(Pace(COSTS)), 0.0
        for _ in range(round(demand.SMOOTHED_S / asked_every)):
            clock.now += asked_every
            before, said = said, load.load(30, RATE)
            assert before < said
        assert said == pytest.approx((1 - 1 / 2.718281828) * RATE * 0.039)


def test_slower_steps_are_noticed() -> None:
    pace = Pace(COSTS)
    load = Demand(pace)
    before = load.one_more(0, RATE)
    for _ in range(50):
        pace.observe(8, 8, 10 * COSTS.verify_seconds(8))
    assert load.one_more(0, RATE) == pytest.approx(10 * before, rel=0.1)
