"""Telephone calls to a parcel courier's service line, written by a grammar of their own: other vocabulary, another
agent and other tools than the small businesses of `training.dialogues`. Deterministic for a seed.
"""

import random

from training.dialogues import AS_TRAINED, Dialogue
from training.dialogues.courier import flows, values
from training.dialogues.courier.company import company, tools
from training.dialogues.courier.service_call import SIRS, ServiceCall

__all__ = ["dialogue"]

ROOM = 1750
"""Characters after which no further intent begins, so that a call fits the context."""


def dialogue(seed: int) -> Dialogue:
    """The call that `seed` stands for, with one to four intents."""
    rng = random.Random(f"courier {seed}")
    shop = company(rng)
    call = ServiceCall(rng, shop, rng.choice(SIRS), lower=rng.random() < 0.12)
    call.messages.append({"role": "system", "content": shop.system_prompt()})
    _open(call)
    wanted = rng.choices((1, 2, 3, 4), (45, 35, 15, 5))[0]
    done: list[str] = []
    while len(done) < wanted and sum(len(turn["content"]) for turn in call.messages) < ROOM:
        if done and rng.random() < 0.6:
            call.pending = (call.line("something_else"),)
        done.append(rng.choices(list(flows.INTENTS), flows.WEIGHTS)[0])
        flows.INTENTS[done[-1]](call)
    call.caller(call.line("thanks"))
    call.agent("welcome", "bye")
    return Dialogue(call.messages, tools(), tuple(done), AS_TRAINED)


def _open(call: ServiceCall) -> None:
    """Greetings; the name, where the standing orders want it first or the caller gives it unasked."""
    rng, first = call.rng, call.company.orders.name_first
    if rng.random() < 0.3:
        call.caller(call.line("hello"))
    name = values.titled_name(rng, call.sir)
    if first:
        call.agent("greet", "ask_name")
        call.caller(call.line("give_name", name=name))
        call.name = name
        call.agent("thank_name", "offer")
    else:
        call.agent("greet", "offer")
    if rng.random() < 0.08:
        call.caller(call.line("small_talk"))
        call.agent("small_talk", "offer")
    if not first and rng.random() < 0.2:
        call.pending = (call.line("give_name", name=name),)
        call.name = name
