"""The accounting of the load generator, against hand-worked examples and slow obvious versions; tiny real runs."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
import time
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import harness
from bench.load import claims, local, long_prompt, page, population, remote, scripts, step_up, sweep
from bench.load.accounts import Run, Spoken, figures
from bench.load.caller import ALONE, Caller, Manner
from bench.load.contenders import CONTENDERS, TREES, environment
from bench.load.engine_steps import EngineStep
from bench.load.figures import Percentiles, Sweep, differing, faster, knee, meets
from bench.load.figures import figures as figures_of
from bench.load.lines import Account, Asked, Over, Refused, Text
from bench.load.loopback import LoopbackClient
from bench.load.playback import Gap, Playback, Said
from bench.load.population import Population
from bench.load.scripts import Script
from bench.load.service_line import items_of, service_line
from bench.load.steps import Step, StepLog
from engine import records
from engine.config import EngineConfig
from engine.prefixes import LEAST_TOKENS
from engine.text.common import common_length
from evals.calls import Heard, Kind, RecordedCall, read
from firstword import CallFailed, Client, wire
from service.admission import Admission
from service.client_events import Open
from service.config import AdmissionConfig, ServerConfig, load_config
from service.conversation import Conversation
from service.items import ToolDefinition
from service.servicer import CallServicer
from service.wire import opening
from tests.bench.calling import CALL, FAST, TURN, a_run
from tests.engine.embedded import MODEL
from tests.service.calls import chat

# The clock of what is spoken


def test_a_gap_is_what_is_silent_between_two_clauses():
    spoken = Playback(rate=2)
    spoken.clause(10.0, 4)
    assert spoken.ends_at == 12.0 and spoken.when(3) == 11.5 and spoken.when(5) is None
    spoken.clause(11.0, 5)  # in time
    spoken.clause(13.5, 9)  # a second late
    assert spoken.gaps == [Gap(12.5, 1.0)] and spoken.ends_at == 15.5
    assert [spoken.spoken_seconds(now) for now in (13.5, 14.5, 20.0)] == [2.5, 3.5, 4.5]


def test_nothing_is_owed_while_a_tool_works_nor_until_its_answer_is_spoken():
    spoken = Playback(rate=2)
    spoken.clause(0.0, 2)
    spoken.asked_tool(3.0)  # two seconds after the last word
    spoken.clause(9.0, 4)
    spoken.clause(10.5, 6)
    assert spoken.gaps == [Gap(1.0, 2.0), Gap(10.0, 0.5)]


def test_what_is_cut_is_not_spoken_and_owes_nothing():
    spoken = Playback(rate=2)
    spoken.clause(0.0, 8)
    spoken.cut(1.5)
    spoken.clause(9.0, 12)
    spoken.broke_off(20.0)
    assert spoken.gaps == [] and spoken.spoken_seconds(30.0) == 1.5


def test_a_reply_that_breaks_off_is_silent_until_nobody_waits():
    spoken = Playback(rate=2)
    spoken.broke_off(1.0)  # before its first clause: that is latency, not silence within a reply
    assert spoken.gaps == []
    spoken = Playback(rate=2)
    spoken.clause(0.0, 2)
    spoken.broke_off(4.0)
    spoken.broke_off(5.0)
    assert spoken.gaps == [Gap(1.0, 3.0)]


TICKS = 4
"""Of a token that is spoken."""


def slow_playback(events: list[tuple[int, str, int]], until: int) -> tuple[list[tuple[int, int]], int]:
    """(gaps as (begin, ticks), ticks of speech) of a reply that breaks off at ``until``, one tick after the other."""
    there = said = 0
    owed = True
    silent: list[int] = []
    gaps: list[int] = []
    for tick in range(until + 1):
        for _, kind, tokens in (event for event in events if event[0] == tick):
            if kind == "tool":
                owed = False
            elif tokens * TICKS > there:
                there, owed = tokens * TICKS, True
                gaps += silent
                silent = []
        if tick == until:
            break
        if said < there:
            said += 1
        elif there and owed:
            silent.append(tick)
    gaps += silent
    runs: list[tuple[int, int]] = []
    for tick in gaps:
        if runs and sum(runs[-1]) == tick:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((tick, 1))
    return runs, said


@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.sampled_from(["clause", "clause", "tool"]), st.integers(1, 5)), max_size=8
    ),
    st.integers(0, 30),
)
def test_playback_is_what_a_tick_by_tick_clock_says(drawn, rest):
    at = tokens = 0
    events = []
    for wait, kind, more in drawn:
        at += wait
        tokens += more if kind == "clause" else 0
        events.append((at, kind, tokens))
    until = at + rest
    spoken = Playback(rate=1 / TICKS)
    for moment, kind, count in events:
        if kind == "clause":
            spoken.clause(moment, count)
        else:
            spoken.asked_tool(moment)
    spoken.broke_off(until)
    gaps, speech = slow_playback(events, until)
    merged: list[tuple[int, int]] = []
    for gap in spoken.gaps:
        if merged and sum(merged[-1]) == gap.at:
            merged[-1] = (merged[-1][0], merged[-1][1] + int(gap.seconds))
        else:
            merged.append((int(gap.at), int(gap.seconds)))
    assert merged == gaps
    assert spoken.spoken_seconds(until) == speech


def test_tokens_are_spread_over_the_text_behind_them():
    said = Said()
    said.grow(10, 2)
    said.grow(0, 1)  # a token without text belongs to what is before it
    said.grow(5, 5)
    assert (said.length, said.tokens) == (15, 8)
    assert [said.tokens_at(at) for at in (0, 5, 10, 11, 15, 99)] == [0, 1.5, 3, 4, 8, 8]


# A caller on a line that answers as it is told to


class ToldLine:
    """A line whose replies are given: for each final, events with seconds after it was due."""

    def __init__(self, replies, block_s: float = 0.0) -> None:
        self.replies = list(replies)
        self.block_s = block_s
        self.sent: list[tuple[str, object]] = []
        self.errors: list[str] = []

    async def speech_started(self) -> None:
        time.sleep(self.block_s)  # noqa: ASYNC251 the load generator itself stands still

    async def hear(self, heard: Heard) -> None:
        self.sent.append(("heard", heard))

    async def final(self, text: str):
        self.sent.append(("final", text))
        reply: asyncio.Queue = asyncio.Queue()
        now = time.perf_counter()
        for event in self.replies.pop(0):
            reply.put_nowait(dataclasses.replace(event, at=now + event.at))
        return reply

    async def interrupt(self, code_points: int) -> None:
        self.sent.append(("interrupt", code_points))

    async def tool_result(self, asked: Asked, output: str) -> None:
        self.sent.append(("result", output))


class Uncut(Script):
    """A caller who never interrupts."""

    def cut(self, turn: int) -> int | None:
        return None


REPLY = [Text(0.0, "Yes. Go", 4, ()), Text(0.0, " on.", 2, (4,)), Over(0.0, Account(tokens=6))]


UNCUT = Uncut(CALL, 7)


def converse(line: ToldLine, script: Script = UNCUT, manner: Manner = FAST) -> tuple[float, list[Spoken]]:
    """(when the caller began, the turns)."""

    async def run() -> tuple[float, list[Spoken]]:
        turns: list[Spoken] = []
        began = time.perf_counter() + 0.01
        await Caller(line, script, manner, turns.append).converse(began)
        return began, turns

    return asyncio.run(run())


def test_a_turn_counts_from_when_its_final_was_due_though_it_was_sent_late():
    began, (first, second) = converse(ToldLine([REPLY, REPLY], block_s=0.1))
    assert first.due == pytest.approx(began + 0.4 / 20, abs=1e-6)  # not moved by the tenth of a second that was lost
    assert first.sent_at is not None and first.first_clause is not None
    found = figures(first, began, second.due)
    assert found.sent_late_s == first.sent_at - first.due > 0.05
    assert found.first_clause_s == first.first_clause - first.due > found.sent_late_s * 0.99


def test_the_next_turn_follows_the_clock_of_what_was_said():
    script = Uncut(CALL, 7)
    _, (first, second) = converse(ToldLine([REPLY, REPLY], block_s=0.05), script)
    assert first.first_clause is not None
    heard = first.first_clause + 6 / (FAST.rate * FAST.speed)
    assert first.playback.ends_at == pytest.approx(heard, abs=1e-6)
    assert second.due == pytest.approx(heard + (script.pause_s(0) + 0.2) / FAST.speed, abs=1e-6)


def test_a_tool_is_waited_for_and_what_comes_after_it_counts_from_its_result():
    reply = [Asked(0.0, "look", "{}", None), Text(0.2, "There.", 3, (6,)), Over(0.2)]
    line, script = ToldLine([reply, REPLY]), Uncut(CALL, 7)
    _, (first, _) = converse(line, script)
    assert ("result", "found") in line.sent
    assert first.first_tool is not None and first.first_clause is not None and first.first_clause > first.first_tool
    due = first.first_tool + script.tool_s(0, 0) / FAST.speed
    assert first.after_tools == [pytest.approx(first.first_clause - due)] and first.playback.gaps == []
    assert figures(first, 0.0, first.due + 9).begins_with_tool


class Cutting(Script):
    def cut(self, turn: int) -> int | None:
        return 5 if turn == 0 else None


@pytest.mark.parametrize("lets_finish", [True, False])
def test_a_caller_speaks_over_the_reply_where_the_script_says(lets_finish):
    made = [Text(0.0, "Yes. Go on then.", 8, (16,)), *([Over(0.0)] if lets_finish else [])]
    line, script = ToldLine([made, REPLY]), Cutting(CALL, 7)
    _, (first, second) = converse(line, script, dataclasses.replace(FAST, lets_finish=lets_finish))
    assert [event for event in line.sent if event[0] != "heard"][1] == ("interrupt", 5)
    assert first.interrupted and not first.playback.gaps
    assert first.comparable is lets_finish and second.comparable is lets_finish
    at = first.first_clause + 8 * 5 / 16 / (FAST.rate * FAST.speed)
    assert second.due == pytest.approx(at + (script.pause_s(0) + 0.2) / FAST.speed, abs=1e-6)


def test_a_caller_who_hears_nothing_hangs_up_and_is_counted_with_the_time_they_waited():
    began, (only,) = converse(ToldLine([[]]), manner=dataclasses.replace(FAST, give_up_s=0.1))
    assert only.error == "gave up" and not only.answered
    assert only.gave_up is not None and only.gave_up - only.due >= 0.1
    found = figures(only, began, only.due + 0.05)  # the window was over before
    assert found.waited_s == only.gave_up - only.due and found.first_clause_s is None
    run = Run("c", "records", 1, None, 0, 3.0, 1.0, 0.0, 0, [], [found], "here")
    assert figures_of([run]).first_clause.p95 == pytest.approx(1e3 * found.waited_s)


def test_a_turn_that_falls_due_in_the_last_moment_and_is_never_answered_counts_with_all_that_was_waited(monkeypatch):
    monkeypatch.setattr(population, "DRAIN_S", 0.4)

    async def run() -> tuple[Population, population.Window]:
        callers = Population(StuckDriver(), [CALL], FAST)
        now = time.perf_counter()
        callers._start(callers._arrive(Script(CALL, 7), now + 0.03))  # their final is due 0.02 s later
        return callers, await callers.measure(now, 0.1)

    callers, window = asyncio.run(run())
    (turn,) = callers.turns
    found = figures(turn, window.began, window.ended)
    assert window.ended - turn.due < 0.1 and found.waited_s is not None and found.waited_s > 0.35


def test_a_backend_passes_on_what_the_manner_says():
    line = ToldLine([REPLY, REPLY])
    converse(line, manner=dataclasses.replace(FAST, sends=frozenset({Kind.PARTIAL})))
    assert [event.kind for name, event in line.sent if name == "heard"] == [Kind.PARTIAL, Kind.PARTIAL]


# Callers in numbers


class StuckDriver:
    """Takes calls and never answers any of them. refuses: how many at first are not let in."""

    def __init__(self, refuses: int = 0) -> None:
        self.opened: list[Script] = []
        self.refuses = refuses
        self.taken = asyncio.Event()

    @asynccontextmanager
    async def line(self, script: Script):
        if self.refuses:
            self.refuses -= 1
            raise Refused("TOO_MANY_CALLS", 0.0)
        self.opened.append(script)
        self.taken.set()
        yield ToldLine([[] for _ in script.turns])


def test_who_calls_again_does_so_by_the_clock_however_long_the_last_call_took_to_close(monkeypatch):
    monkeypatch.setattr(population, "REDIAL_S", 0.3)
    closed: list[float] = []

    class Slow(StuckDriver):
        @asynccontextmanager
        async def line(self, script: Script):
            yield ToldLine([REPLY for _ in script.turns])
            closed.append(time.perf_counter())
            time.sleep(0.1)  # noqa: ASYNC251 the load generator itself stands still

    async def run() -> list[Spoken]:
        callers = Population(Slow(), [CALL], FAST)
        callers.fixed(1, time.perf_counter(), 0.0)
        while len(callers.turns) < 3:  # noqa: ASYNC110 a list tells nobody
            await asyncio.sleep(0.01)
        await callers.hang_up()
        return callers.turns

    _, last, first = asyncio.run(run())
    assert last.playback.ends_at is not None
    assert closed[0] >= last.playback.ends_at  # they listen to the end
    assert first.due == pytest.approx(last.playback.ends_at + 0.3 + 0.4 / 20, abs=1e-6)


def test_who_is_sent_away_speaks_when_they_were_told_to_come_back():
    class Full(StuckDriver):
        @asynccontextmanager
        async def line(self, script: Script):
            if not self.refuses:
                yield ToldLine([REPLY for _ in script.turns])
                return
            self.refuses -= 1
            asyncio.get_running_loop().call_later(0.05, time.sleep, 0.2)  # the load generator itself stands still
            raise Refused("TOO_MANY_CALLS", 0.1)

    async def run() -> Population:
        callers = Population(Full(refuses=1), [CALL], FAST)
        callers._start(callers._slot(0, 0.0, time.perf_counter()))
        while not callers.turns:  # noqa: ASYNC110 a list tells nobody
            await asyncio.sleep(0.01)
        await callers.hang_up()
        return callers

    callers = asyncio.run(run())
    assert callers.turns[0].due == pytest.approx(callers.refused[0] + 0.1 + 0.4 / 20, abs=1e-6)


def test_arrivals_wait_for_nobody():
    rate, seconds = 200.0, 0.3

    async def run() -> tuple[StuckDriver, float]:
        driver = StuckDriver()
        callers = Population(driver, [CALL], FAST, seed=3)
        began = time.perf_counter()
        callers.poisson(rate, began, 0.0)
        await asyncio.sleep(seconds)
        await asyncio.sleep(0.01)  # those that are due begin
        await callers.hang_up()
        return driver, time.perf_counter() - began

    driver, took = asyncio.run(run())
    rng = random.Random("arrivals 3")
    moments = list(itertools.accumulate(rng.expovariate(rate) for _ in range(5000)))
    fewest, most = (sum(moment < limit for moment in moments) for limit in (seconds, took))
    arrived = [script for script in driver.opened if script.seed % 1000 == 0]
    assert 30 < fewest <= len(arrived) <= most
    in_progress = rate * population.mean_call_s([CALL], FAST)  # Little's law
    assert len(driver.opened) - len(arrived) == round(in_progress) > 10


def test_who_is_not_let_in_is_counted_and_tries_again():
    async def run() -> Population:
        driver = StuckDriver(refuses=3)
        callers = Population(driver, [CALL], FAST)
        callers.fixed(1, time.perf_counter(), 0.0)
        await driver.taken.wait()
        await callers.hang_up()
        return callers

    assert len(asyncio.run(run()).refused) == 3


class FullDriver:
    """Has room for two calls, and tells the others of six more to come back when nobody looks any more."""

    def __init__(self) -> None:
        self.asked = 0

    @asynccontextmanager
    async def line(self, script: Script):
        self.asked += 1
        if 2 < self.asked <= 8:
            raise Refused("ENGINE_BUSY", 30.0)
        yield ToldLine([REPLY for _ in script.turns])


def test_who_was_sent_away_in_the_warm_up_is_missing_in_the_window():
    """Eight callers of whom two are let in are not a load of eight."""
    point, setting = sweep.Point("records", "ours", sweep.Load(calls=8), 0), sweep.Setting(MODEL, "x", 0.5, 0.2, FAST)
    run = asyncio.run(sweep.loaded(FullDriver(), point, setting, [CALL]))
    assert run.refused == 6 and run.mean_calls <= 2
    assert not meets(figures_of([run]), 1000.0)


def test_a_load_is_met_only_where_its_callers_are_in_a_call():
    there, away = (dataclasses.replace(a_run([TURN], calls=8), mean_calls=mean) for mean in (6.5, 6.3))
    assert meets(figures_of([there]), 100.0) and not meets(figures_of([away]), 100.0)
    at_random = dataclasses.replace(away, calls=None, rate=0.1)  # as many as there happen to be
    assert meets(figures_of([at_random]), 100.0)


def test_a_call_that_does_not_open_is_counted_when_its_first_final_is_due():
    class Closed(StuckDriver):
        @asynccontextmanager
        async def line(self, script: Script):
            await asyncio.get_running_loop().create_future()
            yield

    async def run() -> Population:
        callers = Population(Closed(), [CALL], FAST)
        callers.fixed(3, time.perf_counter() - 60.0, 0.0)
        await callers.measure(time.perf_counter(), 0.05)
        return callers

    assert asyncio.run(run()).errors == [population.NOT_OPEN] * 3


def test_what_breaks_in_a_caller_ends_the_run():
    class Broken(StuckDriver):
        @asynccontextmanager
        async def line(self, script: Script):
            raise ZeroDivisionError
            yield

    async def run() -> None:
        callers = Population(Broken(), [CALL], FAST)
        callers.fixed(2, time.perf_counter(), 0.0)
        await callers.measure(time.perf_counter(), 60.0)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(run())


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 10)), max_size=8), st.integers(0, 15), st.integers(1, 10))
def test_mean_calls_is_the_area_under_them(calls, begin, length):
    async def run() -> float:
        callers = Population(StuckDriver(), [CALL], FAST)
        for at, lasts in calls:
            callers._changes += [(at, 1), (at + lasts, -1)]
        return callers.mean_calls(begin, begin + length)

    open_at = [sum(at <= tick < at + lasts for at, lasts in calls) for tick in range(begin, begin + length)]
    assert asyncio.run(run()) == pytest.approx(sum(open_at) / length)


# Figures


def a_step_up(log: StepLog) -> step_up.StepUp:
    steps = [(step.at, step.tokens, mode) for step, mode in zip(log.steps, log.modes(), strict=True)]
    return step_up.StepUp(2, 1.0, [(0.0, 2)], steps, log.awaited(), [], 0, 0, [], 0)


def test_figures_are_those_of_a_hand_worked_run():
    turns = [dataclasses.replace(TURN, first_clause_s=n / 100) for n in range(101)]
    turns += [dataclasses.replace(TURN, first_clause_s=9.0, first_tool_s=0.5, after_tools_s=[0.25], modes={"e": 4})]
    turns += [dataclasses.replace(TURN, first_clause_s=None, waited_s=4.0, gaps=[[1.0, 0.5], [3.0, 0.65]])]
    found = figures_of([a_run(turns)])
    assert found.first_clause.count == 102 and found.first_clause.p50 == pytest.approx(505.0)
    assert found.tool == Percentiles(500.0, 500.0, 500.0, 1) and found.after_tools.p50 == 250.0
    assert (found.turns, found.unanswered, found.underruns) == (103, 1, 2)
    assert found.underrun_share == pytest.approx(1.15 / 515) and found.tokens_per_second == 103.0
    assert found.modes == pytest.approx({"plain": 102 / 103, "e": 1 / 103})


def test_percentiles_are_interpolated_between_ranks():
    assert Percentiles.of([n / 1000 for n in range(101)]) == Percentiles(*map(pytest.approx, (50, 95, 99)), 101)
    assert Percentiles.of([0.25]) == Percentiles(250.0, 250.0, 250.0, 1)


def test_the_knee_is_the_last_load_before_the_first_that_fails():
    def at(clause_s: float, **other) -> object:
        return figures_of([a_run([dataclasses.replace(TURN, first_clause_s=clause_s, **other)])])

    loads = {1: at(0.1), 4: at(0.29), 8: at(0.31), 16: at(0.1)}
    assert knee(loads, 100.0) == 4 and knee(loads, 10.0) is None
    assert knee({1: at(0.1), 2: at(0.1, gaps=[[0, 0.006]])}, 100.0) == 1
    assert knee({1: at(0.1), 2: at(0.1, error="gave up")}, 100.0) == 1


def test_texts_are_compared_turn_by_turn_where_they_must_agree():
    mine = [dataclasses.replace(TURN, number=n) for n in range(4)]
    theirs = [
        TURN,
        dataclasses.replace(TURN, number=1, said="y"),
        dataclasses.replace(TURN, number=2, comparable=False),
    ]
    assert differing([a_run(mine)], [a_run(theirs)]) == (1, 2)


def test_first_clauses_are_compared_of_turns_that_both_answered_at_their_final():
    mine = [dataclasses.replace(TURN, number=n, first_clause_s=0.1 * (n + 1)) for n in range(5)]
    theirs = [dataclasses.replace(TURN, number=n, first_clause_s=0.3) for n in range(6)]
    theirs[1] = dataclasses.replace(theirs[1], answered_ahead=True)
    mine[2] = dataclasses.replace(mine[2], first_tool_s=0.01)
    theirs[3] = dataclasses.replace(theirs[3], first_clause_s=None, waited_s=2.0)
    assert faster([a_run(mine)], [a_run(theirs, "plain")]) == pytest.approx([3.0, 0.6])
    assert faster([a_run(mine)], [a_run(theirs, "plain", calls=2)]) == []


def test_a_page_is_made_of_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(page.harness, "RESULTS", tmp_path)
    runs = [a_run([TURN] * 3, name, calls) for name in ("one", "plain") for calls in (0, 1, 2)]
    page.write("load", runs, "A note.", show=False)
    text = (tmp_path / "load.md").read_text()
    assert "| one | 200 | 2 | - | 0 of 9 |" in text and text.count("\n| plain | ") == 4
    assert "| one | alone | 3 | 1.00 [1.00, 1.00] |" in text
    assert (tmp_path / "load.svg").stat().st_size > 1000


# What is claimed


def the_sweep(ours: dict[int, float], tree: dict[int, float]) -> Sweep:
    """Calls in progress, and seconds to the first clause under them; alone it takes 0.1 s."""
    loads = [
        (name, n, clause) for name, of in (("ours", ours), (TREES[8], tree)) for n, clause in {0: 0.1, **of}.items()
    ]
    return Sweep([a_run([dataclasses.replace(TURN, first_clause_s=clause)], name, n) for name, n, clause in loads])


GOOD, BAD = 0.2, 0.9


@pytest.mark.parametrize(
    ("ours", "tree", "said"),
    [
        ({8: GOOD, 9: BAD}, {4: GOOD, 5: BAD}, "2.00 times as many; claimed are at least 2 times as many: **met**."),
        ({7: GOOD, 9: BAD}, {4: GOOD, 5: BAD}, "1.75 times as many; claimed are at least 2 times as many: **missed**."),
        ({7: GOOD}, {4: GOOD, 5: BAD}, "**not decided**."),  # ours may carry more than were tried
        ({8: GOOD, 9: BAD}, {4: GOOD}, "**not decided**."),  # the tree may
        ({7: GOOD, 9: BAD}, {4: GOOD}, "**missed**."),
        ({1: BAD}, {4: GOOD, 5: BAD}, "0.00 times as many; claimed are at least 2 times as many: **missed**."),
        ({2: GOOD, 3: BAD}, {1: BAD}, "not even 1; claimed are at least 2 times as many: **met**."),
        ({8: GOOD, 9: BAD}, {8: BAD}, "**not decided**."),  # it may carry 7
        ({1: BAD}, {1: BAD}, "**missed**."),
    ],
)
def test_what_ours_carries_is_told_with_a_verdict(ours, tree, said):
    assert said in page.knees(the_sweep(ours, tree))


def test_nothing_is_claimed_of_calls_of_which_one_side_was_not_run():
    assert "claimed" not in page.knees(Sweep([a_run([TURN], "ours", n) for n in (0, 1)]))


def a_climb(rates: list[float], clause_ms: float = 40.0, **other) -> step_up.StepUp:
    """Tokens a second of its three parts of one second each; first clauses with all calls."""
    steps = [(part + 0.5, int(rate), "plain") for part, rate in enumerate(rates)]
    clauses = [(0.99, 900.0), *[(1.0 + n / 20.0, clause_ms) for n in range(20)], *[(2.0, 900.0)] * 2]
    whole = step_up.StepUp(8, 1.0, [(0.0, 1)], steps, [["plain"]] * 20, clauses, 5, 5, [], 0)
    return dataclasses.replace(whole, **other)


def test_a_step_up_is_told_with_verdicts(tmp_path, monkeypatch):
    monkeypatch.setattr(step_up.harness, "RESULTS", tmp_path)
    to_and_fro = [["plain"], ["eagle3"]] * 10 + [["plain", "eagle3", "plain"]] * 2
    found = {
        "ours": a_climb([10, 38, 10]),
        "plain": a_climb([10, 40, 10]),
        "a": a_climb([10, 37, 10], replies=to_and_fro, same=4),  # below 0.95 of plain
        "b": a_climb([10, 9, 10]),
        "c": a_climb([10, 40, 10], refused=1, replies=to_and_fro[:19], same=0, compared=0),
        "d": a_climb([0, 40, 10]),  # the one has not been answered
        "e": a_climb([10, 40, 10], 61.0),
        "f": a_climb([10, 40, 10], clauses=[(1.5, 40.0)] * 19),
    }
    step_up.write("up", found, "A note.")
    lines = [line for line in (tmp_path / "up.md").read_text().splitlines() if line.startswith("- ")]
    told = {name: [line.split("**")[1] for line in lines if line.startswith(f"- {name}: ")] for name in found}
    assert told == {
        "ours": ["met"] * 3,
        "plain": ["met"] * 3,
        "a": ["missed"] * 3,
        "b": ["missed", "met", "met"],
        "c": ["missed", "not decided", "not decided"],
        "d": ["not decided", "met", "met"],
        "e": ["missed", "met", "met"],
        "f": ["not decided", "met", "met"],
    }


def test_long_prompts_are_told_with_verdicts(tmp_path, monkeypatch):
    monkeypatch.setattr(long_prompt.harness, "RESULTS", tmp_path)
    enough = claims.FEWEST_STEPS
    steps, between = ([10.0] * enough, [15.0] * enough), ([20.0], [90.0])  # a reply may well be left out of some steps
    good = long_prompt.LongPrompt(8, *steps, *between, [0.5], ([40.0], [50.0]), (3, 0), (20.0, 20.0), [], 0)
    worse = dataclasses.replace(good, step_beside=[15.1] * enough, underruns=(0, 1))
    few = dataclasses.replace(good, step_beside=[15.0] * (enough - 1))
    nothing = dataclasses.replace(good, step_apart=[], underruns=(0, 0), speech_s=(20.0, 0.0))
    long_prompt.write("long", {"good": good, "worse": worse, "few": few, "nothing": nothing}, "A note.")
    lines = [line for line in (tmp_path / "long.md").read_text().splitlines() if line.startswith("- ")]
    told = [line.split("**")[1] for line in lines]
    assert told == ["met", "met", "missed", "missed", "not decided", "met", "not decided", "not decided"]
    row = next(line for line in (tmp_path / "long.md").read_text().splitlines() if line.startswith("| good "))
    assert "| 300% | 40, 40 (1) | 50, 50 (1) |" in row  # a hundred steps of 15 ms, a prompt of half a second


def test_a_sweep_goes_on_where_it_was_cut_off(tmp_path, monkeypatch):
    setting = sweep.Setting(MODEL, "float32", 1.0, 0.0, FAST)
    plan = list(sweep.points(["records"], ["plain", "ours"], [sweep.Load(calls=1), sweep.Load(rate=0.5)], 2))
    assert len({point.file for point in plan}) == len(plan) == 2 * (1 + 2 + 2 + 1)
    assert [point.load.alone for point in plan] == [True] * 2 + [False] * 8 + [True] * 2
    asked: list[sweep.Point] = []

    async def measure(point, _setting, _calls):
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.append(point)
        return dataclasses.replace(
            a_run([TURN]), contender=point.contender, calls=point.load.calls, rate=point.load.rate
        )

    monkeypatch.setattr(sweep, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        list(sweep.sweep(plan, setting, [], tmp_path, resume=True))
    del asked[:]
    *_, runs = sweep.sweep(plan[:7], setting, [], tmp_path, resume=True)
    assert asked == plan[4:7] and [run.contender for run in runs] == [point.contender for point in plan[:7]]
    assert runs[0].turns == [TURN]
    other = dataclasses.replace(setting, seconds=2.0)
    with pytest.raises(sweep.KeptError, match="another --runs"):
        list(sweep.sweep(plan[:1], other, [], tmp_path, resume=True))
    with pytest.raises(sweep.KeptError, match="holds 7 runs"):  # they are not mixed with new ones, nor written over
        list(sweep.sweep(plan, setting, [], tmp_path, resume=False))


# What is played


def test_contenders_are_settings_that_the_service_takes():
    found = {name: load_config(environment(CONTENDERS[name], MODEL, "float32", 3.5)).engine for name in CONTENDERS}
    head = f"eagle3:{MODEL.resolve() / 'eagle3'}"
    fixed = EngineConfig(str(MODEL.resolve()), head, draft_nodes=8, scheduling="fcfs")
    assert found["FCFS EAGLE-3, 8 nodes"] == fixed
    assert found["ours"] == EngineConfig(str(MODEL.resolve()), f"suffix+{head}")
    for name, drafter in {"plain": "none", "FCFS plain": "none", "self-speculation": "suffix"}.items():
        assert found[name].drafter == drafter  # none pays for a drafter that it does not ask
    assert found["plain"] == EngineConfig(str(MODEL.resolve()), "none", draft_mode="plain")
    assert {found[name].draft_nodes for name in TREES.values()} == {4, 8, 24}


def test_a_call_that_begins_midway_has_the_history_that_its_dialogue_has():
    calls, tokenizer = list(read()), harness.load_tokenizer(MODEL)
    midway = [script for seed in range(40) if (script := scripts.script(calls, seed, midway=True)).first_turn > 1]
    assert len(midway) > 5 and any(message["role"] == "tool" for script in midway for message in script.history)
    for script in midway:
        said = script.recorded.turns[: script.first_turn]
        users = [message["content"] for message in script.history if message["role"] == "user"]
        assert [text.rstrip(".?!") for text in users] == [turn.text.rstrip(".?!") for turn in said]
        messages = [wire.item(item) for item in items_of(script)]
        defined = tuple(ToolDefinition(**tool) for tool in script.recorded.tools)
        opened = Open(system=script.recorded.system, items=opening.items(messages, "open.items"), tools=defined)
        here = Conversation.opened(chat(), opened)
        system = {"role": "system", "content": script.recorded.system}
        tools = [{"type": "function", "function": tool} for tool in script.recorded.tools]
        whole = tokenizer.apply_chat_template([system, *script.history], tools=tools, return_dict=False)
        assert list(here.tokens) == list(whole)[: len(here.tokens)]


def test_a_long_prompt_is_as_long_as_it_says_and_begins_like_no_other():
    text = long_prompt.LongText(list(read()), MODEL)
    made = [text.script(number) for number in range(30)]
    encode = harness.load_tokenizer(MODEL).encode
    for script in made:
        texts = script.recorded.system, script.turns[0].text
        tokens = sum(len(encode(text, add_special_tokens=False)) for text in texts)
        assert abs(tokens - long_prompt.PROMPT_TOKENS) <= 2  # decoding and encoding again may join a piece
    opened = [Conversation.opened(chat(), Open(system=script.recorded.system)).tokens for script in made]
    alike = [common_length(list(one), list(other)) for one, other in itertools.combinations(opened, 2)]
    assert min(len(tokens) for tokens in opened) > 1000 and max(alike) < LEAST_TOKENS


def test_steps_have_the_mode_of_their_phase():
    log = StepLog()
    log.steps = [Step(float(at), (name, 1), 1, False) for at, name in enumerate("abaabac")]
    log.phases = {("a", 1): [("eagle3", 2), ("plain", 1)], ("b", 1): [("suffix", 2)]}
    assert log.modes() == ["eagle3", "suffix", "eagle3", "plain", "suffix", "plain", "?"]


def test_replies_that_share_steps_in_two_ways_switch_nothing():
    """One waits and drafts in one way, the other does not and drafts in another; their steps alternate."""
    log = StepLog()
    log.steps = [Step(float(at), (name, 1), 1, False) for at, name in enumerate("ababababa")]
    log.phases = {("a", 1): [("eagle3", 5)], ("b", 1): [("suffix", 4)]}
    assert log.modes()[:4] == ["eagle3", "suffix", "eagle3", "suffix"]
    one = a_step_up(log)
    assert one.switches() == [0, 0] and one.switches_between() == 1


def test_a_reply_that_goes_to_and_fro_is_seen_and_so_are_replies_that_do():
    log = StepLog()
    log.steps = [Step(float(at), (name, 1), 1, name == "x") for at, name in enumerate("aaaaabbbxxxcccd")]
    log.phases = {("a", 1): [("eagle3", 2), ("suffix", 1), ("eagle3", 2)], ("b", 1): [("suffix", 3)]}
    log.phases |= {("x", 1): [("plain", 3)], ("c", 1): [("eagle3", 3)], ("d", 1): [("plain", 1)]}
    one = a_step_up(log)  # x was made ahead, and d was over before anything was decided
    assert one.replies == [["eagle3", "suffix", "eagle3"], ["suffix"], ["eagle3"]]
    assert one.switches() == [2, 0, 0] and one.switches_between() == 2


def test_steps_made_ahead_are_nobodys_wait():
    log = StepLog()
    log.steps = [Step(1.0, ("a", 1), 1, True), Step(2.0, ("b", 1), 1, False), Step(3.0, ("a", 1), 1, False)]
    log.steps += [Step(4.5, ("b", 1), 2, False), Step(5.0, ("a", 1), 2, False)]
    assert log.intervals() == [(("b", 1), 2.0, 4.5), (("a", 1), 3.0, 5.0)]


def test_steps_are_told_by_whether_they_read_a_long_prompt():
    slices = long_prompt.Slices(100.0, (False, True))
    prompts = long_prompt.Prompts([(105.0, 107.0)], {"long"})
    log = StepLog()
    log._offset = 100.0
    for began, took, gained, of in [
        (-1.0, 0.01, ("a",), ()),  # in the warm-up
        (1.0, 0.02, ("a", "b"), ("c",)),  # what others read is part of what there is without
        (2.0, 0.03, (), ("c",)),  # nobody's reply went on
        (4.9, 0.2, ("a",), ()),  # the prompt has come meanwhile
        (5.5, 0.04, ("a",), ("long",)),
        (5.6, 0.05, (), ("long",)),
        (6.0, 0.06, ("a",), ()),  # had no room for it
        (7.0, 0.07, ("long",), ()),
        (8.0, 0.08, ("a", "long"), ()),
    ]:
        log.took(EngineStep(began, began + took, gained, of))
    apart, beside = long_prompt._steps(log, slices, prompts)
    assert apart == pytest.approx([20.0]) and beside == pytest.approx([40.0])


# Real runs, as small as they can be


def small_calls() -> list[RecordedCall]:
    """Two turns of some calls, without pauses between their words."""
    return [dataclasses.replace(call, turns=call.turns[:2]) for call in itertools.islice(read(), 6)]


QUICK = Manner(speed=10.0, give_up_s=1000.0)
"""They wait for as long as it takes: the machine that runs the tests may be busy with something else."""


async def both_ways(driver) -> tuple[Run, Run]:
    """(two callers at a time, calls alone), of one driver."""
    setting = sweep.Setting(MODEL, "float32", 2.0, 0.2, QUICK)
    calls = small_calls()
    loaded = await sweep.loaded(driver, sweep.Point("x", "plain", sweep.Load(calls=2), 0), setting, calls)
    return loaded, await sweep.alone(driver, sweep.Point("x", "plain", sweep.Load(calls=0), 0), setting, calls)


def check(loaded: Run, alone: Run) -> None:
    assert len(alone.turns) >= 4 and all(turn.over and not turn.error for turn in alone.turns)
    assert not alone.errors and 0 <= loaded.mean_calls <= 2
    assert set(loaded.errors) <= {population.NOT_OPEN}  # on a slow machine a call may take longer than a greeting
    over = [turn for turn in (*loaded.turns, *alone.turns) if turn.over and not turn.interrupted]
    for turn in over:
        assert turn.tokens > 0 and sum(turn.modes.values()) > 0 and turn.first_token_s is not None
        assert turn.first_clause_s is not None or turn.begins_with_tool


@pytest.fixture(autouse=True)
def few_turns(monkeypatch):
    monkeypatch.setattr(sweep, "ALONE_TURNS", 4)
    monkeypatch.setattr(population, "CYCLE_S", 4.0)


@pytest.fixture(scope="module")
def engine():
    """(an event loop, in it the driver of one engine process for all tests)."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        plain = {"drafter": "none", "draft_nodes": 1}  # of which no costs are measured: it starts soon
        environ = environment(plain, MODEL, "float32", QUICK.rate * QUICK.speed)
        started = local.start(environ, local.WatchedProcess)
        yield runner, runner.run(stack.enter_async_context(started))
        runner.run(stack.aclose())


def test_records_to_an_engine_process(engine):
    runner, driver = engine
    loaded, alone = runner.run(both_ways(driver))
    check(loaded, alone)
    assert loaded.others_cpu["bench.load.watched_worker"] > 0


def test_a_call_too_many_is_refused_without_a_socket_as_over_one(engine):
    runner, driver = engine

    async def run() -> Refused:
        servicer, own = CallServicer(ServerConfig()), driver.client.servicer
        servicer.services = own.services
        servicer.admission = Admission(AdmissionConfig(max_calls=1), lambda: None, 16, own.services.telemetry)
        async with LoopbackClient(servicer) as client, service_line(client, UNCUT):
            with pytest.raises(Refused) as refused:
                async with service_line(client, UNCUT):
                    pass
            return refused.value

    refused = runner.run(run())
    assert str(refused) == "TOO_MANY_CALLS" and refused.retry_s is not None and refused.retry_s > 0


def test_a_service_that_is_not_there_yet_is_no_refusal():
    async def run() -> None:
        async with LoopbackClient(CallServicer(ServerConfig())) as client, service_line(client, UNCUT):
            pass

    with pytest.raises(CallFailed) as failed:
        asyncio.run(run())
    assert failed.value.code is grpc.StatusCode.UNAVAILABLE and failed.value.retry_after_s


def test_a_step_up_is_told_as_calls_alone_are(engine):
    runner, driver = engine
    one = runner.run(step_up.measure(driver, small_calls(), QUICK, number=2, hold_s=0.7))
    assert one.compared > 0 and one.same == one.compared and not one.errors
    opened = sum(now > before for (_, before), (_, now) in itertools.pairwise([(0.0, 0), *one.changes]))
    assert opened >= 2 and {mode for _, _, mode in one.steps} == {"plain"}
    assert one.changes[-1][1] == 0 and sum(tokens for _, tokens, _ in one.steps) > 0
    assert one.replies and set(map(tuple, one.replies)) == {("plain",)} and not any(one.switches())


def test_a_step_up_is_told_as_calls_alone_are_under_a_policy_that_switches(monkeypatch):
    """In an engine process that is ours but for its policy, which switches whatever that costs on this machine."""
    real = asyncio.create_subprocess_exec

    async def switching(*command, **how):
        named = ["tests.bench.switching_worker" if part == "engine.worker" else part for part in command]
        return await real(*named, **how)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", switching)

    async def run() -> step_up.StepUp:
        async with local.start(environment({}, MODEL, "float32", QUICK.rate * QUICK.speed)) as driver:
            return await step_up.measure(driver, small_calls(), QUICK, number=3, hold_s=0.7)

    one = asyncio.run(run())
    assert one.compared > 0 and one.same == one.compared and not one.errors
    assert {mode for _, _, mode in one.steps} >= {"plain", "suffix", "suffix+eagle3"}
    assert sum(count > 1 for count in one.switches()) > len(one.replies) // 4


def test_long_prompts_arrive_while_others_talk(engine, monkeypatch):
    runner, driver = engine
    monkeypatch.setattr(long_prompt, "SLICE_S", 2.0)
    monkeypatch.setattr(population, "REDIAL_S", 0.1)  # somebody always talks
    text = long_prompt.LongText(list(read()), MODEL)

    async def run() -> long_prompt.LongPrompt:
        return await long_prompt.measure(driver, Population(driver, small_calls(), QUICK), 2, 0.2, 1, text)

    found = runner.run(run())
    assert not found.errors and not found.refused and sum(found.speech_s) > 0
    assert any(found.clauses) and found.judged > 0
    for times in (found.step_apart, found.step_beside, found.apart, found.beside, found.prompts):
        assert times and min(times) > 0


def test_an_interruption_is_not_overtaken_by_the_next_final(engine):
    runner, driver = engine
    text = long_prompt.LongText(list(read()), MODEL)

    async def run() -> list[str]:
        async with driver.line(text.script(2000)) as line:
            for _ in range(3):
                reply = await line.final("Hello?")
                while not isinstance(await reply.get(), Over):
                    pass
                await line.interrupt(1)
            assert isinstance(await (await line.final("Hello?")).get(), Text)
            return line.errors

    assert runner.run(run()) == []


def test_every_long_prompt_is_computed_whole(engine):
    runner, driver = engine
    text = long_prompt.LongText(list(read()), MODEL)

    async def beat() -> records.Beat:
        """A sign of life from after now."""
        now = time.monotonic()
        for _ in range(1200):
            if (found := driver.engine.beat) is not None and found.at >= now:
                return found
            await asyncio.sleep(0.05)
        pytest.fail("the engine gives no sign of life")

    async def run() -> tuple[records.Beat, records.Beat]:
        before = await beat()
        for number in range(2):
            async with driver.line(text.script(1000 + number)) as line:
                assert isinstance(await (await line.final("Hello?")).get(), Text)
        return before, await beat()

    before, after = runner.run(run())
    assert after.shared_tokens == before.shared_tokens
    assert after.prefilled_tokens - before.prefilled_tokens >= 2 * (long_prompt.PROMPT_TOKENS - 32)


def test_grpc_to_the_service(service):
    async def run() -> tuple[Run, Run]:
        async with Client(service.address) as client:
            return await both_ways(remote.RemoteDriver(client))

    loaded, alone = asyncio.run(run())
    check(loaded, alone)
    for run_of in (loaded, alone):
        assert run_of.others_cpu["service"] > 0 and run_of.others_cpu["engine.worker"] > 0
    assert "engine.worker " in page.row("x", 2, figures_of([loaded]), 100.0)[-3]


def test_calls_alone_are_told_the_same_both_ways(engine, service):
    async def told(driver) -> dict[tuple[str, int], str]:
        callers = Population(driver, small_calls(), ALONE)
        for seed in range(2):
            await callers.call(scripts.script(small_calls(), seed), time.perf_counter())
        return {(turn.call, turn.number): "\n".join(turn.said) for turn in callers.turns}

    async def over_grpc() -> dict[tuple[str, int], str]:
        async with Client(service.address) as client:
            return await told(remote.RemoteDriver(client))

    runner, driver = engine
    here, there = runner.run(told(driver)), asyncio.run(over_grpc())
    assert here == there and len(here) >= 3 and any(here.values())
