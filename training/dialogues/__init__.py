"""Telephone calls of small businesses, written by a grammar: policy from the context, wording at random.
Deterministic for a seed.
"""

import dataclasses
import random
from dataclasses import dataclass
from typing import Any

from training.dialogues import flows
from training.dialogues.business import Business, Rules, business
from training.dialogues.call import Call, Split

__all__ = ["Business", "Dialogue", "Rules", "Split", "dialogue", "drill"]


AS_TRAINED = Split()


@dataclass(frozen=True)
class Dialogue:
    """One call: `messages` and `tools` as a chat template takes them, and where it came from."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    intents: tuple[str, ...]
    split: Split


def _open(rng: random.Random, split: Split) -> Call:
    shop = business(rng, split.names)
    lower = rng.random() < 0.15
    noise = rng.choice((0.0, 0.0, 0.02, 0.05, 0.1))
    call = Call(rng, shop, split, lower, noise)
    call.messages.append({"role": "system", "content": shop.system_prompt()})
    return call


def dialogue(seed: int, split: Split = AS_TRAINED, intents: int | None = None) -> Dialogue:
    """The call that `seed` stands for, with `intents` wishes (default: one to four, rarely more)."""
    rng = random.Random(f"dialogue {seed} {split}")
    call = _open(rng, split)
    count = intents or rng.choices((1, 2, 3, 4, 6, 8), (40, 30, 15, 8, 4, 3))[0]
    if rng.random() < 0.5:
        call.agent("greet", "offer_help")
    elif rng.random() < 0.5:
        call.caller(call.caller_line("hello", {}))
        call.agent("greet", "offer_help")
    else:
        call.pending = call.caller_line("hello", {}) if rng.random() < 0.5 else None
    if rng.random() < 0.06:
        flows.small_talk(call)
    done = []
    for index in range(count):
        if index:
            call.pending = call.caller_line("something_else", {}) if rng.random() < 0.6 else None
        done.append(_one_intent(call))
        if done[-1] == "transfer" and call.business.rules.transfer:
            break
    else:
        call.caller(call.caller_line("thanks", {}))
        call.agent("welcome", "bye")
    return Dialogue(call.messages, call.business.tools(), tuple(done), split)


def _one_intent(call: Call) -> str:
    if call.split.intents:
        names = [name for name in flows.HELD_OUT if name != "ask_free" or call.business.rules.check]
        name = call.rng.choice(names)
        flows.HELD_OUT[name](call)
        return name
    name = call.rng.choices(list(flows.TRAINED), (34, 15, 15, 12, 8, 16))[0]
    flows.TRAINED[name](call)
    return name


def drill(seed: int, split: Split = AS_TRAINED) -> Dialogue:
    """A short call that is all copying: the caller says everything at once and the first tool call ends it."""
    rng = random.Random(f"drill {seed} {split}")
    call = _open(rng, split)
    rules = dataclasses.replace(call.business.rules, confirm=False, check=False)
    call.business = dataclasses.replace(call.business, rules=rules, facts={})
    call.messages[0]["content"] = "\n".join(
        line for line in call.business.system_prompt().split("\n") if not line.startswith("Hours")
    )
    call.generous = True
    name = rng.choices(("book", "message", "cancel", "move", "transfer"), (6, 3, 2, 2, 1))[0]
    flows.TRAINED[name](call)
    end = next(i for i, turn in enumerate(call.messages) if "tool_calls" in turn)
    return Dialogue(call.messages[: end + 1], call.business.tools(), (name,), split)
