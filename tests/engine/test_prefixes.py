"""What calls begin with is computed once a tenant, and nobody can tell from what is said or reported."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from functools import partial
from typing import Any

import pytest

from engine import records
from engine.arrival import ArrivalScheduler
from engine.cache import ABSENT
from engine.config import EngineConfig
from engine.engine import Engine
from engine.hibernation import Hibernation
from engine.host import EngineHost
from engine.interfaces import Draft
from engine.load import load_proposer, load_target_for, reader_of
from engine.policy import FixedPolicy
from engine.prefixes import Prefixes
from engine.records import Preamble
from engine.sampling import Sampling
from engine.schedule import DeadlineScheduler
from engine.session import MOST_FAILURES
from tests.engine.embedded import HEAD, MODEL, codec, grammars
from tests.engine.equal import held_out
from tests.engine.test_hibernation import run

PROMPT = tuple(held_out(1)[0].ids[:150])
OTHER = PROMPT[:100] + tuple(held_out(9)[8].ids[40:90])
LINES = tuple(tuple(prompt.ids[-9:]) for prompt in held_out(4))


def made(
    *,
    shares: bool = True,
    pool_tokens: int = 4096,
    own_runs: bool = True,
    host_bytes: int = 1 << 30,
    drafter: str = f"suffix+eagle3:{HEAD}",
) -> EngineHost:
    config = EngineConfig(str(MODEL), drafter, dtype="float64", pool_tokens=pool_tokens)
    target = load_target_for(config)
    engine = Engine(target, load_proposer(config, target), FixedPolicy(8), coupled=True)
    prefixes = Prefixes(engine, own_runs=own_runs) if shares else None
    hibernation = None
    if prefixes is not None:
        hibernation = Hibernation(engine, host_bytes, idle_s=0.0, beginnings=prefixes)
    return EngineHost(
        engine,
        DeadlineScheduler(64),
        partial(reader_of, codec()),
        grammars(),
        hibernation=hibernation,
        prefixes=prefixes,
    )


def opened(name: str, tenant: str | None, prompt: tuple[int, ...] = PROMPT, seed: int = 5) -> records.Open:
    preamble = None if tenant is None else Preamble(tenant, len(prompt))
    return records.Open(name, prompt, seed, preamble=preamble)


def computed(host: EngineHost, *commands: records.Command) -> int:
    """Prompt tokens that were computed for these."""
    before = host.beat().prefilled_tokens
    for command in commands:
        assert host.handle(command) == []
    run(host)
    return host.beat().prefilled_tokens - before


def converse(host: EngineHost, name: str, prompt: tuple[int, ...], sampling: Sampling) -> list[records.Event]:
    """Two turns, with a hypothesis, and all that is reported of them but times and what was cached."""
    events: list[records.Event] = []
    length = len(prompt)
    for turn, line in enumerate(LINES[:2], start=1):
        events += host.handle(records.Sync(name, length, line[:5], ahead=5, number=turn))
        run(host, events.append)
        events += host.handle(records.Submit(name, turn, length, line, sampling, 12))
        run(host, events.append)
        ended = events[-1]
        assert isinstance(ended, records.Ended)
        length = ended.log_tokens
    return [bare(event) for event in events]


def bare(event: records.Event) -> records.Event:
    if isinstance(event, records.Progress):
        return dataclasses.replace(event, at=0.0)
    if isinstance(event, records.Ended):
        stats = event.stats
        return dataclasses.replace(event, stats=(stats.prompt_tokens, stats.steps, stats.drafted, stats.accepted_at))  # type: ignore[arg-type]
    return event


@pytest.mark.parametrize("own_runs", [False, True], ids=["pages shared", "runs of their own"])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, top_p=0.95)], ids=["greedy", "sampled"])
def test_a_call_is_the_same_whether_its_beginning_was_computed_for_it_or_not(
    sampling: Sampling, own_runs: bool
) -> None:
    """Text, seeds, steps, drafts and what was accepted of them: for the whole beginning, and for a part of it."""
    sharing, alone = made(own_runs=own_runs), made(shares=False)
    assert computed(sharing, opened("first", "a")) == len(PROMPT) - 1
    for name, prompt in (("same", PROMPT), ("partly", OTHER)):
        for host in (sharing, alone):
            computed(host, opened(name, "a", prompt))
        assert converse(sharing, name, prompt, sampling) == converse(alone, name, prompt, sampling)
    # The last token that both begin with is computed again, for what a drafter needs there.
    assert sharing.beat().shared_tokens == len(PROMPT) - 1 + 100 - 1
    assert sharing.beat().prefilled_tokens + sharing.beat().shared_tokens == (
        alone.beat().prefilled_tokens + len(PROMPT) - 1
    )
    shared = [cache._pages for cache in sharing.engine.session("same").caches]
    runs = all(page + 1 == after for pages in shared for page, after in itertools.pairwise(pages))
    assert runs or not own_runs


@pytest.mark.parametrize("drafter", ["suffix+recycling", f"suffix+eagle3:{HEAD}"])
def test_what_a_call_said_is_not_drafted_to_one_that_shares_its_beginning(drafter: str) -> None:
    """The words behind the beginning come in the same step as its end."""
    sharing, alone = made(drafter=drafter), made(drafter=drafter, shares=False)
    own = tuple(itertools.islice((token for token in range(300, 2000) if token not in PROMPT), 20))
    computed(sharing, records.Open("first", PROMPT + own, 5, preamble=Preamble("a", len(PROMPT))))
    trees = []
    for host in (sharing, alone):
        computed(host, opened("second", "a"))
        session = host.engine.session("second")
        roots = sorted({*own, PROMPT[-1]})
        trees.append([host.engine.proposer.propose([session.draft.fork()], [r], [None], 24)[0] for r in roots])
    assert sharing.beat().shared_tokens == len(PROMPT) - 1
    for found, wanted in zip(*trees, strict=True):
        assert found.tokens.tolist() == wanted.tokens.tolist()


def test_two_tenants_with_the_same_prompt_do_not_share() -> None:
    host = made()
    assert computed(host, opened("a1", "a")) == len(PROMPT) - 1
    assert computed(host, opened("b1", "b")) == len(PROMPT) - 1
    assert computed(host, opened("nobody's", None)) == len(PROMPT) - 1
    assert computed(host, opened("no tenant", "")) == len(PROMPT) - 1
    assert host.beat().shared_tokens == 0
    for tenant in ("a", "b", ""):
        assert computed(host, opened(f"{tenant}2", tenant)) == 0


def test_tenants_at_the_same_time_do_not_wait_for_each_other() -> None:
    host = made()
    both = computed(host, opened("a1", "a"), opened("a2", "a"), opened("b1", "b"), opened("b2", "b"))
    assert both == 2 * (len(PROMPT) - 1)


def test_a_public_prompt_is_every_tenants() -> None:
    host = made()
    assert computed(host, records.Pin(PROMPT, None)) == len(PROMPT) - 1
    assert host.beat().sessions == 0
    assert computed(host, opened("a", "a"), opened("b", "b")) == 0
    assert computed(host, opened("nobody's", None)) == len(PROMPT) - 1


def test_a_pinned_prompt_is_its_tenants_and_stays_under_pressure() -> None:
    host = made(pool_tokens=600)
    computed(host, records.Pin(PROMPT, "a"), records.Pin(PROMPT, "a"))
    for number in range(6):
        computed(host, opened(f"c{number}", "b", tuple(100 + number + at for at in range(150))))
    assert host.beat().hibernated > 0
    assert computed(host, opened("a", "a")) == 0
    assert computed(host, opened("b", "b")) == len(PROMPT) - 1


def test_a_tenant_that_begins_every_call_otherwise_leaves_the_others_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.prefixes.MOST_KEPT", 3)
    host = made()
    computed(host, opened("b1", "b"))
    for number in range(6):
        computed(host, opened(f"a{number}", "a", tuple(100 + number + at for at in range(60))))
    assert computed(host, opened("b2", "b")) == 0
    assert computed(host, opened("a7", "a", tuple(105 + at for at in range(60)))) == 0, "its latest is there"


def test_calls_that_begin_at_once_wait_for_the_one_that_computes() -> None:
    """Also where that one is closed before it is done, and where its instructions are replaced."""
    host = made()
    assert computed(host, *(opened(f"c{number}", "a") for number in range(4))) == len(PROMPT) - 1
    host = made()
    for number in range(4):
        host.handle(opened(f"c{number}", "a"))
    run(host, steps=1)
    spent = host.beat().prefilled_tokens
    assert 0 < spent < len(PROMPT) - 1
    host.handle(records.Close("c0"))
    run(host, steps=1)
    assert not host.engine.session("c1").held and host.engine.session("c2").held
    host.handle(records.Sync("c1", 0, OTHER))
    run(host)
    assert all(host.engine.session(f"c{number}").num_pending == 1 for number in (1, 2, 3))
    assert host.beat().shared_tokens == len(PROMPT) - 1


def test_who_waits_for_another_ones_computing_is_answered_all_the_same() -> None:
    host = made()
    host.handle(opened("slow", "a"))
    host.handle(opened("asks", "a"))
    assert host.engine.session("asks").held
    events = host.handle(records.Submit("asks", 1, len(PROMPT), (), Sampling(), 3))
    while not any(isinstance(event, records.Ended) for event in events):
        events += host.advance()
    assert isinstance(events[-1], records.Ended) and events[-1].finish == "length"


def test_whoever_gets_there_first_frees_those_who_wait() -> None:
    """The call that was to compute the beginning has been kept from it; another one's turn has needed all of it."""
    host = made()
    for name in "abc":
        host.handle(opened(name, "t"))
    first, second, third = (host.engine.session(name) for name in "abc")
    assert (first.held, second.held, third.held) == (False, True, True)
    first.stall()
    events = host.handle(records.Submit("b", 1, len(PROMPT), (), Sampling(), 3))
    while not any(isinstance(event, records.Ended) for event in events):
        events += host.advance()
    assert not second.held and not third.held
    assert [session.num_pending for session in (first, third)] == [1, 1]
    assert computed(host, records.Sync("b", len(second.tokens), LINES[0], ahead=len(LINES[0]))) >= len(LINES[0]) - 1
    assert computed(host, opened("d", "t")) == 0


def failing(host: EngineHost, monkeypatch: pytest.MonkeyPatch, *names: str) -> Counter[str]:
    """Have every step of these sessions that reads a prompt fail; returns how often each has."""
    proposer, failures = host.engine.proposer, Counter[str]()
    observe = proposer.observe

    def observe_or_fail(draft: Draft, *given: Any) -> None:
        owner = next((session.name for session in host.engine.sessions.values() if session.draft is draft), "")
        if owner.startswith(names):
            failures[owner] += 1
            raise RuntimeError("a fault in a drafter")
        observe(draft, *given)

    monkeypatch.setattr(proposer, "observe", observe_or_fail)
    return failures


@pytest.mark.parametrize("first", ["a call", "a pin"])
def test_whoever_waits_for_one_that_fails_computes_it_instead(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host = made()
    failures = failing(host, monkeypatch, "c0", "\npin")
    host.handle(opened("c0", "t") if first == "a call" else records.Pin(PROMPT, "t"))
    for name in ("c1", "c2"):
        host.handle(opened(name, "t"))
        assert host.engine.session(name).held
    run(host)
    assert list(failures.values()) == [1]
    assert {session.num_pending for session in host.engine.sessions.values()} == {1}
    assert len(host.engine.sessions) == (3 if first == "a call" else 2), "the pin has what it was for"
    assert host.beat().kept_pages > 0 and host.beat().shared_tokens >= len(PROMPT) - 1


def test_a_beginning_that_nobody_can_compute_is_given_up_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    host = made()
    failures = failing(host, monkeypatch, "c", "\npin")
    host.handle(records.Pin(PROMPT, "t"))
    for name in ("c0", "c1"):
        host.handle(opened(name, "t"))
    for number in range(8):
        run(host)
        computed(host, opened(f"o{number}", "other", OTHER))
        host.handle(records.Close(f"o{number}"))
    assert set(failures.values()) == {MOST_FAILURES} and len(failures) == 3 and not host.busy
    monkeypatch.undo()
    assert computed(host, opened("c2", "t")) == len(PROMPT) - 1  # which the pin waits for too
    assert set(host.engine.sessions) == {"c0", "c1", "c2"}
    events = host.handle(records.Submit("c0", 1, len(PROMPT), LINES[0], Sampling(), 3))
    run(host, events.append)
    assert isinstance(events[-1], records.Ended) and events[-1].finish == "length"


def test_a_call_that_begins_otherwise_by_now_waits_for_nobody() -> None:
    host = made()
    for name in "ab":
        host.handle(opened(name, "t"))
    assert host.engine.session("b").held
    host.handle(records.Sync("b", 0, tuple(reversed(PROMPT))))
    assert not host.engine.session("b").held


def test_a_beginning_too_large_to_be_kept_keeps_nobody_waiting() -> None:
    host = made(pool_tokens=560)
    for name in "abc":
        host.handle(opened(name, "t"))
    run(host)
    assert [host.engine.session(name).num_pending for name in "abc"] == [1, 1, 1]
    assert host.beat().kept_pages == 0


@pytest.mark.parametrize(
    "when", ["nobody", "a call computes it", "it is public", "a call is there first", "both at once"]
)
def test_pins_leave_nothing_behind_but_what_they_keep(when: str) -> None:
    host = made()
    if when == "a call computes it":
        host.handle(opened("call", "a"))
    elif when == "it is public":
        computed(host, records.Pin(PROMPT, None))
    host.handle(records.Pin(PROMPT, "a"))
    if when in ("a call is there first", "both at once"):
        if when == "a call is there first":
            next(iter(host.engine.sessions.values())).stall()
        else:
            host.scheduler = ArrivalScheduler(1024)  # reads all of both prompts in one step
        host.handle(opened("call", "a"))
        events = host.handle(records.Submit("call", 1, len(PROMPT), (), Sampling(), 1))
        while not any(isinstance(event, records.Ended) for event in events):
            events += host.advance()
    host.handle(records.Pin(PROMPT[:8], "a"))  # too short for anybody to gain by it
    run(host)
    host.handle(records.Close("call"))
    assert host.beat().sessions == 0
    for owner in (host, host.scheduler, host.hibernation, host.prefixes):
        left = {name: kept for name, kept in vars(owner).items() if isinstance(kept, dict | set) and kept}
        assert left == {}, owner
    assert host.prefixes is not None
    pool = host.engine.target.new_cache().pool
    while host.prefixes.give_up(pool, shared=False):
        pass
    assert host.beat().kept_pages == pool.pages_in_use > 0
    assert computed(host, opened("again", "a")) == 0


def test_a_beginning_in_use_outlives_a_call_that_has_been_quiet_for_longer() -> None:
    host = made(pool_tokens=700)
    computed(host, opened("quiet", None, tuple(at + 7 for at in range(250))))
    computed(host, opened("first", "a"))
    host.handle(records.Close("first"))
    computed(host, opened("c2", None, tuple(at + 9 for at in range(250))))
    assert host.beat().hibernated == 1 and not host.engine.session("quiet").resident
    assert computed(host, opened("again", "a")) == 0


def test_a_prompt_that_cannot_fit_takes_no_beginning_along() -> None:
    host = made(pool_tokens=700)
    computed(host, opened("first", "a"))
    host.handle(records.Close("first"))
    computed(host, records.Open("long", tuple(5 + at % 1900 for at in range(720))))
    assert host.engine.session("long").cache.length == 0
    host.handle(records.Close("long"))
    assert computed(host, opened("again", "a")) == 0


def test_under_pressure_beginnings_that_nobody_used_for_longer_are_given_up_before_calls_move() -> None:
    host = made(pool_tokens=700)
    computed(host, opened("first", "a"))
    host.handle(records.Close("first"))
    computed(host, opened("c1", None, tuple(at + 7 for at in range(250))))
    assert host.engine.target.new_cache().pool.pages_in_use > 250 // 16 + 8
    computed(host, opened("c2", None, tuple(at + 9 for at in range(250))))
    assert host.beat().hibernated == 0 and host.beat().dropped == 0
    assert computed(host, opened("again", "a")) == len(PROMPT) - 1


def test_a_call_that_was_dropped_takes_its_beginning_from_who_has_it() -> None:
    host = made(pool_tokens=500, own_runs=False, host_bytes=0)
    computed(host, records.Pin(PROMPT, "a"), opened("a1", "a"))
    computed(host, opened("b1", "b", tuple(at + 7 for at in range(300))))
    assert host.engine.session("a1").cache.length == 0
    assert computed(host, records.Wake("a1")) == 0


def test_shared_pages_stay_where_they_are_when_a_call_moves() -> None:
    host = made(own_runs=False)
    computed(host, opened("first", "a"), opened("second", "a"))
    session = host.engine.session("second")
    pool = session.cache.pool
    before = pool.pages_in_use
    session.offload()
    held = [page for page in session.cache._pages if page != ABSENT]
    assert len(held) >= (len(PROMPT) - 1) // 16 and pool.pages_in_use < before
    session.restore()
    assert pool.pages_in_use == before


def test_nothing_is_left_of_calls_and_beginnings() -> None:
    host = made()
    for tenant in "abc":
        computed(host, opened(tenant, tenant), opened(tenant * 2, tenant))
    for name in list(host.engine.sessions):
        host.handle(records.Close(name))
    assert host.prefixes is not None
    pool = host.engine.target.new_cache().pool
    assert 0 < pool.pages_in_use <= 3 * (len(PROMPT) // 16 + 1)
    while host.prefixes.give_up(pool, shared=False):
        pass
    assert pool.pages_in_use == 0


def test_pages_that_quiet_calls_share_with_what_is_kept_are_freed_when_both_part_with_them() -> None:
    """Beginnings of whole pages, so that no call has a page to itself."""
    host = made(pool_tokens=512)
    for number in range(4):
        prompt = tuple(300 * number + at for at in range(129))
        computed(host, opened(f"c{number}", "a", prompt))
    host.handle(records.Open("asks"))
    events = host.handle(records.Submit("asks", 1, 0, tuple(range(5, 460)), Sampling(), 2))
    run(host, events.append)
    assert isinstance(events[-1], records.Ended) and events[-1].finish == "length"
