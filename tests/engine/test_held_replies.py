"""Replies that wait to be released: how far they are made, whom they make wait, and what a session's books say."""

import pytest
import torch

from engine import records
from engine.arrival import ArrivalScheduler
from engine.config import EngineConfig
from engine.engine import Engine, Work
from engine.host import EngineHost
from engine.load import load_proposer, load_target_for
from engine.policy import FixedPolicy
from engine.proposers.none import NoProposer
from engine.sampling import Sampling
from engine.schedule import DeadlineScheduler
from engine.text.reply import ReplyReader
from engine.tree import DraftTree
from tests.engine.embedded import HEAD, MODEL, codec, grammars

PROMPT = tuple(range(5, 40))
QUESTION = tuple(
    codec().encode(
        "<|begin|><|system|>You answer the phone for Day Retreat, a day spa.\nPrices: body wrap $25, facial $90."
        "<|end|><|user|>How much is a facial?<|end|><|assistant|>"
    )
)


@pytest.fixture(scope="module")
def loaded():
    config = EngineConfig(str(MODEL), f"eagle3:{HEAD}", pool_tokens=4096)
    target = load_target_for(config)
    return target, load_proposer(config, target)


@pytest.fixture
def engine(loaded):
    engine = Engine(*loaded, FixedPolicy(24))
    yield engine
    for session in list(engine.sessions.values()):
        engine.close(session)


@pytest.fixture
def host(engine):
    return EngineHost(
        engine, DeadlineScheduler(8), lambda command: ReplyReader(codec(), command.stop_strings), grammars()
    )


def run(host, steps=10_000):
    """All that the host says until it has nothing to do, or for so many steps."""
    events = []
    while host.busy and steps:
        events += host.advance()
        steps -= 1
    return events


def submit(session, hold=None, **fields):
    return records.Submit(session, 1, 0, PROMPT, Sampling(), max_tokens=20, hold=hold, **fields)


@pytest.mark.parametrize("hold", [1, 2, 7, 19, 20, 50])
def test_a_held_reply_stops_where_it_shall_and_goes_on_as_if_it_had_not(engine, hold):
    """Also with a draft of 24 nodes, more of which may be right than it may say."""
    free = engine.submit(engine.open("free", PROMPT, seed=1), Sampling(), max_tokens=20)
    while free.finish is None:
        engine.step([Work(free.session)])
    held = engine.submit(engine.open("held", PROMPT, seed=1), Sampling(), max_tokens=20, hold=hold)
    for _ in range(40):
        engine.step([Work(held.session)])
    assert held.num_tokens == min(hold, 20) and (held.finish is None) == (hold < 20)
    assert not held.waits or engine.step([Work(held.session)]) == []
    held.hold = None
    while held.finish is None:
        engine.step([Work(held.session)])
    assert held.tokens == free.tokens and held.finish == free.finish


class Knowing(NoProposer):
    """Drafts what will be said, as far as it may."""

    def __init__(self, text):
        self.text = text

    def propose(self, drafts, roots, noise, budget):
        return [
            DraftTree.chain(torch.tensor([root, *self.text[draft.length + 1 : draft.length + budget]]))
            for draft, root in zip(drafts, roots, strict=True)
        ]


@pytest.mark.parametrize("hold", [1, 2, 7, 19])
def test_a_held_reply_stops_where_it_shall_though_more_was_drafted_and_right(loaded, hold):
    target, _ = loaded
    plain = Engine(target, NoProposer(), FixedPolicy(1))
    free = plain.submit(plain.open("free", PROMPT, seed=1), Sampling(), max_tokens=20)
    while free.finish is None:
        plain.step([Work(free.session)])
    engine = Engine(target, Knowing(free.session.tokens), FixedPolicy(24))
    held = engine.submit(engine.open("held", PROMPT, seed=1), Sampling(), max_tokens=20, hold=hold)
    for _ in range(40):
        engine.step([Work(held.session)])
    assert held.num_tokens == hold and held.finish is None
    assert hold <= 2 or held.stats.accepted > 0
    held.hold = None
    engine.step([Work(held.session)])
    assert held.tokens == free.tokens and held.finish == free.finish, "and then all of it is right at once"
    engine.close(held.session)
    plain.close(free.session)


def test_a_hold_of_nothing_is_refused(engine):
    with pytest.raises(ValueError, match="at least one token"):
        engine.submit(engine.open("none", PROMPT), Sampling(), max_tokens=4, hold=0)


def test_nobody_waits_for_a_reply_that_nobody_asked_for(host, monkeypatch):
    """Nothing of it is done before the caller who waits has a clause, unless its prompt is overdue."""
    monkeypatch.setattr("engine.schedule.PREFILL_S", 3600.0)
    for name in ("ahead", "asked"):
        host.handle(records.Open(name, seed=1))
    host.handle(submit("ahead", hold=10, ahead=len(PROMPT)))
    host.handle(submit("asked"))
    progress = [event for event in run(host) if isinstance(event, records.Progress)]
    clause = next(at for at, event in enumerate(progress) if event.session == "asked" and event.clause_ends)
    assert {event.session for event in progress[:clause]} == {"asked"}
    assert "ahead" in {event.session for event in progress}
    assert not host.busy
    host.handle(records.Release("ahead", 1))
    assert host.busy
    events = run(host)
    assert isinstance(events[-1], records.Ended) and events[-1].reply_tokens == 20


@pytest.mark.parametrize("scheduler", [DeadlineScheduler, ArrivalScheduler])
@pytest.mark.parametrize("rate", [0.1, 1000.0], ids=["slow voice", "fast voice"])
@pytest.mark.parametrize("others", [False, True], ids=["alone", "beside others"])
def test_no_more_is_made_ahead_than_is_spoken_for_a_while(engine, scheduler, rate, others):
    """Two seconds of speech do until the caller has asked for them; the reply is the same."""
    reply = {}
    engine.open("other", PROMPT)
    for name, hold in (("asked", None), ("ahead", 40)):
        host = EngineHost(
            engine, scheduler(8, rate), lambda command: ReplyReader(codec(), command.stop_strings), grammars()
        )
        if others:
            host.handle(records.Sync("other", len(PROMPT)))
        host.handle(records.Open(name, seed=1))
        host.handle(
            records.Submit(name, 1, 0, QUESTION, Sampling(), max_tokens=40, stop_tokens=codec().stop_tokens, hold=hold)
        )
        before = run(host)
        if hold:
            clauses = [event.clause_ends for event in before if isinstance(event, records.Progress)]
            stops = scheduler is DeadlineScheduler and rate < 1.0 and others
            assert not stops or (clauses[-1] and not any(clauses[:-1]))
            assert stops == (len(tokens_of(before, name)) < len(reply["asked"]))
            host.handle(records.Release(name, 1))
            before += run(host)
        reply[name] = tokens_of(before, name)
    assert len(reply["asked"]) > 10 and reply["ahead"] == reply["asked"]


def test_the_books_of_a_hypothesis(host):
    host.handle(records.Open("call", PROMPT[:10]))
    run(host)

    def told(keep, tokens, number):
        events = host.handle(records.Sync("call", keep, tokens, len(tokens), number)) + run(host)
        return [event for event in events if isinstance(event, records.Prefilled)]

    # One token of the history was pending, and the last of a hypothesis stays so: it is computed with the reply.
    assert told(10, PROMPT[10:20], 1) == [records.Prefilled("call", 1, tokens=10, rewound=0, computed=10)]
    # Another one from its sixth token on; the fifth is computed again.
    assert told(10, (*PROMPT[10:15], 50, 51), 2) == [records.Prefilled("call", 2, tokens=7, rewound=5, computed=3)]
    assert told(10, (*PROMPT[10:15], 50, 51), 3) == [records.Prefilled("call", 3, tokens=7, rewound=0, computed=1)]
    host.handle(records.Submit("call", 1, 10, (*PROMPT[10:15], 50, 51, 52), Sampling(), max_tokens=2))
    (ended,) = [event for event in run(host) if isinstance(event, records.Ended)]
    assert (ended.stats.cached_tokens, ended.stats.prefilled_ahead, ended.stats.rewound) == (16, 6, 5)
    host.handle(records.Submit("call", 2, ended.log_tokens, PROMPT[:3], Sampling(), max_tokens=2))
    (ended,) = [event for event in run(host) if isinstance(event, records.Ended)]
    assert (ended.stats.prefilled_ahead, ended.stats.rewound) == (0, 0)


def test_a_command_without_a_number_is_not_answered(host):
    host.handle(records.Open("call", PROMPT[:10]))
    host.handle(records.Sync("call", 10, PROMPT[10:20], 10))
    assert not any(isinstance(event, records.Prefilled) for event in run(host))


def test_the_releases_of_what_is_over_or_never_was_change_nothing(host):
    host.handle(records.Open("call"))
    host.handle(submit("call", hold=5, ahead=len(PROMPT)))
    run(host)
    host.handle(records.Cancel("call", 1))
    log = list(host.engine.session("call").tokens)
    assert host.handle(records.Release("call", 1)) == [] and not run(host)
    assert host.engine.session("call").tokens == log
    (failed,) = host.handle(records.Release("nobody", 1))
    assert isinstance(failed, records.Failed) and failed.reason == "UnknownSession"


def test_a_log_that_is_cut_to_what_was_computed_lets_others_try_for_pages_again(host):
    for name in ("cut", "waits"):
        host.handle(records.Open(name, PROMPT))
    run(host)
    waits = host.engine.session("waits")
    for tokens in (PROMPT[:8], ()):  # more to read, and then all of it taken back
        waits.stall()
        host.handle(records.Sync("cut", len(PROMPT), tokens, 0))
        assert waits.stalled == bool(tokens)


# Whoever reads does not keep up


def tokens_of(events, name):
    return [token for e in events if isinstance(e, records.Progress) and e.session == name for token in e.tokens]


@pytest.mark.parametrize("told", [1, 2, 5])
def test_a_reply_held_for_its_reader_stands_still_alone_and_goes_on_as_if_it_had_not(host, told):
    for name in ("free", "held", "other"):
        host.handle(records.Open(name, seed=1))
    free = tokens_of(host.handle(submit("free")) + run(host), "free")
    host.handle(submit("held"))
    events = []
    while len(tokens_of(events, "held")) < told:
        events += host.advance()
    assert host.handle(records.Hold("held", 1)) == []
    said = tokens_of(events, "held")
    assert said == free[: len(said)] and not host.busy
    events += host.handle(submit("other")) + run(host)
    assert tokens_of(events, "other") == free and tokens_of(events, "held") == said
    assert host.beat().backlog_s == 0.0
    events += host.handle(records.Release("held", 1)) + run(host)
    assert tokens_of(events, "held") == free
    ends = {event.session: event for event in events if isinstance(event, records.Ended)}
    assert ends["held"].stats.held_seconds > 0.0 == ends["other"].stats.held_seconds
    assert ends["held"].stats.cached_tokens == ends["other"].stats.cached_tokens == 0


def test_a_held_reply_can_be_cancelled_and_its_wait_is_accounted(host):
    host.handle(records.Open("call", seed=1))
    host.handle(submit("call"))
    while not tokens_of(host.advance(), "call"):
        pass
    host.handle(records.Hold("call", 1))
    (ended,) = host.handle(records.Cancel("call", 1))
    assert (ended.finish, ended.stats.held_seconds > 0.0) == ("cancelled", True)


def test_holds_of_what_is_over_made_ahead_or_never_was_change_nothing(host):
    host.handle(records.Open("call", seed=1))
    host.handle(submit("call", hold=5, ahead=len(PROMPT)))
    assert host.handle(records.Hold("call", 1)) == []
    assert len(tokens_of(run(host), "call")) == 5  # as far as it may be made ahead, and no further
    host.handle(records.Release("call", 1))
    assert host.handle(records.Hold("call", 2)) == host.handle(records.Hold("nobody", 1)) == []
    (ended,) = [event for event in run(host) if isinstance(event, records.Ended)]
    assert ended.reply_tokens == 20 and ended.stats.held_seconds == 0.0
    assert host.handle(records.Hold("call", 1)) == [] and not host.busy


def test_a_beat_says_what_there_is_and_what_waits(host):
    idle = host.beat()
    assert (idle.sessions, idle.pages_in_use, idle.backlog_s) == (0, 0, 0.0)
    assert idle.pages_total == host.engine.target.pool.num_pages
    host.handle(records.Open("warm", PROMPT))
    run(host)
    assert host.beat().token_s > 0.0 == host.beat().backlog_s
    host.handle(records.Open("one", PROMPT))
    one = host.beat().backlog_s
    host.handle(records.Open("two", PROMPT * 3))
    two = host.beat().backlog_s
    assert 0.0 < one < two
    run(host)
    assert host.beat().backlog_s == 0.0 < host.beat().pages_in_use
