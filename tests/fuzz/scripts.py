"""Draws scripts: calls that are mostly in order, with something wrong now and then, in any of the ways there are."""

from __future__ import annotations

import random

from firstword.v1 import call_service_pb2 as call_pb
from tests.fuzz.damage import damaged
from tests.fuzz.events import Events
from tests.fuzz.script import Resume, Script, Send, Step, Wait

PODS = 2
LENGTHS = (0, 1, 2, 3, 5, 8, 8, 12, 20)


def drawn(seed: int) -> Script:
    """The script of a seed."""
    rng = random.Random(seed)
    events, steps = Events(rng), list[Step]()
    wrong = rng.choice((0.0, 0.05, 0.3))
    """Share of the events that are damaged."""
    if rng.random() < 0.97:
        steps.append(_sent(rng, events.open(), wrong))
    if rng.random() < 0.7:
        steps.append(Wait("event", 1.0))
    for _ in range(rng.choice(LENGTHS)):
        steps += _some(rng, events, wrong)
    end = rng.choice(("close", "close", "forget", "half_close", "cancel"))
    return Script(seed, rng.randrange(PODS), tuple(steps), rng.random() < 0.5, end)


def _some(rng: random.Random, events: Events, wrong: float) -> list[Step]:
    """An event or two, or something else that a client may do."""
    kind = rng.random()
    if kind < 0.50:
        return [_sent(rng, events.next(), wrong)]
    if kind < 0.72:
        return [_sent(rng, events.commits(), wrong), Wait("turn", 1.0)]
    if kind < 0.80:
        return [Wait("event", 0.02)]
    if kind < 0.85:
        return [Wait("time", rng.choice((0.0, 0.001, 0.01)))]
    if kind < 0.91:
        return [Send(events.tool_result().SerializeToString(), call=rng.choice((1, 1, 2)))]
    if kind < 0.97:
        return [_resume(rng)]
    if kind < 0.995:
        return [Send(events.next().SerializeToString(), times=rng.choice((2, 3)))]
    return [Send(events.next().SerializeToString(), times=rng.choice((40, 300)))]


def _sent(rng: random.Random, request: call_pb.CallRequest, wrong: float) -> Send:
    return Send(damaged(rng, request) if rng.random() < wrong else request.SerializeToString())


def _resume(rng: random.Random) -> Resume:
    return Resume(
        before=rng.choice(("cancel", "cancel", "nothing", "half_close")),
        pod=rng.randrange(PODS),
        take_over=rng.random() < 0.5,
        forget=rng.choice((0, 0, 0, 1, 3, 100)),
        damage=rng.randrange(1, 2**31) if rng.random() < 0.2 else 0,
    )
