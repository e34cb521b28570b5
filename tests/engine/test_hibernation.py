"""Ten times more calls than the pool holds: nobody hears of it, and who gives way is who is wanted least."""

from __future__ import annotations

import multiprocessing
import random
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import pytest
import torch

from engine import records, worker
from engine.arrival import ArrivalScheduler
from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import OutOfPages
from engine.hibernation import Hibernation
from engine.host import EngineHost
from engine.load import load_proposer, load_target_for, reader_of
from engine.policy import FixedPolicy
from engine.proposers.eagle3 import load_eagle3
from engine.sampling import Sampling
from engine.schedule import DeadlineScheduler
from tests.engine.embedded import HEAD, MODEL, codec, grammars
from tests.engine.equal import held_out

CALLS, TURNS, TOKENS = 24, 2, 8
POOL_TOKENS = 320
SAMPLINGS = (Sampling(), Sampling(0.8, top_p=0.95))


def made(pool_tokens: int, host_bytes: int | None, idle_s: float = 0.0) -> EngineHost:
    """The embedded model with its drafters, in float64: there no decision is so close that rounding would make it.
    host_bytes: None hibernates nobody.
    """
    config = EngineConfig(str(MODEL), f"suffix+eagle3:{HEAD}", dtype="float64", pool_tokens=pool_tokens)
    target = load_target_for(config)
    engine = Engine(target, load_proposer(config, target), FixedPolicy(8), coupled=config.couples)
    hibernation = None if host_bytes is None else Hibernation(engine, host_bytes, idle_s=idle_s)
    reader = partial(reader_of, codec())
    return EngineHost(engine, DeadlineScheduler(64), reader, grammars(), hibernation=hibernation)


@dataclass
class Caller:
    """One call's commands, one after the other, and what comes of them."""

    name: str
    sampling: Sampling
    turns: list[tuple[int, ...]]
    log: list[int] = field(default_factory=list)
    turn: int = 0
    said: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    asides: list[tuple[int, ...]] = field(default_factory=list)
    ended: bool = True
    errors: list[records.Event] = field(default_factory=list)
    _text: str = ""
    _tokens: tuple[int, ...] = ()
    _aside: tuple[int, ...] = ()

    def open(self, host: EngineHost) -> None:
        self.log, first = list(self.turns[0][:-8]), self.turns[0][-8:]
        self.turns[0] = first
        self.hear_all(host.handle(records.Open(self.name, tuple(self.log), seed=int(self.name[1:]))))

    def announce(self, host: EngineHost, part: int) -> None:
        """The caller begins to speak, and some of the turn is heard."""
        self.hear_all(host.handle(records.Wake(self.name)))
        heard = self.turns[self.turn][:part]
        self.hear_all(host.handle(records.Sync(self.name, len(self.log), heard, ahead=len(heard))))

    def ask(self, host: EngineHost) -> None:
        tokens = self.turns[self.turn]
        self.ended, self._text, self._tokens = False, "", ()
        command = records.Submit(self.name, self.turn, len(self.log), tokens, self.sampling, TOKENS)
        self.log += tokens
        self.hear_all(host.handle(command))

    def ask_aside(self, host: EngineHost) -> None:
        """A side question of a fork."""
        child = f"{self.name}/aside"
        self._aside = ()
        self.hear_all(host.handle(records.Fork(self.name, child)))
        ask = records.Submit(child, 1, len(self.log), (9, 10), self.sampling, 4, request=7, aside=True)
        self.hear_all(host.handle(ask))

    def hear_all(self, events: Iterable[records.Event]) -> None:
        for event in events:
            self.hear(event)

    def hear(self, event: records.Event) -> None:
        match event:
            case records.Progress() if event.session == self.name:
                self._text += event.text
                self._tokens += event.tokens
            case records.Progress():
                self._aside += event.tokens
            case records.Ended(finish="length") if event.session == self.name:
                self.said.append((self._text, self._tokens))
                self.log += self._tokens
                self.turn += 1
                self.ended = True
            case records.Ended(finish="length"):
                self.asides.append(self._aside)
            case records.Failed() | records.Ended():
                self.errors.append(event)
            case _:
                pass


@cache
def scripts() -> list[tuple[str, Sampling, tuple[tuple[int, ...], ...]]]:
    """What the callers say: a gold call's prompt, then some more of others'."""
    prompts = [tuple(prompt.ids)[-120:] for prompt in held_out(CALLS + 8) if len(prompt.ids) > 120]
    return [
        (f"c{number}", SAMPLINGS[number % 2], (prompts[number], prompts[number + 1][-12:])) for number in range(CALLS)
    ]


def callers() -> list[Caller]:
    return [Caller(name, sampling, list(turns)) for name, sampling, turns in scripts()]


def run(host: EngineHost, tell: Callable[[records.Event], None] = lambda event: None, steps: int = 100_000) -> None:
    while host.busy and steps:
        for event in host.advance():
            tell(event)
        steps -= 1


@cache
def solo() -> list[Caller]:
    """Each call alone, in an engine that holds it and moves nothing."""
    host, done = made(4096, None), callers()
    for caller in done:
        caller.open(host)
        for turn in range(TURNS):
            caller.ask(host)
            run(host, caller.hear)
            if turn == 0:
                caller.ask_aside(host)
                run(host, caller.hear)
                host.handle(records.Close(f"{caller.name}/aside"))
        host.handle(records.Close(caller.name))
    return done


@pytest.mark.parametrize("host_bytes", [0, 6 << 20, 1 << 30], ids=["to the log", "some in host memory", "host memory"])
def test_ten_times_more_calls_than_the_pool_holds_say_what_each_would_alone(host_bytes: int) -> None:
    host, everybody, rng = made(POOL_TOKENS, host_bytes), callers(), random.Random(host_bytes)
    by_name = {caller.name: caller for caller in everybody}

    def tell(event: records.Event) -> None:
        if (name := getattr(event, "session", "").partition("/")[0]) in by_name:
            by_name[name].hear(event)

    for caller in everybody:
        caller.open(host)
        run(host, tell, rng.randrange(12))
    waiting = [caller for caller in everybody for _ in range(TURNS)]
    rng.shuffle(waiting)
    for caller in waiting:
        run(host, tell, rng.randrange(40))
        while not caller.ended:
            run(host, tell, 1)
        if rng.random() < 0.7:
            caller.announce(host, rng.randrange(1, 8))
            run(host, tell, rng.randrange(30))
        caller.ask(host)
        if caller.turn == 0:
            run(host, tell)
            caller.ask_aside(host)
            run(host, tell)
            host.handle(records.Close(f"{caller.name}/aside"))
    run(host, tell)
    beat = host.beat()
    total = sum(len(caller.log) for caller in everybody)
    assert total > 10 * POOL_TOKENS and beat.sessions == CALLS
    for caller, alone in zip(everybody, solo(), strict=True):
        assert caller.errors == [] and caller.said == alone.said and caller.asides == alone.asides, caller.name
        assert len(caller.said) == TURNS
    assert beat.host_bytes <= host_bytes
    assert bool(beat.dropped) == bool(beat.woken_from_log) == (host_bytes < 1 << 30)
    assert bool(beat.hibernated) == bool(beat.woken_from_host) == (host_bytes > 0)
    for caller in everybody:
        host.handle(records.Close(caller.name))
    beat = host.beat()
    assert beat.pages_in_use == beat.sessions == beat.host_bytes == 0


def test_the_two_ways_of_sampling_and_the_drafters_have_a_part_in_it() -> None:
    assert {caller.sampling.greedy for caller in solo()} == {True, False}
    assert any(len(set(tokens)) > 3 for caller in solo() for _, tokens in caller.said)


PROMPT = tuple(5 + at % 1900 for at in range(200))


def small(host_bytes: int = 1 << 30, pool_tokens: int = 600) -> EngineHost:
    """Room for two calls of 200 tokens, and a little."""
    return made(pool_tokens, host_bytes)


def submit(name: str, tokens: int = 4, prompt: tuple[int, ...] = PROMPT) -> records.Submit:
    return records.Submit(name, 1, 0, prompt, Sampling(), tokens)


def prefilled(host: EngineHost, *names: str) -> None:
    for name in names:
        host.handle(records.Open(name, PROMPT))
        run(host)


def reply(host: EngineHost, name: str) -> records.Ended:
    found: list[records.Event] = host.handle(submit(name))
    run(host, found.append)
    (ended,) = (event for event in found if isinstance(event, records.Ended))
    return ended


def test_a_wake_leaves_the_reply_nothing_to_compute_but_its_last_token() -> None:
    host = small()
    prefilled(host, "a", "b", "c", "d")
    assert host.beat().hibernated > 0 and not host.engine.session("a").resident
    host.handle(records.Wake("a"))
    assert host.engine.session("a").resident and host.beat().woken_from_host == 1
    host.handle(records.Wake("a"))
    assert host.beat().woken_from_host == 1
    assert reply(host, "a").stats.cached_tokens == len(PROMPT) - 1


def test_a_dropped_call_is_prefilled_by_ordinary_work_when_it_is_announced_and_not_before() -> None:
    host = small(host_bytes=0)
    prefilled(host, "a", "b", "c", "d")
    session = host.engine.session("a")
    assert session.cache.length == 0 and not host.busy
    host.handle(records.Wake("a"))
    assert host.busy and host.beat().woken_from_log == 1
    run(host)
    assert session.cache.length == len(PROMPT) - 1
    assert reply(host, "a").stats.cached_tokens == len(PROMPT) - 1


def test_whoever_shared_pages_with_a_call_that_is_dropped_does_not_take_more_of_host_memory_than_there_is() -> None:
    roomy = small()
    assert roomy.hibernation is not None
    budget = (1 << 30) // roomy.hibernation.host_pages * 3 // 2  # of one page of each pool, and not of two
    host = small(host_bytes=budget)
    prefilled(host, "a")
    host.handle(records.Fork("a", "b"))  # each has a last page of its own, and shares the others
    prefilled(host, "c", "d")
    beat = host.beat()
    assert beat.hibernated and beat.dropped and beat.host_bytes <= budget


def test_who_was_asked_for_something_last_stays() -> None:
    host = small()
    prefilled(host, "a", "b")
    host.handle(records.Wake("a"))
    prefilled(host, "c")
    resident = {name for name in "abc" if host.engine.session(name).resident}
    assert "c" in resident and "b" not in resident


def test_nobody_moves_while_there_is_room() -> None:
    host = small(pool_tokens=2400)
    prefilled(host, "a", "b", "c", "d")
    assert host.beat().hibernated == 0 and all(session.resident for session in host.engine.sessions.values())


def test_who_has_just_been_asked_for_something_moves_for_somebody_and_not_for_room_to_spare() -> None:
    host = made(600, 1 << 30, idle_s=3600.0)
    prefilled(host, "a", "b")
    pool = host.engine.target.new_cache().pool
    assert pool.free_pages < pool.num_pages // 2 and host.beat().hibernated == 0
    prefilled(host, "c")
    assert host.beat().hibernated == 1 and not host.engine.session("a").resident


def test_prefill_that_nobody_waits_for_gives_way_to_a_reply() -> None:
    host = small()
    host.handle(records.Open("hears", tuple(5 + at % 1900 for at in range(560))))
    run(host, steps=8)
    assert host.engine.session("hears").num_pending > 1
    host.handle(records.Open("asks"))
    assert reply(host, "asks").finish == "length"
    run(host)
    assert host.engine.session("hears").num_pending == 1


def speaking(host: EngineHost, *names: str, prompt: int = 40) -> None:
    """Replies that have begun, and will go on for long."""
    for name in names:
        host.handle(records.Open(name))
        host.handle(submit(name, 200, PROMPT[:prompt]))
    while any(not host.engine.session(name).turn.num_tokens for name in names):
        host.advance()


def test_what_is_heard_is_read_although_pages_are_short_and_others_speak() -> None:
    """First in pages that it has already, then in those of a call that is idle."""
    host = small()
    host.scheduler = ArrivalScheduler(64)
    prefilled(host, "idle")
    host.handle(records.Open("hears", PROMPT[:35]))
    run(host)
    speaking(host, "one", "two", prompt=100)
    session, pool = host.engine.session("hears"), host.engine.target.new_cache().pool
    assert pool.free_pages < 8
    for heard in (9, 120):
        host.handle(records.Sync("hears", 35, PROMPT[35 : 35 + heard], ahead=heard))
        run(host, steps=6)
        assert session.num_pending == 1 and len(session.tokens) == 35 + heard
    assert not host.engine.session("idle").resident
    assert all(host.engine.session(name).turn is not None for name in ("one", "two"))


def test_what_finds_no_page_beside_replies_is_tried_again_when_one_of_them_is_over() -> None:
    host = small()
    host.scheduler = ArrivalScheduler(64)
    speaking(host, "one", "two", prompt=200)
    host.handle(records.Open("hears", PROMPT))
    session = host.engine.session("hears")
    run(host, steps=6)
    assert session.cache.length == 0 and session.waits_for_pages
    host.handle(records.Cancel("two", 1))
    run(host, steps=6)
    assert session.num_pending == 1 and not host.engine.session("two").resident


@pytest.mark.parametrize("speaks", [False, True])
def test_a_prompt_that_cannot_fit_moves_nobody(speaks: bool) -> None:
    host = small()
    host.scheduler = ArrivalScheduler(64)
    if speaks:
        speaking(host, "speaks", prompt=20)
    host.handle(records.Open("a", PROMPT))
    while host.engine.session("a").num_pending > 1:
        host.advance()
    pages = host.engine.target.new_cache().pool.num_pages
    long = tuple(5 + at % 1900 for at in range(16 * pages + (0 if speaks else 2)))
    before = host.beat().hibernated, host.beat().dropped
    host.handle(records.Open("long", long))
    run(host, steps=6)
    assert host.engine.session("long").cache.length == 0
    assert (host.beat().hibernated, host.beat().dropped) == before and host.engine.session("a").resident
    if not speaks:
        assert finishes(asked(host, submit("long", 2, long))) == {"long": "out_of_pages"}
        assert host.engine.session("a").resident


def asked(host: EngineHost, *commands: records.Command) -> list[records.Event]:
    """All that is said from now on, until there is nothing to do."""
    found = [event for command in commands for event in host.handle(command)]
    run(host, found.append)
    return found


def tokens_of(events: Iterable[records.Event], name: str) -> tuple[int, ...]:
    return tuple(token for e in events if isinstance(e, records.Progress) and e.session == name for token in e.tokens)


def finishes(events: Iterable[records.Event]) -> dict[str, str]:
    return {event.session: event.finish for event in events if isinstance(event, records.Ended)}


@pytest.mark.parametrize("host_bytes", [0, 1 << 30], ids=["to the log", "host memory"])
@pytest.mark.parametrize("made_ahead", [False, True])
def test_a_reply_that_stands_still_gives_its_pages_up_and_goes_on_as_if_it_had_not(
    host_bytes: int, made_ahead: bool
) -> None:
    alone = made(4096, None)
    alone.handle(records.Open("slow"))
    wanted = tokens_of(asked(alone, submit("slow", 40)), "slow")
    host = small(host_bytes)
    host.handle(records.Open("slow"))
    events = host.handle(records.Submit("slow", 1, 0, PROMPT, Sampling(), 40, hold=5 if made_ahead else None))
    while len(tokens_of(events, "slow")) < 5:
        events += host.advance()
    if not made_ahead:
        host.handle(records.Hold("slow", 1))
    for name in ("one", "two"):
        host.handle(records.Open(name))
    events += asked(host, submit("one", 60), submit("two", 60))
    assert not host.engine.session("slow").resident or host.engine.session("slow").cache.length == 0
    events += asked(host, records.Release("slow", 1))
    assert finishes(events) == dict.fromkeys(("slow", "one", "two"), "length")
    assert tokens_of(events, "slow") == wanted


@pytest.mark.parametrize("host_bytes", [0, 1 << 30], ids=["to the log", "host memory"])
@pytest.mark.parametrize("how", [{"aside": True}, {"hold": 60}], ids=["aside", "made ahead"])
def test_what_no_caller_waits_for_gives_way_to_a_reply_and_comes_to_its_end(
    host_bytes: int, how: dict[str, Any]
) -> None:
    alone = made(4096, None)
    alone.handle(records.Open("aside"))
    wanted = tokens_of(asked(alone, submit("aside", 50)), "aside")
    host = small(host_bytes)
    for name in ("aside", "asks"):
        host.handle(records.Open(name))
    events = host.handle(records.Submit("aside", 1, 0, PROMPT, Sampling(), 50, **how))
    while len(tokens_of(events, "aside")) < 5:
        events += host.advance()
    long = tuple(5 + at % 1900 for at in range(440))
    events += asked(host, submit("asks", 12, long))
    assert finishes(events) == {"asks": "length", "aside": "length"}
    assert host.beat().hibernated + host.beat().dropped > 0 and tokens_of(events, "aside") == wanted


@pytest.mark.parametrize("heard", [400, 385])
def test_prefill_under_way_is_not_moved_for_what_nobody_waits_for(heard: int) -> None:
    """Also where the last of it shares a step with a side question, which finds no pages before the next one."""
    host = small()
    host.scheduler = ArrivalScheduler(64)  # whose steps depend on no clock: six are full of what is heard
    host.handle(records.Open("hears", tuple(5 + at % 1900 for at in range(heard))))
    run(host, steps=2)
    session = host.engine.session("hears")
    assert session.num_pending > 1 and session.cache.length > 0
    host.handle(records.Open("aside"))
    events = host.handle(records.Submit("aside", 1, 0, PROMPT, Sampling(), 4, aside=True))
    while session.num_pending > 1:
        events += host.advance()
        assert session.resident and host.beat().hibernated == host.beat().dropped == 0
    run(host, events.append)
    assert finishes(events) == {"aside": "length"} and host.beat().dropped == 0
    assert host.beat().hibernated == 1 and not session.resident, "once it is read, it is idle"


@pytest.mark.parametrize(("ahead", "aside"), [(60, 560), (150, 460), (300, 320), (100, 530)])
def test_a_side_question_has_the_pages_of_a_reply_that_stands_still(ahead: int, aside: int) -> None:
    """Which was made ahead while there were none."""
    host = small()
    host.scheduler = ArrivalScheduler(64)
    events: list[records.Event] = []
    for name, tokens, how in (("ahead", ahead, {"hold": 8}), ("aside", aside, {"aside": True})):
        host.handle(records.Open(name))
        prompt = tuple(5 + at % 1900 for at in range(tokens))
        events += host.handle(records.Submit(name, 1, 0, prompt, Sampling(), 12, **how))
    run(host, events.append)
    assert finishes(events) == {"aside": "length"}


def test_calls_that_fell_quiet_move_though_nobody_asks_for_anything_any_more() -> None:
    """A process that waits for the next command knows when they have been idle for long enough."""
    ours, its = multiprocessing.Pipe()
    process = threading.Thread(target=worker.serve, args=(made(600, 1 << 30, idle_s=1.0), its))
    process.start()
    for name, tokens in (("a", 200), ("b", 200), ("c", 150)):  # for which there is room, and then not much more
        ours.send(records.Open(name, PROMPT[:tokens]))
    hibernated = 0
    while not hibernated and ours.poll(20.0):
        event = ours.recv()
        hibernated = event.hibernated if isinstance(event, records.Beat) else 0
    ours.send(records.Shutdown())
    process.join()
    assert hibernated


def test_only_where_nobody_can_be_moved_does_a_reply_run_out_of_pages() -> None:
    host = small()
    prefilled(host, "idle")
    found: list[records.Event] = []
    for name in ("one", "two"):
        host.handle(records.Open(name))
        found += host.handle(submit(name, tokens=300))
    run(host, found.append)
    finishes = [event.finish for event in found if isinstance(event, records.Ended)]
    assert finishes == ["out_of_pages", "length"]
    assert not host.engine.session("idle").resident


def test_drafters_run_out_of_pages_apart_from_the_target() -> None:
    """With room for one call's keys in the drafter's pool, the newest call is still drafted for."""
    target = load_target_for(EngineConfig(str(MODEL), dtype="float64", pool_tokens=4096))
    engine = Engine(target, load_eagle3(HEAD, target, pool_tokens=320), FixedPolicy(8))
    hibernation = Hibernation(engine, 1 << 30, idle_s=0.0)
    host = EngineHost(engine, DeadlineScheduler(256), partial(reader_of, codec()), grammars(), hibernation=hibernation)
    for name in "abc":
        prefilled(host, name)
        assert reply(host, name).stats.drafted > 0
    assert host.beat().hibernated > 0
    assert target.pool.free_pages > target.pool.num_pages // 2


def test_memory_that_is_out_all_the_same_is_told_once_and_harms_nobody() -> None:
    host = small()
    prefilled(host, "a", "b")
    with pytest.raises(OutOfPages), torch.inference_mode():
        host.engine.session("a").cache.reserve(1000)
    assert reply(host, "b").finish == "length"


def test_calls_that_come_and_go_leave_nothing_behind() -> None:
    """Each opened on a pool that is full of others, half of them asked for a reply, a third closed in the middle."""
    host = made(320, 1 << 20)
    for number in range(80):
        name, prompt = f"c{number}", tuple(5 + (31 * number + at) % 1900 for at in range(40))
        host.handle(records.Open(name, prompt, number))
        run(host, steps=number % 5)
        if number % 2:
            host.handle(records.Submit(name, 1, 40, (), Sampling(), 2, hold=1 if number % 4 == 1 else None))
            run(host, steps=number % 7)
        if number >= 10:
            host.handle(records.Close(f"c{number - 10}"))
    assert host.beat().dropped > 0
    for number in range(70, 80):
        host.handle(records.Close(f"c{number}"))
    run(host)
    assert host.beat().sessions == host.beat().pages_in_use == host.beat().host_bytes == 0
    for owner in (host, host.hibernation, host.scheduler):
        left = {name: kept for name, kept in vars(owner).items() if isinstance(kept, dict | set) and kept}
        assert left == {}, owner
