"""Who asks for a form that nobody has announced waits for its grammar; nobody else does, and nothing is lost."""

from __future__ import annotations

import itertools
import json
from functools import partial

from engine import records
from engine.config import EngineConfig
from engine.constraint import Constraint, JsonConstraint
from engine.engine import Engine
from engine.host import EngineHost
from engine.interfaces import Grammar
from engine.load import load_target_for, reader_of
from engine.policy import FixedPolicy
from engine.proposers.none import NoProposer
from engine.sampling import Sampling
from engine.schedule import DeadlineScheduler
from tests.engine.embedded import MODEL, codec, grammars

PROMPT = tuple(codec().encode("Hello, how can I help you today?"))
SCHEMA = JsonConstraint(json.dumps({"type": "object", "properties": {"day": {"enum": ["Monday", "Friday"]}}}))


class SlowGrammars:
    """The real ones, that take as long as the test lets them."""

    def __init__(self) -> None:
        self.done = False
        self.asked: list[Constraint] = []

    def prepare(self, constraint: Constraint) -> None:
        self.asked.append(constraint)
        grammars().prepare(constraint)

    def ready(self, constraint: Constraint) -> bool:
        return self.done

    def grammar(self, constraint: Constraint) -> Grammar:
        assert self.done, "it would have been waited for"
        return grammars().grammar(constraint)


def host() -> tuple[EngineHost, SlowGrammars]:
    slow = SlowGrammars()
    engine = Engine(load_target_for(EngineConfig(str(MODEL), pool_tokens=4096)), NoProposer(), FixedPolicy(1))
    return EngineHost(engine, DeadlineScheduler(256), partial(reader_of, codec()), slow), slow


def submit(session: str, turn: int, constraint: Constraint | None, max_tokens: int = 12) -> records.Submit:
    return records.Submit(session, turn, len(PROMPT), (), Sampling(), max_tokens, constraint=constraint)


def run(made: EngineHost, steps: int = 10_000) -> list[records.Event]:
    events: list[records.Event] = []
    for _ in range(steps):
        if not made.busy:
            break
        events += made.advance()
    return events


def text(events: list[records.Event], session: str, turn: int) -> str:
    found = (event for event in events if isinstance(event, records.Progress))
    return "".join(event.text for event in found if (event.session, event.turn) == (session, turn))


def test_only_the_session_that_asked_waits() -> None:
    made, slow = host()
    for name in ("plain", "formed"):
        made.handle(records.Open(name, PROMPT))
    assert made.handle(submit("formed", 1, SCHEMA)) == []
    made.handle(submit("plain", 1, None))
    events = run(made, 200)
    assert [event.session for event in events if isinstance(event, records.Ended)] == ["plain"]
    slow.done = True
    events = run(made)
    assert json.loads(text(events, "formed", 1)) in [{"day": "Monday"}, {"day": "Friday"}, {}]


def test_what_comes_after_waits_behind_it_in_order() -> None:
    made, slow = host()
    made.handle(records.Open("a", PROMPT))
    sent = [
        submit("a", 1, SCHEMA),
        records.Fork("a", "b"),
        submit("b", 1, None),
        records.Sync("a", len(PROMPT), ()),
        submit("a", 2, None),
    ]
    assert list(itertools.chain(*map(made.handle, sent))) == []
    run(made, 50)
    slow.done = True
    events = run(made)
    ended = [(event.session, event.turn, event.finish) for event in events if isinstance(event, records.Ended)]
    assert ended[0] == ("a", 1, "cancelled") and {end[:2] for end in ended[1:]} == {("a", 2), ("b", 1)}
    assert text(events, "a", 2) == text(events, "b", 1) != ""
    assert not [event for event in events if isinstance(event, records.Failed)]


def test_a_session_that_is_closed_meanwhile_leaves_nothing() -> None:
    made, slow = host()
    made.handle(records.Open("a", PROMPT))
    made.handle(submit("a", 1, SCHEMA))
    made.handle(records.Close("a"))
    slow.done = True
    run(made)
    assert not made.busy and made.beat().pages_in_use == 0


def test_a_form_that_cannot_be_enforced_fails_its_own_reply_and_nothing_behind_it() -> None:
    made, slow = host()
    made.handle(records.Open("a", PROMPT))
    more = tuple(codec().encode(" Now?"))
    impossible = JsonConstraint('{"type": "object", "minProperties": "x"}')
    made.handle(records.Submit("a", 1, len(PROMPT), more, Sampling(), 12, constraint=impossible))
    made.handle(records.Sync("a", len(PROMPT) + 1, ()))  # it counts on what the reply was asked behind
    made.handle(records.Submit("a", 2, len(PROMPT) + 1, (), Sampling(), 5))
    slow.done = True
    events = run(made)
    (failed,) = [event for event in events if isinstance(event, records.Failed)]
    assert (failed.session, failed.turn, failed.reason) == ("a", 1, "InvalidConstraint")
    assert [event.turn for event in events if isinstance(event, records.Ended)] == [2]


def test_the_log_is_prefilled_while_the_reply_waits() -> None:
    made, slow = host()
    made.handle(records.Open("a", PROMPT))
    made.handle(records.Submit("a", 1, len(PROMPT), (5, 6, 7), Sampling(), 5, constraint=SCHEMA))
    run(made, 20)
    assert made.engine.session("a").cache.length == len(PROMPT) + 2
    slow.done = True
    (ended,) = [event for event in run(made) if isinstance(event, records.Ended)]
    assert ended.stats.cached_tokens == len(PROMPT) + 2
