"""Which calls are taken. Properties over any order of arrivals and ends, against counts kept apart."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engine import records
from service.admission import LATEST_S, RELIEVED, REMEMBERED, SOONEST_S, SPEAKS, Admission, Seat
from service.config import AdmissionConfig
from service.problems import Problem, Reason
from service.security.settings import TenantConfig
from service.telemetry import Telemetry

PAGE = 16


class House:
    """An admission with a clock and an engine's figures of its own."""

    def __init__(self, pages: int | None = None, **config: object) -> None:
        self.now = 100.0
        self.beat = None if pages is None else records.Beat(self.now, 0, 0, 0, pages, 0.0, 0.0)
        settings = AdmissionConfig.model_validate(config)
        self.admission = Admission(settings, lambda: self.beat, PAGE, Telemetry("m"), lambda: self.now)

    def call(self, tenant: str = "", tokens: int = 0) -> Seat:
        """A call that is open. Raises Problem where it is refused."""
        seat = self.admission.take(tenant)
        try:
            seat.open(lambda: tokens)
        except Problem:
            seat.leave()
            raise
        return seat

    def refusal(self, tenant: str = "", tokens: int = 0) -> Problem:
        with pytest.raises(Problem) as refused:
            self.call(tenant, tokens)
        return refused.value


MOVES = st.lists(st.tuples(st.sampled_from("abcA"), st.integers(0, 30)), max_size=60)
"""(tenant that calls, or A: an open call ends; which one)"""


@given(MOVES, st.integers(1, 10), st.none() | st.integers(1, 5), st.sampled_from([0.0, 0.5, 0.8, 1.0]))
def test_places_are_given_by_the_rules_and_never_taken_away(
    moves: list[tuple[str, int]], most: int, per_tenant: int | None, contended_from: float
) -> None:
    house = House(max_calls=most, max_calls_per_tenant=per_tenant, fair_share_from=contended_from)
    open_calls: list[tuple[str, Seat]] = []
    wanting: dict[str, float] = {}
    for name, which in moves:
        house.now += 1.0
        if name == "A":
            if open_calls:
                _, seat = open_calls.pop(which % len(open_calls))
                seat.leave()
                seat.leave()  # which changes nothing
        else:
            counts = Counter(tenant for tenant, _ in open_calls)
            share = most / len({*counts, name, *(other for other, until in wanting.items() if until > house.now)})
            expected = (
                Reason.TENANT_TOO_MANY_CALLS
                if per_tenant is not None and counts[name] >= per_tenant
                else Reason.TOO_MANY_CALLS
                if len(open_calls) >= most
                else Reason.TENANT_ABOVE_SHARE
                if len(open_calls) + 1 > contended_from * most and counts[name] and counts[name] + 1 > share
                else None
            )
            try:
                open_calls.append((name, house.call(name)))
                assert expected is None
                wanting.pop(name, None)
            except Problem as refused:
                assert refused.reason is expected
                assert refused.retry_after_s is not None and SOONEST_S <= refused.retry_after_s <= LATEST_S
                wanting[name] = house.now + 2 * refused.retry_after_s
        assert house.admission.seats == len(open_calls)
    for _, seat in open_calls:
        seat.leave()
    assert house.admission.seats == 0
    house.call("a").leave()


@given(st.integers(2, 5), st.integers(10, 40), st.randoms(use_true_random=False))
def test_whoever_asks_gets_a_fair_share_also_of_a_machine_that_one_tenant_has_filled(
    tenants: int, most: int, chance: random.Random
) -> None:
    """Every tenant always wants more. Calls end at random, and whoever had them would like the place back first."""
    house = House(max_calls=most)
    names = [f"t{index}" for index in range(tenants)]
    open_calls = [house.call("t0") for _ in range(most)]
    for _ in range(most * 30):
        seat = open_calls.pop(chance.randrange(len(open_calls)))
        seat.leave()
        for name in (seat.tenant, *names):
            with contextlib.suppress(Problem):
                open_calls.append(house.call(name))
    counts = Counter(seat.tenant for seat in open_calls)
    assert min(counts[name] for name in names) >= most // tenants - 1
    assert len(open_calls) >= most - tenants  # and little is left unused


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 40)), max_size=80), st.integers(1, 6))
def test_opens_of_a_tenant_are_counted_apart_and_over_time(asks: list[tuple[str, int]], limit: int) -> None:
    """Never more than the limit, and one for each of its minutes' parts that has passed, since any moment."""
    house = House(max_opens_per_minute_per_tenant=limit)
    taken: dict[str, list[float]] = {"a": [], "b": []}
    for name, seconds in asks:
        house.now += seconds
        try:
            house.admission.ask(name)
            taken[name].append(house.now)
        except Problem as refused:
            assert refused.reason is Reason.TENANT_TOO_MANY_OPENS
            assert refused.retry_after_s is not None and SOONEST_S <= refused.retry_after_s <= 60 / limit + 1e-6
            house.now += refused.retry_after_s + 1e-6
            house.admission.ask(name)  # as it was told
            taken[name].append(house.now)
    for times in taken.values():
        for first, since in enumerate(times):
            for count, until in enumerate(times[first:], 1):
                assert count <= limit + (until - since) * limit / 60 + 1e-3


def test_tenants_that_have_opened_nothing_lately_are_forgotten() -> None:
    house = House(max_opens_per_minute_per_tenant=1)
    for number in range(5000):
        house.now += 1.0
        house.admission.ask(f"t{number}")
    assert len(house.admission._paces) <= REMEMBERED


def test_a_lone_tenant_has_the_whole_machine() -> None:
    house = House(max_calls=10, pages=100, reserve_tokens=10 * PAGE)
    for _ in range(10):
        house.call("only")
    assert house.refusal("only").reason is Reason.TOO_MANY_CALLS


@given(st.lists(st.integers(0, 200), min_size=1, max_size=30), st.integers(0, 64), st.sampled_from([0.5, 1.0, 3.0]))
def test_calls_are_promised_no_more_pages_than_there_are(lengths: list[int], reserve: int, overcommit: float) -> None:
    house = House(pages=40, reserve_tokens=reserve, overcommit=overcommit)
    promised = 0
    for tokens in lengths:
        need = -(-(tokens + reserve) // PAGE)
        if promised + need <= 40 * overcommit:
            house.call(tokens=tokens)
            promised += need
        else:
            refused = house.refusal(tokens=tokens)
            assert refused.reason is Reason.PAGES_COMMITTED
            assert (refused.retry_after_s is None) == (need > 40 * overcommit)  # no use to ask for what there never is


def test_a_context_that_grows_takes_room_from_those_who_come_and_not_from_those_who_are_there() -> None:
    house = House(pages=10, reserve_tokens=0)
    length = PAGE
    growing = house.admission.take("")
    growing.open(lambda: length)
    other = house.call(tokens=PAGE)
    length = 9 * PAGE
    assert house.refusal(tokens=PAGE).reason is Reason.PAGES_COMMITTED
    assert house.admission.seats == 2
    other.leave()
    house.call(tokens=PAGE)
    growing.leave()
    house.call(tokens=9 * PAGE)


def test_pages_that_nobody_was_promised_count_as_long_as_they_are_in_use() -> None:
    house = House(pages=10, reserve_tokens=0)
    house.beat = records.Beat(house.now, 3, 8, 0, 10, 0.0, 0.0)
    assert house.refusal(tokens=3 * PAGE).reason is Reason.PAGES_COMMITTED
    house.call(tokens=2 * PAGE)


def test_the_last_pages_are_for_those_below_their_share() -> None:
    house = House(pages=20, reserve_tokens=0)
    for _ in range(4):
        house.call("many", tokens=4 * PAGE)  # alone, and so not above any share
    house.call("few", tokens=PAGE)
    assert house.refusal("many", tokens=PAGE).reason is Reason.TENANT_ABOVE_SHARE
    house.call("few", tokens=3 * PAGE)


def test_what_waits_in_the_engine_is_bounded_with_what_was_sent_to_it_since_it_last_spoke() -> None:
    house = House(pages=10_000, max_backlog_ms=1000)

    def says(backlog_s: float) -> None:
        house.beat = records.Beat(house.now, 0, 0, 0, 10_000, backlog_s, 0.001)

    says(0.0)
    house.now += 0.01
    house.call(tokens=900)
    house.call(tokens=300)  # 0.9 s wait before it
    refused = house.refusal()
    assert (refused.reason, refused.retry_after_s) == (Reason.ENGINE_BUSY, SOONEST_S)
    says(0.7)  # of which those two are part
    house.now += 0.01
    house.call(tokens=200)
    house.call(tokens=200)
    says(5.0)
    refused = house.refusal()
    assert (refused.reason, refused.retry_after_s) == (Reason.ENGINE_BUSY, 4.0)
    says(0.0)
    house.call()


def speech(house: House, load: float, voice: float = 0.0, silent: int = 0) -> None:
    """The engine says how much speech there is, what a voice more adds, and how many have not spoken yet."""
    house.beat = records.Beat(house.now, 0, 0, 0, 10_000, 0.0, 0.0, speech_load=load, voice_load=voice, silent=silent)
    house.now += 0.01


def test_no_call_is_taken_while_the_engine_may_not_keep_up_with_all_who_speak() -> None:
    house = House(pages=10_000, max_speech_load=0.5)
    speech(house, 0.49)
    seat = house.call()
    for load in (0.51, 0.46, 0.5 * RELIEVED + 0.001):  # once it was too much, until it is clearly less
        speech(house, load)
        refused = house.refusal()
        assert refused.reason is Reason.ENGINE_SATURATED
        assert refused.retry_after_s is not None and SOONEST_S <= refused.retry_after_s <= LATEST_S
    house.admission.take("", resumed=True).leave()  # it was in progress already
    assert house.admission.seats == 1  # and who is there stays
    speech(house, 0.5 * RELIEVED - 0.001)
    house.call().leave()
    speech(house, 0.49)
    house.call().leave()
    seat.leave()


def test_an_engine_that_has_fallen_silent_is_not_taken_for_a_busy_one() -> None:
    """It says nothing while it has nothing to do: what it said last, when all hung up at once, is long ago."""
    house = House(pages=10_000, max_speech_load=0.5)
    speech(house, 0.9)
    assert house.refusal().reason is Reason.ENGINE_SATURATED
    house.now += 60.0
    house.call()
    speech(house, 0.0, voice=0.1, silent=20)  # who had not spoken by then, and has sent nothing since, may never speak
    assert house.refusal().reason is Reason.ENGINE_SATURATED
    house.now += 60.0
    house.call()


def test_calls_that_have_not_spoken_yet_count_for_what_they_will_need() -> None:
    """Of those that come at once as many are taken as there will be time for."""
    house = House(pages=10_000, max_speech_load=0.52)
    speech(house, 0.1, voice=0.1)
    seats = [house.call() for _ in range(9)]  # the ninth one found eight that had not spoken: 0.1 + 8 * 0.05
    assert SPEAKS == 0.5 and house.refusal().reason is Reason.ENGINE_SATURATED
    for _ in range(3):
        seats.pop().leave()  # and what is over will not speak
    seats.append(house.call())
    speech(house, 0.1, voice=0.1, silent=len(seats))  # the engine has heard of them
    seats.append(house.call())
    house.call()
    assert house.refusal().reason is Reason.ENGINE_SATURATED
    speech(house, 0.2, voice=0.1, silent=5)  # and now knows what the others need
    for _ in range(2):
        house.call()
    assert house.refusal().reason is Reason.ENGINE_SATURATED


@pytest.mark.parametrize(("pages", "limit"), [(10_000, None), (None, 0.5)])
def test_without_a_limit_or_an_engine_speech_is_not_looked_at(pages: int | None, limit: float | None) -> None:
    house = House(pages=pages, max_speech_load=limit)
    if pages is not None:
        speech(house, 9.0, voice=1.0)
    for _ in range(3):
        house.call()


def test_the_advice_follows_how_often_calls_end_and_spreads_those_who_come_together() -> None:
    house = House(max_calls=3)
    seats = [house.call() for _ in range(3)]
    for _ in range(40):  # one call ends every two seconds
        house.now += 2.0
        seats.pop(0).leave()
        seats.append(house.call())
    advice = [house.refusal().retry_after_s for _ in range(20)]
    assert advice[:3] == pytest.approx([2.0, 4.0, 6.0])
    assert advice[-1] == LATEST_S
    house.now += 60.0
    assert house.refusal().retry_after_s == pytest.approx((64.0 + 60.0) / 32)


def test_where_no_call_has_ended_the_advice_is_as_long_as_none_has() -> None:
    house = House(max_calls=1)
    house.call()
    assert house.refusal().retry_after_s == SOONEST_S
    house.now += 7.0
    assert house.refusal().retry_after_s == pytest.approx(7.0)


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(1, 6), st.sampled_from("abc"), st.data())
def test_a_call_is_ended_for_another_only_where_that_one_would_be_taken(
    callers: list[str], most: int, tenant: str, data: st.DataObject
) -> None:
    house, seats = House(max_calls=8, max_calls_per_tenant=most), list[Seat]()
    for caller in callers:
        with contextlib.suppress(Problem):
            seats.append(house.call(caller))
    assume(seats)
    house.now += 120.0  # nobody who was refused wants anything any more
    going = data.draw(st.sampled_from(seats))
    would = house.admission.would_seat(tenant, going.tenant)
    last_of_its_tenant = house.admission.seats_of[going.tenant] == 1  # where it goes there are fewer to share with
    going.leave()
    try:
        house.call(tenant)
    except Problem:
        assert not would
    else:
        assert would or last_of_its_tenant


def test_whoever_may_have_no_more_calls_takes_nobodys_share() -> None:
    class Elsewhere:
        def calls_elsewhere(self, tenant: str) -> int:
            return 2 if tenant == "a" else 0

        def opened(self, tenant: str) -> None: ...

        def opens_elsewhere(self, tenant: str, since: float) -> Iterator[tuple[float, int]]:
            yield from ()

    house, tenants = House(), {"a": TenantConfig(max_calls=2)}
    settings = AdmissionConfig(max_calls=10)
    house.admission = Admission(
        settings, lambda: None, PAGE, Telemetry("m"), lambda: house.now, tenants=tenants, elsewhere=Elsewhere()
    )
    for _ in range(8):
        house.call("b")
    assert house.refusal("a").reason is Reason.TENANT_TOO_MANY_CALLS
    house.call("b")
    house.call("b")


def test_a_call_that_never_opened_leaves_no_trace() -> None:
    house = House(max_calls=1)
    seat = house.admission.take("")
    assert house.refusal().reason is Reason.TOO_MANY_CALLS
    seat.leave()
    house.now += 9.0
    house.call()
    assert house.refusal().retry_after_s == pytest.approx(9.0)  # nobody has ended a call yet


def test_without_figures_of_the_engine_only_calls_are_counted() -> None:
    house = House(max_calls=2)
    house.call(tokens=10**9)
    house.call(tokens=10**9)
    assert house.refusal().reason is Reason.TOO_MANY_CALLS


def test_a_side_question_needs_room_beside_what_calls_were_promised() -> None:
    house = House(pages=20, reserve_tokens=0, max_backlog_ms=None, fair_share_from=1.0)
    held = [10 * PAGE]
    seat, other = house.admission.take(""), house.admission.take("")
    ask = seat.open(lambda: held[0])
    other.open(lambda: 5 * PAGE)
    ask(3 * PAGE, 2 * PAGE)
    held[0] += 5 * PAGE  # the question is one of the call's now
    with pytest.raises(Problem) as refused:
        ask(1, 0)
    assert refused.value.reason is Reason.PAGES_COMMITTED and refused.value.retry_after_s
    other.leave()
    ask(PAGE, 4 * PAGE)
    with pytest.raises(Problem) as never:
        ask(PAGE, 20 * PAGE)
    assert never.value.reason is Reason.PAGES_COMMITTED and never.value.retry_after_s is None


def test_side_questions_leave_other_tenants_their_share() -> None:
    house = House(pages=20, reserve_tokens=0, max_backlog_ms=None, fair_share_from=0.5)
    one, other = house.admission.take("one"), house.admission.take("other")
    ask = one.open(lambda: 8 * PAGE)
    other.open(lambda: PAGE)
    ask(PAGE, 0)
    with pytest.raises(Problem) as refused:
        ask(PAGE, 2 * PAGE)
    assert refused.value.reason is Reason.TENANT_ABOVE_SHARE


def test_no_side_question_is_asked_while_too_much_waits() -> None:
    house = House(pages=1000, reserve_tokens=0, max_backlog_ms=1000)
    ask = house.admission.take("").open(lambda: 0)
    house.beat = records.Beat(house.now, 0, 0, 0, 1000, 0.0, 0.01)
    house.now += 1.0
    for _ in range(2):
        ask(60, 500)  # what waits is what must be computed, and what came since the engine's last word counts
    with pytest.raises(Problem) as refused:
        ask(60, 500)
    assert refused.value.reason is Reason.ENGINE_BUSY and refused.value.retry_after_s
