"""Who shares a step: the earliest deadline first, nobody for ever, and no step that those who wait must mind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine import arrival, schedule
from engine.arrival import ArrivalScheduler
from engine.engine import Engine
from engine.models.decoder import Decoder
from engine.pace import Pace, StepCosts
from engine.playback import Clause
from engine.policy import FixedPolicy
from engine.prefixes import Beginning, Prefixes
from engine.proposers.none import NoProposer
from engine.sampling import Sampling
from engine.schedule import DeadlineScheduler
from engine.session import Session
from tests.engine import small
from tests.engine.clocks import Clock

PROMPT = tuple(range(1, 8))
CHEAP_NODES = StepCosts((1, 64), (0.010, 0.011), ((0.0, 0.0),))
DEAR_NODES = StepCosts((1, 64), (0.010, 0.640), ((0.0, 0.0),))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (arrival, schedule):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def engine() -> Iterator[Engine]:
    target: Decoder = small.models()[0]
    engine = Engine(target, NoProposer(), FixedPolicy(1))
    yield engine
    for session in list(engine.sessions.values()):
        engine.close(session)


class Calls:
    """Calls of an engine, and the scheduler that plans for them."""

    def __init__(self, engine: Engine, scheduler: DeadlineScheduler | ArrivalScheduler) -> None:
        self.engine, self.scheduler = engine, scheduler

    def heard(self, name: str, tokens: int = 7) -> Session:
        return self.engine.open(name, [1 + i % 9 for i in range(tokens)])

    def asked(
        self, name: str, tokens: int = 7, *, deadline: float = 0.0, aside: bool = False, hold: int | None = None
    ) -> Session:
        session = self.heard(name, tokens)
        self.scheduler.expect(name, deadline, aside=aside)
        self.engine.submit(session, Sampling(), max_tokens=60, hold=hold)
        return session

    def speaking(self, name: str, tokens: int, **how: bool) -> Session:
        """A reply whose first ``tokens`` were a clause."""
        session = self.asked(name, **how)
        while session.num_pending > 1:
            self.engine.step(self.scheduler.plan(self.engine))
        self.scheduler.spoke(name, tokens)
        return session

    def planned(self) -> list[str]:
        """Who shares the next step, which does for each what it was planned to do."""
        names = [work.session.name for work in self.scheduler.plan(self.engine)]
        for name in names:
            self.scheduler.served(name)
        return names

    def step_of_a_row(self, clock: Clock, row: list[Session], tokens: int) -> None:
        """One step of a tenth of a second, with two in a row who wait for a first clause to so many tokens."""
        while len(row) < 2:
            row.append(self.asked(f"waits {clock.now} {len(row)}", tokens))
        plan = self.scheduler.plan(self.engine)
        reading = [work.session for work in plan if work.session.num_pending > 1]
        assert reading[0] in row, "those who wait come first"
        for done in self.engine.step(plan):
            self.scheduler.served(done.session)
        for session in [session for session in row if session.num_pending <= 1]:
            row.remove(session)
            self.scheduler.forget(session.name)
            self.engine.close(session)
        clock.now += 0.1


class Known(Pace):
    """What steps cost by the table, whatever they took."""

    def observe(self, windows: int, nodes: int, seconds: float) -> None:
        pass


def calls(engine: Engine, costs: StepCosts) -> Calls:
    engine.pace = Known(costs)
    return Calls(engine, DeadlineScheduler(64, speaking_rate=3.5))


def test_whoever_waits_for_a_first_clause_shares_a_step_with_those_who_wait_as_well(
    engine: Engine, clock: Clock
) -> None:
    line = calls(engine, CHEAP_NODES)
    line.asked("one"), line.asked("two"), line.heard("heard")
    assert line.planned() == ["one", "two"]


def test_those_with_a_lead_join_where_that_costs_nothing(engine: Engine, clock: Clock) -> None:
    for costs, joins in ((CHEAP_NODES, True), (DEAR_NODES, False)):
        line = calls(engine, costs)
        ahead, waits = line.speaking("ahead", tokens=35), line.asked("waits", 1)
        assert ("ahead" in line.planned()) == joins
        for session in (ahead, waits):
            engine.close(session)


def test_a_reply_whose_words_run_out_is_as_urgent_as_one_that_waits(engine: Engine, clock: Clock) -> None:
    line = calls(engine, DEAR_NODES)
    line.speaking("short", tokens=7)  # two seconds of speech
    line.asked("waits", 1)
    assert "short" not in line.planned()
    clock.now += 1.8
    line.asked("later", 1)
    assert line.planned() == ["waits", "short", "later"]


def test_a_short_turn_goes_before_a_long_prompt_that_came_first(engine: Engine, clock: Clock) -> None:
    line = calls(engine, DEAR_NODES)
    long = line.asked("long", 300)
    clock.now += 0.01
    line.asked("short", 7)
    assert line.scheduler.expected(engine, engine.session("short")) < 0.1 < line.scheduler.expected(engine, long)
    plan = line.scheduler.plan(engine)
    assert plan[0].session.name == "short" and plan[0].max_tokens == 7


def test_a_short_turn_does_not_wait_for_a_long_prompt_that_is_due_before_it(engine: Engine, clock: Clock) -> None:
    line = calls(engine, DEAR_NODES)
    line.asked("long", 300)
    clock.now += 5.0
    short = line.asked("short", 7)
    assert line.scheduler.expected(engine, short) < 0.1, "what is due earlier takes seconds"
    assert line.planned()[0] == "short"


def test_a_long_prompt_lengthens_the_steps_of_those_who_speak_by_little(engine: Engine, clock: Clock) -> None:
    line = calls(engine, DEAR_NODES)
    pace = Pace(DEAR_NODES)
    for number in range(8):
        line.speaking(f"speaks {number}", tokens=2)
    line.asked("long", 300)
    while engine.session("long").num_pending > 1:
        plan = line.scheduler.plan(engine)
        speaking = [work for work in plan if work.session.name != "long"]
        assert len(speaking) == 8
        given = sum(work.max_tokens for work in plan if work.session.name == "long")
        limit = max(schedule.NOTICED * pace.forward(8, 8), pace.forward(9, 8 + schedule.SHORT_PROMPT))
        assert given > 0 and pace.forward(9, 8 + given) <= limit + 1e-9
        engine.step(plan)
        for number in range(8):  # their words have just run out
            line.scheduler.expect(f"speaks {number}", 0.0)


def test_a_long_prompt_lengthens_the_step_of_a_short_one_by_little(engine: Engine, clock: Clock) -> None:
    """The step in which a short one is read whole brings its first token."""
    costs = StepCosts((1, 512), (0.0001, 0.0512), ((0.0, 0.0),))
    line, pace = calls(engine, costs), Pace(costs)
    line.asked("long", 500)
    short = line.asked("short", 40).num_unread
    given = {work.session.name: work.max_tokens for work in line.scheduler.plan(engine)}
    assert given["short"] == short and given["long"] > 0
    limit = max(schedule.NOTICED * pace.forward(1, short), pace.forward(2, short + schedule.SHORT_PROMPT))
    assert pace.forward(2, short + given["long"]) <= limit + 1e-9 < schedule.LONGEST_STEP_S


@pytest.mark.parametrize("ahead", [False, True])
def test_a_short_one_is_read_before_a_long_prompt_that_fills_its_step(
    ahead: bool, engine: Engine, clock: Clock
) -> None:
    """Also where the long one has waited for longer than it should take, and nobody waits for the short one yet."""
    costs = StepCosts((1, 512), (0.0001, 0.0512), ((0.0, 0.0),))
    line, pace = calls(engine, costs), Pace(costs)
    line.asked("long", 500)
    clock.now += 0.5
    short = line.asked("short", 20, hold=4 if ahead else None).num_unread
    clock.now += 0.3
    given = {work.session.name: work.max_tokens for work in line.scheduler.plan(engine)}
    if ahead:
        assert "short" not in given and given["long"] > schedule.SHORT_PROMPT, "nobody waits for it: it comes later"
        return
    assert given["short"] == short and given["long"] >= schedule.SHORT_PROMPT
    limit = max(schedule.NOTICED * pace.forward(1, short), pace.forward(2, short + schedule.SHORT_PROMPT))
    assert pace.forward(2, short + given["long"]) <= limit + 1e-9 < schedule.LONGEST_STEP_S


@pytest.mark.parametrize("short", [20, 30, 31, 32])
@pytest.mark.parametrize("costs", [DEAR_NODES, StepCosts((1, 512), (0.0001, 0.0512), ((0.0, 0.0),))])
def test_a_long_prompt_is_read_however_many_short_ones_come(
    costs: StepCosts, short: int, engine: Engine, clock: Clock
) -> None:
    """Beside however many tokens: one that is given little in each step is not given more for being late."""
    line = calls(engine, costs)
    long = line.asked("long", 200)
    for number in range(14):
        row = [line.asked(f"short {number} {at}", short) for at in range(2)]
        engine.step(line.scheduler.plan(engine))
        clock.now += 1.0
        for session in row:
            engine.close(session)
            line.scheduler.forget(session.name)
    assert long.num_pending <= 1


def test_what_is_read_ahead_does_not_go_before_a_longer_turn_that_a_caller_waits_for(
    engine: Engine, clock: Clock
) -> None:
    line = calls(engine, StepCosts((1, 512), (0.0025, 0.512), ((0.0, 0.0),)))
    speakers = [line.speaking(f"speaks {number}", tokens=2) for number in range(4)]
    for number in range(6):
        line.asked(f"ahead {number}", 31, hold=1)
    clock.now += 0.25
    waits = line.asked("waits", 40)
    for _ in range(2):
        for session in speakers:
            line.scheduler.expect(session.name, 0.0)
        for step in engine.step(line.scheduler.plan(engine)):
            line.scheduler.served(step.session)
        clock.now += 0.1
    assert waits.turn is not None and waits.turn.num_tokens


def test_what_is_heard_after_a_silence_does_not_go_before_a_committed_turn(engine: Engine, clock: Clock) -> None:
    line = calls(engine, DEAR_NODES)
    quiet = line.speaking("quiet", tokens=2)
    assert quiet.turn is not None
    engine.cancel(quiet.turn)
    clock.now += 30.0
    line.scheduler.heard(quiet)
    engine.append(quiet, list(range(1, 9)) * 5)
    clock.now += 0.05
    line.asked("asks", 40)
    assert line.planned()[0] == "asks"
    clock.now += 0.5
    assert line.planned()[0] == "asks", "nor when it is overdue"


def test_a_partial_that_replaces_one_not_yet_read_does_not_wait_anew(engine: Engine, clock: Clock) -> None:
    line = calls(engine, DEAR_NODES)
    heard = line.heard("heard", 60)
    line.planned()
    for _ in range(5):
        clock.now += 0.15
        line.scheduler.heard(heard)
        engine.append(heard, [3, 4])
    line.asked("asks", 1)
    assert "heard" in line.planned()


def test_a_reply_whose_words_ran_out_is_not_owed_the_silence(engine: Engine, clock: Clock) -> None:
    line = calls(engine, DEAR_NODES)
    line.speaking("stalled", tokens=7)
    clock.now += 12.0
    line.scheduler.spoke("stalled", 21)  # four seconds more
    line.asked("asks", 1)
    assert line.planned() == ["asks"]


@pytest.mark.parametrize("served", ["deadline", "fcfs"])
def test_a_clause_is_late_or_comes_behind_a_silence(engine: Engine, clock: Clock, served: str) -> None:
    """Seven tokens are two seconds of speech, and half a second is to be left when the next clause comes."""
    line = calls(engine, CHEAP_NODES)
    deadlines = served == "deadline"
    if not deadlines:
        line.scheduler = ArrivalScheduler(64, speaking_rate=3.5)
    line.asked("call")
    assert line.planned() == ["call"]
    for seconds, tokens, late, silence in (
        (0.05, 7, False, 0.0),  # until 2.05
        (1.0, 14, False, 0.0),  # until 4.05
        (2.8, 21, True, 0.0),  # 0.2 s before its end, until 6.05
        (3.2, 28, True, 1.0),  # at 7.05, until 9.05
        (2.05, 35, True, 0.0),  # nobody notices so little
    ):
        clock.now += seconds
        clause = line.scheduler.spoke("call", tokens)
        assert clause.silence_s == pytest.approx(silence) and clause.late == (late and deadlines)
    assert line.scheduler.spoke("nobody", 3) == Clause()


def test_a_first_clause_is_late_behind_what_its_prompt_takes(engine: Engine, clock: Clock) -> None:
    for seconds, late in ((0.05, False), (0.5, True)):
        line = calls(engine, CHEAP_NODES)
        session = line.asked("call")
        line.planned()
        clock.now += seconds
        assert line.scheduler.spoke("call", 7) == Clause(late, 0.0)
        engine.close(session)


def test_a_reply_that_is_read_again_with_little_left_to_be_spoken_does_not_yield(engine: Engine, clock: Clock) -> None:
    line = calls(engine, DEAR_NODES)
    line.asked("again", 60)  # its pages were needed while it stood still
    line.scheduler.spoke("again", 7)
    for number in range(2):
        line.asked(f"waits {number}", 1)
    assert "again" not in line.planned()
    clock.now += 0.1
    assert "again" in line.planned()


def test_two_seconds_of_speech_suffice_beside_others(engine: Engine, clock: Clock) -> None:
    """At 3.5 tokens a second those are seven, however long they have taken."""
    for others, tokens, suffice in ((True, (3, 6), False), (True, (3, 7), True), (False, (3, 60), False)):
        line = calls(engine, CHEAP_NODES)
        sessions = [line.asked(name, hold=64) for name in ("ahead", *(["other"] if others else []))]
        told = []
        for count in tokens:
            clock.now += 5.0
            told.append(line.scheduler.spoke("ahead", count).suffices)
        assert told == [False, suffice]
        for session in sessions:
            engine.close(session)


def test_many_who_wait_are_expected_to_share_their_steps(engine: Engine, clock: Clock) -> None:
    line = calls(engine, CHEAP_NODES)
    for number in range(10):
        waits = line.asked(f"waits {number}", 7)
    together = line.scheduler.expected(engine, waits)
    assert together < 3 * CHEAP_NODES.verify_seconds(64), "and not after each other"


def test_nothing_that_is_heard_or_asked_aside_waits_for_ever(engine: Engine, clock: Clock) -> None:
    line = calls(engine, DEAR_NODES)
    aside, heard = line.speaking("aside", tokens=0, aside=True), line.heard("heard", 200)
    served = {"heard": 0, "aside": 0}
    for turn in range(40):
        waits = line.asked(f"waits {turn}", 1)
        for name in line.planned():
            served[name] = served.get(name, 0) + 1
        engine.close(waits)
        line.scheduler.forget(waits.name)
        clock.now += 0.1
    assert served["heard"] >= 10 and served["aside"] >= 3
    for session in (heard, aside):
        engine.close(session)


def test_what_was_planned_and_found_no_pages_grows_older(engine: Engine, clock: Clock) -> None:
    line = calls(engine, DEAR_NODES)
    line.heard("heard", 60)
    for _ in range(4):
        assert [work.session.name for work in line.scheduler.plan(engine)] == ["heard"]
        clock.now += 0.15
    line.asked("asks", 1)
    assert "heard" in line.planned()


def test_a_row_of_prompts_that_callers_wait_for_does_not_keep_others_unread_for_ever(
    engine: Engine, clock: Clock
) -> None:
    line = calls(engine, DEAR_NODES)
    line.heard("heard", 270)
    line.asked("aside", 270, aside=True)
    read = {"heard": 0, "aside": 0}
    row: list[Session] = []
    for step in range(150):
        while len(row) < 2:
            row.append(line.asked(f"waits {step} {len(row)}", 20))
        plan = line.scheduler.plan(engine)
        tokens = {work.session.name: min(work.max_tokens, work.session.num_unread) for work in plan}
        others = {name: tokens.pop(name) for name in read if name in tokens}
        assert plan[0].session in row and sum(tokens.values()) >= 20, "those who wait come first, and lose nothing"
        assert len(others) <= 1 and sum(others.values()) <= schedule.SHORT_PROMPT
        for name in others:
            read[name] += 1
        for done in engine.step(plan):
            line.scheduler.served(done.session)
        for session in [session for session in row if session.num_pending <= 1]:
            row.remove(session)
            line.scheduler.forget(session.name)
            engine.close(session)
        clock.now += 0.1
    assert read["heard"] >= 8 and read["aside"] >= 4


def test_what_is_read_ahead_is_read_like_what_is_heard_and_the_reply_made_when_nobody_waits(
    engine: Engine, clock: Clock
) -> None:
    """Or beside those who wait and have little to read, until it has a clause: its own caller will wait for that."""
    line = calls(engine, DEAR_NODES)
    ahead, row = line.asked("ahead", 200, hold=10), list[Session]()
    steps = 0
    while ahead.num_pending > 1:
        line.step_of_a_row(clock, row, 64)
        assert (steps := steps + 1) < 100
    assert ahead.turn is not None
    said = ahead.turn.num_tokens
    for _ in range(30):
        line.step_of_a_row(clock, row, 64)
    assert ahead.turn.num_tokens == said <= 1, "with the last of the prompt comes a token"
    for session in row:
        line.scheduler.forget(session.name)
        engine.close(session)
    row.clear()
    line.step_of_a_row(clock, row, 10)
    assert ahead.turn.num_tokens == said + 1
    line.scheduler.spoke("ahead", said + 1)
    line.step_of_a_row(clock, row, 10)
    assert ahead.turn.num_tokens == said + 1
    for session in row:
        engine.close(session)
    assert line.planned() == ["ahead"]


def test_a_reply_that_hurries_lengthens_the_steps_of_those_who_wait_by_half_at_most(
    engine: Engine, clock: Clock
) -> None:
    line = calls(engine, DEAR_NODES)
    for number in range(8):
        ahead = line.asked(f"ahead {number}", 2, hold=10)
        while ahead.num_pending > 1:
            engine.step(line.scheduler.plan(engine))
    waits = line.asked("waits", 7)
    plan = line.scheduler.plan(engine)
    hurrying = [work for work in plan if work.session is not waits]
    assert 1 <= len(hurrying) < 8 and all(work.urgent for work in hurrying)
    assert Pace(DEAR_NODES).forward(len(hurrying), len(hurrying)) <= schedule.CROWD * DEAR_NODES.verify_seconds(1)
    expected = line.scheduler.expected(engine, waits)
    assert expected >= Pace(DEAR_NODES).forward(len(plan), len(hurrying) + 7) - 1e-9


def test_a_long_prompt_that_is_read_ahead_keeps_nothing_else_that_is_overdue(engine: Engine, clock: Clock) -> None:
    """Nor where nobody waits for a first clause, and a reply goes on in every step."""
    line = calls(engine, DEAR_NODES)
    line.speaking("speaks", tokens=2)
    line.asked("ahead", 300, hold=10)
    aside, heard = line.asked("aside", 60, aside=True), line.heard("heard", 60)
    first: dict[str, int] = {}
    for step in range(40):
        for work in line.scheduler.plan(engine):
            if work.session.name in ("aside", "heard", "ahead"):
                first.setdefault(work.session.name, step)
        for done in engine.step(line.scheduler.plan(engine)):
            line.scheduler.served(done.session)
        clock.now += 0.1
        if aside.cache.length and heard.cache.length:
            break
    assert first["heard"] < 15 and first["aside"] < 25, "and not behind all of it"


def test_a_little_that_is_heard_is_read_with_what_comes_next_where_others_speak(engine: Engine, clock: Clock) -> None:
    line = calls(engine, CHEAP_NODES)
    line.heard("alone", 7)
    assert line.planned() == ["alone"], "nobody minds"
    engine.step(line.scheduler.plan(engine))
    line.speaking("speaks", tokens=2)
    heard = line.heard("heard", 7)
    assert line.planned() == ["speaks"]
    clock.now += 0.9 * schedule.HEARD_S
    engine.append(heard, [3, 4])
    line.scheduler.heard(heard)
    assert line.planned() == ["speaks"]
    clock.now += 0.2 * schedule.HEARD_S
    assert line.planned() == ["speaks", "heard"]
    line.heard("long", 64)
    assert "long" in line.planned()


def test_a_caller_who_pauses_again_and_again_is_read_nonetheless(engine: Engine, clock: Clock) -> None:
    """Each pause is taken for the end, so each time a reply is asked for ahead, to a little more."""
    line = calls(engine, DEAR_NODES)
    ahead, row = line.asked("ahead", 60, hold=10), list[Session]()
    for _ in range(15):
        line.step_of_a_row(clock, row, 64)
        if ahead.cache.length:
            break
        assert ahead.turn is not None
        engine.cancel(ahead.turn)
        line.scheduler.heard(ahead)
        engine.append(ahead, [3, 4])
        line.scheduler.expect("ahead", 0.0)
        engine.submit(ahead, Sampling(), max_tokens=60, hold=10)
    assert ahead.cache.length > 0 and clock.now >= 1000.0 + schedule.LATE_S


def test_who_waits_for_a_beginning_that_is_read_ahead_does_not_wait_for_ever(engine: Engine, clock: Clock) -> None:
    line, prefixes = calls(engine, DEAR_NODES), Prefixes(engine)
    ahead, row = line.asked("ahead", 100, hold=10), list[Session]()
    behind = line.heard("behind", 100)
    for session in (ahead, behind):
        prefixes.join(session, Beginning("tenant", tuple(session.tokens)))
    assert behind.held
    for _ in range(100):
        line.step_of_a_row(clock, row, 10)
        prefixes.learn(ahead)
    assert not behind.held and behind.cache.length >= 99
    engine.close(behind)
    while prefixes.give_up(engine.target.new_cache().pool, shared=True):
        pass
    assert prefixes.num_pages == 0


def test_a_deadline_of_its_own_makes_a_turn_more_urgent(engine: Engine, clock: Clock) -> None:
    line = calls(engine, DEAR_NODES)
    line.asked("first", 40)
    line.asked("hurries", 40, deadline=clock.now + 0.01)
    assert line.planned()[0] == "hurries"


def test_first_come_first_served_takes_all_replies_and_prefill_in_its_order(engine: Engine, clock: Clock) -> None:
    line = Calls(engine, ArrivalScheduler(64))
    line.speaking("speaks", tokens=500)
    clock.now += 1
    line.asked("long", 300)
    clock.now += 1
    line.asked("short", 7)
    assert line.planned() == ["speaks", "long"]
    assert line.scheduler.expected(engine, engine.session("short")) >= line.scheduler.expected(
        engine, engine.session("long")
    )


def test_a_reply_that_is_released_keeps_the_place_at_which_it_was_asked_for_ahead(engine: Engine, clock: Clock) -> None:
    line = Calls(engine, ArrivalScheduler(64))
    ahead = line.asked("ahead", 300, hold=10)
    clock.now += 1
    line.asked("asks", 7)
    clock.now += 1
    assert ahead.turn is not None
    ahead.turn.hold = None
    line.scheduler.expect("ahead", 0.0)
    assert line.planned() == ["ahead"]
    engine.cancel(ahead.turn)
    line.scheduler.heard(ahead)
    line.scheduler.expect("ahead", 0.0)
    engine.submit(ahead, Sampling(), max_tokens=60)
    assert line.planned()[0] == "asks", "what is asked anew comes behind"
