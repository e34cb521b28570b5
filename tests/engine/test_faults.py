"""What goes wrong for one session stays with it: short pages, bad commands, and what injected parts raise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine import records
from engine.cache import KVCache, PagePool
from engine.engine import Engine, Work
from engine.errors import OutOfPages, ReplyFailed
from engine.host import EngineHost
from engine.interfaces import Draft, Proposer
from engine.measured_policy import MeasuredPolicy
from engine.models.decoder import Decoder, load_target
from engine.pace import Pace, StepCosts
from engine.policy import FixedPolicy
from engine.proposers.cascade import Cascade
from engine.proposers.none import NoProposer
from engine.proposers.suffix import SuffixProposer
from engine.sampling import Sampling
from engine.schedule import DeadlineScheduler
from engine.session import MOST_FAILURES, Finish
from engine.text.codec import Codec
from engine.text.reply import Read, ReplyReader
from engine.tree import DraftTree
from tests.e2e.server import MODEL
from tests.engine import checkpoints
from tests.engine.embedded import grammars
from tests.engine.oracle import OracleProposer

PAGE, PAGES = 4, 12
PROMPT = (5, 17, 3, 99, 42)
FAULTY, UNTAKABLE, UNREADABLE = 9, 10, 11
"""Requests for replies whose reader is so, or that have none."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("target")
    checkpoints.write("llama-tied", directory)
    return directory


@pytest.fixture
def target(directory: Path) -> Decoder:
    """With a pool of its own, of few small pages."""
    return load_target(directory, dtype=torch.float64, pool_tokens=PAGE * PAGES, page_tokens=PAGE)


@pytest.fixture
def pool(target: Decoder) -> PagePool:
    return target.pool


class Reader(ReplyReader):
    """Raises at its third token, or when the third is taken, where asked to."""

    def __init__(self, *, faulty: bool = False, untakable: bool = False) -> None:
        super().__init__(Codec.load(MODEL, 1 << 20))
        self._faulty, self._untakable, self._count = faulty, untakable, 0

    def push(self, token: int) -> str:
        self._count += 1
        if self._faulty and self._count == 3:
            raise RuntimeError("a fault in a reader")
        return ""

    def take(self, *, final: bool = False, cut: bool = False) -> Read:
        if self._untakable and self._count >= 3:
            raise RecursionError("a fault in what was read")
        return super().take(final=final, cut=cut)


def new_reader(command: records.Submit) -> Reader:
    if command.request == UNREADABLE:
        raise RuntimeError("no reader for it")
    return Reader(faulty=command.request == FAULTY, untakable=command.request == UNTAKABLE)


@dataclass
class Host:
    """An engine behind records, and what it said."""

    host: EngineHost

    def do(self, *commands: records.Command) -> list[records.Event]:
        return [event for command in commands for event in self.host.handle(command)]

    def run(self, steps: int = 200) -> list[records.Event]:
        """Step until there is nothing to do."""
        events: list[records.Event] = []
        for _ in range(steps):
            if not self.host.busy:
                return events
            events += self.host.advance()
        raise AssertionError(f"still busy after {steps} steps")


@pytest.fixture
def host(target: Decoder) -> Iterator[Host]:
    engine = Engine(target, NoProposer(), FixedPolicy(1))
    yield Host(EngineHost(engine, DeadlineScheduler(8), new_reader, grammars()))
    for session in list(engine.sessions.values()):
        engine.close(session)


def submit(session: str, turn: int, **fields: object) -> records.Submit:
    given = {"keep": len(PROMPT), "tokens": (), "max_tokens": 6, **fields}
    return records.Submit(session, turn, sampling=Sampling(), **given)  # type: ignore[arg-type]


def test_a_reply_that_fits_its_pages_fits_them_with_any_tree(target: Decoder) -> None:
    plain = Engine(target, NoProposer(), FixedPolicy(1))

    def reply(engine: Engine) -> tuple[list[int], Finish | None]:
        session = engine.open("call", PROMPT)
        turn = engine.submit(session, Sampling(), max_tokens=PAGE * PAGES - len(PROMPT))
        while turn.finish is None:
            engine.step([Work(session)])
        said = turn.tokens
        engine.close(session)
        return said, turn.finish

    wanted = reply(plain)
    assert wanted[1] is Finish.LENGTH
    for nodes in (5, 16, 40):
        oracle = OracleProposer(checkpoints.VOCAB, nodes)
        oracle.reference = [*PROMPT, *wanted[0]]
        assert reply(Engine(target, oracle, FixedPolicy(nodes))) == wanted


def test_a_reservation_takes_all_or_nothing(pool: PagePool) -> None:
    cache, other = KVCache(pool), KVCache(pool)
    other.reserve(PAGE * (PAGES - 2))
    with pytest.raises(OutOfPages):
        cache.reserve(PAGE * 3)
    assert cache.num_pages == 0
    cache.reserve(PAGE * 2)


def test_heard_text_without_pages_waits_for_some_and_harms_nobody(host: Host, pool: PagePool) -> None:
    hog = KVCache(pool)
    hog.reserve(PAGE * (PAGES - 1))
    host.do(records.Open("listening", tuple(range(1, 30))))
    assert host.run() == []  # it waits, it does not spin, and nobody is told of a failure
    (failed,) = [e for e in host.do(submit("listening", 1, keep=29)) + host.run() if isinstance(e, records.Ended)]
    assert failed.finish == "out_of_pages"
    hog.close()
    assert host.host.busy
    host.run()
    ended = host.do(submit("listening", 2, keep=29)) + host.run()
    assert isinstance(ended[-1], records.Ended)
    assert ended[-1].finish == "length"


def told(events: Sequence[records.Event], session: str) -> list[int]:
    """Every token that was reported of it."""
    progress = [event for event in events if isinstance(event, records.Progress) and event.session == session]
    return [token for event in progress for token in event.tokens]


@pytest.mark.parametrize("max_tokens", [3, 6], ids=["in the last step", "before that"])
@pytest.mark.parametrize("request_id", [FAULTY, UNTAKABLE])
def test_what_a_reader_raises_ends_its_own_reply_only(host: Host, request_id: int, max_tokens: int) -> None:
    host.do(records.Open("good", PROMPT), records.Open("bad", PROMPT))
    bad = submit("bad", 1, request=request_id, max_tokens=max_tokens)
    events = host.do(bad, submit("good", 1)) + host.run()
    ends = {event.session: event for event in events if isinstance(event, records.Ended)}
    assert (ends["good"].finish, ends["bad"].finish) == ("length", "failed")
    assert "a fault in" in ends["bad"].error and len(told(events, "good")) == 6
    said = told(events, "bad")
    assert ends["bad"].reply_tokens == len(said) == ends["bad"].log_tokens - len(PROMPT), "the log is what was told"
    assert said == told(events, "good")[: 3 if request_id == FAULTY else 2]
    again = host.do(submit("bad", 2)) + host.run()  # and the session goes on
    assert told(again, "bad") == told(events, "good")


def test_a_reply_that_cannot_be_read_from_what_it_is_to_begin_with_fails_alone(host: Host) -> None:
    """Where it goes on after a restart, all of that was told before."""
    host.do(records.Open("good", PROMPT), records.Open("bad", PROMPT), submit("good", 1))
    events = host.do(submit("bad", 1, request=FAULTY, forced=(7, 8, 9, 10)))
    (ended,) = [event for event in events if isinstance(event, records.Ended)]
    assert (ended.finish, ended.reply_tokens, ended.log_tokens) == ("failed", 4, len(PROMPT) + 4)
    assert "a fault in a reader" in ended.error and host.host.engine.session("bad").tokens == [*PROMPT, 7, 8, 9, 10]
    good = told(host.run(), "good")
    assert told(host.do(submit("bad", 2)) + host.run(), "bad") == good and len(good) == 6


def test_a_command_that_raises_whatever_it_may_harms_nobody_else(host: Host) -> None:
    host.do(records.Open("good", PROMPT), records.Open("bad", PROMPT), submit("good", 1))
    (failed,) = host.do(submit("bad", 1, request=UNREADABLE))
    assert isinstance(failed, records.Failed) and (failed.session, failed.turn) == ("bad", 1)
    good = told(host.run(), "good")
    assert told(host.do(submit("bad", 2)) + host.run(), "bad") == good and len(good) == 6


@pytest.mark.parametrize("wrong", [{"tokens": (checkpoints.VOCAB,)}, {"tokens": (-1,)}, {"keep": 99}])
def test_a_refused_command_changes_nothing(host: Host, wrong: dict[str, object]) -> None:
    host.do(records.Open("call", PROMPT))
    first = host.do(submit("call", 1))
    (refused,) = host.do(submit("call", 2, **wrong))
    assert isinstance(refused, records.Failed)
    ended = [event for event in first + host.run() if isinstance(event, records.Ended)]
    assert [(event.turn, event.finish) for event in ended] == [(1, "length")]


def test_an_overtaken_reply_ends_although_the_next_one_is_refused(host: Host) -> None:
    host.do(records.Open("call", PROMPT), submit("call", 1))
    ended, refused = host.do(submit("call", 2, max_tokens=0))
    assert (type(ended), type(refused)) == (records.Ended, records.Failed)


def test_the_noise_runs_on_behind_tool_results(target: Decoder) -> None:
    """The second part of a reply is sampled with the noise that follows the first part's."""
    engine = Engine(target, NoProposer(), FixedPolicy(1))

    def said(first_index: int, prompt: tuple[int, ...]) -> list[int]:
        session = engine.open("call", prompt)
        turn = engine.submit(session, Sampling(5.0, seed=42), max_tokens=6, first_index=first_index)
        while turn.finish is None:
            engine.step([Work(session)])
        tokens = turn.tokens
        engine.close(session)
        return tokens

    whole = said(0, PROMPT)
    assert said(3, (*PROMPT, *whole[:3])) == (whole + said(6, (*PROMPT, *whole)))[3:9]
    assert said(0, (*PROMPT, *whole[:3]))[:3] != whole[3:6]


def test_a_parent_stays_in_its_run_of_pages_when_a_fork_goes_on(pool: PagePool) -> None:
    parent = KVCache(pool)
    parent.reserve(6)
    parent.commit(list(range(6)))
    pool.kv.normal_()
    before = pool.kv[:, :, parent.slots(0, 6)].clone()
    child = parent.fork()
    for cache in (parent, child):
        cache.reserve(3)
        pool.kv[:, :, cache.slots(6, 9)] = 0.0
        cache.commit(list(range(3)))
    assert parent.view(9) is not None
    for cache in (parent, child):
        assert torch.equal(pool.kv[:, :, cache.slots(0, 6)], before)


class Failing(NoProposer):
    """Drafts until it is told to fail."""

    fails = False

    def propose(
        self, drafts: Sequence[Draft], roots: Sequence[int], noise: Sequence[Tensor | None], budget: int
    ) -> list[DraftTree]:
        if self.fails:
            raise RuntimeError("no idea")
        return super().propose(drafts, roots, noise, budget)


def test_replies_go_on_without_a_drafter_that_fails(target: Decoder) -> None:
    engine, plain = Engine(target, drafter := Failing(), FixedPolicy(4)), Engine(target, NoProposer(), FixedPolicy(1))
    drafter.fails = True
    said = []
    for some in (engine, plain):
        session = some.open("call", PROMPT)
        turn = some.submit(session, Sampling(), max_tokens=9)
        while turn.finish is None:
            some.step([Work(session)])
        said.append(turn.tokens)
        some.close(session)
    assert said[0] == said[1]


class Forgetful(NoProposer):
    """Fails to observe one session's tokens so many times."""

    failing: Draft | None = None
    times = 0

    def observe(self, draft: Draft, tokens: Tensor, features: Tensor | None, top_ids: Tensor | None) -> None:
        if draft is self.failing and self.times:
            self.times -= 1
            raise RuntimeError("no room in here")
        super().observe(draft, tokens, features, top_ids)


def test_what_goes_wrong_in_one_share_of_a_step_ends_that_reply_alone(target: Decoder) -> None:
    engine = Engine(target, proposer := Forgetful(), FixedPolicy(1))
    sessions = [engine.open(name, PROMPT) for name in ("one", "two")]
    turns = [engine.submit(session, Sampling(), max_tokens=6) for session in sessions]
    engine.step([Work(session) for session in sessions])
    proposer.failing, proposer.times = sessions[0].draft, 2
    engine.step([Work(session) for session in sessions])
    assert len(sessions[0].tokens) == len(sessions[1].tokens) == len(PROMPT) + 2, "it may fail once"
    failed, went_on = engine.step([Work(session) for session in sessions])
    assert (failed.finish, failed.tokens) == (Finish.FAILED, ()) and isinstance(failed.error, ReplyFailed)
    assert went_on.error is None and len(went_on.tokens) == 1
    assert len(sessions[0].tokens) == len(PROMPT) + 2, "what was told before stays"
    while turns[1].finish is None:
        engine.step([Work(sessions[1])])
    again = engine.submit(sessions[0], Sampling(), max_tokens=4)
    while again.finish is None:
        engine.step([Work(sessions[0])])
    assert sessions[0].tokens == sessions[1].tokens, "and all of it was computed anew"
    for session in sessions:
        engine.close(session)


def test_a_drafter_that_fails_to_read_once_costs_the_reply_nothing_but_time(target: Decoder) -> None:
    engine = Engine(target, proposer := Forgetful(), FixedPolicy(1))
    sessions = [engine.open(name, PROMPT, seed=1) for name in ("one", "two")]
    turns = [engine.submit(session, Sampling(1.0), max_tokens=8) for session in sessions]
    engine.step([Work(session) for session in sessions])
    proposer.failing, proposer.times = sessions[0].draft, 1
    while any(turn.finish is None for turn in turns):
        for step in engine.step([Work(session) for session in sessions]):
            assert step.error is None
    assert proposer.times == 0 and [turn.finish for turn in turns] == [Finish.LENGTH] * 2
    assert sessions[0].tokens == sessions[1].tokens
    for session in sessions:
        engine.close(session)


def test_prefill_that_fails_whenever_it_is_tried_is_not_tried_for_ever(target: Decoder) -> None:
    engine = Engine(target, proposer := Forgetful(), FixedPolicy(1))
    host = Host(EngineHost(engine, DeadlineScheduler(8), lambda command: Reader(), grammars()))
    host.do(records.Open("good", PROMPT), records.Open("bad", PROMPT * 2))
    session = engine.session("bad")
    proposer.failing, proposer.times = session.draft, 100
    for _ in range(10):
        released = target.new_cache()
        released.reserve(1)
        released.close()
        assert host.run() == []
    assert 100 - proposer.times == MOST_FAILURES and not host.host.busy
    failed = host.do(submit("bad", 1, keep=len(PROMPT) * 2)) + host.run()  # whoever asks is told
    assert isinstance(failed[-1], records.Ended) and failed[-1].finish == "failed"
    proposer.times = 0
    events = host.do(submit("bad", 2, keep=len(PROMPT)), submit("good", 1)) + host.run()
    assert told(events, "bad") == told(events, "good") and len(told(events, "bad")) == 6
    for name in ("good", "bad"):
        engine.close(engine.session(name))


class Sick(NoProposer):
    """Drafts with scores that are none."""

    def propose(
        self, drafts: Sequence[Draft], roots: Sequence[int], noise: Sequence[Tensor | None], budget: int
    ) -> list[DraftTree]:
        sick = torch.tensor([1.0, float("nan"), float("inf"), -1.0])
        return [DraftTree.chain(torch.tensor([root, 1, 2, 3][:budget]), score=sick[:budget]) for root in roots]

    def catch_up(self, draft: Draft) -> bool:
        raise RuntimeError("no room in here")


@pytest.mark.parametrize("make", [Sick, lambda: Cascade([SuffixProposer(0), Sick()])], ids=["alone", "merged"])
@pytest.mark.parametrize("measured", [False, True], ids=["fixed", "measured"])
def test_scores_that_are_no_probabilities_harm_nobody(
    target: Decoder, make: Callable[[], Proposer], measured: bool
) -> None:
    costs = StepCosts((1, 4), (0.01, 0.01), ((0.0, 0.0001),))
    policy = MeasuredPolicy(Pace(costs)) if measured else FixedPolicy(4)
    said = []
    for engine in (Engine(target, NoProposer(), FixedPolicy(1)), Engine(target, make(), policy)):
        session = engine.open("call", PROMPT, seed=1)
        turn = engine.submit(session, Sampling(), max_tokens=8)
        while turn.finish is None:
            for step in engine.step([Work(session)]):
                assert step.error is None
        said.append(turn.tokens)
        engine.close(session)
    assert said[0] == said[1]


def test_a_drafter_that_cannot_catch_up_harms_nobody(target: Decoder) -> None:
    engine = Engine(target, Sick(), FixedPolicy(1))
    session = engine.open("call", PROMPT)
    assert not engine.catch_up(session)
    engine.close(session)


class Eager(NoProposer):
    """Drafts as much as it may, all of it wrong for all that it knows."""

    def propose(
        self, drafts: Sequence[Draft], roots: Sequence[int], noise: Sequence[Tensor | None], budget: int
    ) -> list[DraftTree]:
        return [DraftTree.chain(torch.tensor([root, *range(1, budget)])) for root in roots]


def test_replies_that_fit_the_pool_fit_it_beside_drafts(target: Decoder) -> None:
    """Each ends where it would alone, however many pages drafts have asked for on the way."""
    length = PAGE * (PAGES // 2)
    for proposer, nodes in ((NoProposer(), 1), (Eager(), 12)):
        engine = Engine(target, proposer, FixedPolicy(nodes))
        sessions = [engine.open(name, PROMPT[:3], seed=1) for name in ("one", "two")]
        turns = [engine.submit(session, Sampling(), max_tokens=length - 3) for session in sessions]
        while any(turn.finish is None for turn in turns):
            engine.step([Work(session) for session in sessions if session.turn is not None])
        assert [turn.finish for turn in turns] == [Finish.LENGTH] * 2
        for session in sessions:
            engine.close(session)
    assert target.pool.pages_in_use == 0


def test_a_draft_or_what_is_only_heard_does_not_take_the_page_that_a_reply_needs(target: Decoder) -> None:
    engine, pool = Engine(target, Eager(), FixedPolicy(12)), target.pool
    prompt = tuple(range(1, PAGE + 1))
    drafting, needing = (engine.open(name, prompt) for name in ("drafting", "needing"))
    turns = [engine.submit(session, Sampling(), max_tokens=4) for session in (drafting, needing)]
    engine.step([Work(drafting), Work(needing)])
    heard = engine.open("heard", prompt * 2)
    others = [target.new_cache() for _ in range(PAGES)]
    for cache in others:
        if pool.pages_in_use < PAGES - 2:
            cache.reserve(1)
    steps = engine.step([Work(heard), Work(drafting), Work(needing)])
    assert [step.error for step in steps if step.turn is not None] == [None, None]
    assert [turn.num_tokens for turn in turns] == [2, 2] and heard.waits_for_pages
    for closing in (*others, drafting, heard, needing):
        closing.close()
    assert pool.pages_in_use == 0


@pytest.mark.parametrize("how", [{"aside": True}, {"hold": 4}], ids=["aside", "made ahead"])
def test_a_reply_that_no_caller_waits_for_does_not_take_the_last_page(target: Decoder, how: dict[str, Any]) -> None:
    """It waits while others have pages that they will give back."""
    engine, pool = Engine(target, NoProposer(), FixedPolicy(1)), target.pool
    unasked, asked = (engine.open(name, PROMPT[:PAGE]) for name in ("unasked", "asked"))
    engine.submit(unasked, Sampling(), max_tokens=4, **how)
    engine.submit(asked, Sampling(), max_tokens=4)
    engine.step([Work(unasked), Work(asked)])
    hog = target.new_cache()
    hog.reserve(PAGE * (PAGES - pool.pages_in_use - 1))
    steps = {step.session: step for step in engine.step([Work(unasked), Work(asked)])}
    assert steps["asked"].error is None and "unasked" not in steps and unasked.stalled
    asked.close()
    assert not unasked.stalled
    hog.reserve(PAGE * (PAGES - 1))
    (alone,) = engine.step([Work(unasked)])
    assert isinstance(alone.error, OutOfPages), "nobody else will give any back"
    for closing in (hog, unasked):
        closing.close()
    assert pool.pages_in_use == 0
