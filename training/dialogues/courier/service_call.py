"""One call to a courier's service line being written: turns, tool calls and their results. Owns how clauses become
turns and what is true of a parcel; the flows decide which clauses.
"""

import random
import re
from dataclasses import dataclass, field
from typing import Any

from training.dialogues.call import tool_turns
from training.dialogues.courier import values
from training.dialogues.courier.company import Company
from training.dialogues.courier.wording import AGENT, CALLER
from training.dialogues.courier.wording.caller_talk import CORRECTIONS, OPENERS
from training.dialogues.noise import PROTECT, protect, recognise
from training.dialogues.phrases import evenly, expand, fill, pick

OPENER_RATE, CORRECTION_RATE, WORDS_RATE = 0.18, 0.06, 0.08
OPENED = ("track", "redirect", "claim", "collect", "complain", "give_", "ask_")
"""Acts, by how they begin, that an opener may stand before: those that answer no proposal."""
ADDRESSED = ", <sir>"
Parcel = dict[str, Any]


def sentences(text: str) -> str:
    """`text` with a capital at the start of every sentence."""
    return re.sub(rf"(^|[.?!] )({PROTECT}?)([a-z])", lambda hit: hit[1] + hit[2] + hit[3].upper(), text)


def uncapitalised(line: str) -> str:
    """`line` as it goes on behind an opener and a comma."""
    return line if re.match(r"I\b", line) else line[0].lower() + line[1:]


@dataclass
class ServiceCall:
    """The state of one call while it is written. `number` is the parcel spoken of, `name` the caller's once said."""

    rng: random.Random
    company: Company
    sir: str
    lower: bool
    messages: list[dict[str, Any]] = field(default_factory=list)
    parcels: dict[str, Parcel] = field(default_factory=dict)
    number: str | None = None
    name: str | None = None
    pending: tuple[str, ...] = ()  # lines of the caller that wait for the next ones
    asides: int = 1  # questions that the caller still puts in between

    # -- what the caller says

    def line(self, act: str, **slots: str) -> str:
        """A line of the act; every value in it is protected."""
        text = expand(self.rng, evenly(self.rng, CALLER[act]), evenly)
        if act.startswith(OPENED) and not self.pending and self.rng.random() < OPENER_RATE:
            text = f"{evenly(self.rng, OPENERS)}, {uncapitalised(text)}"
        spoken = {key: protect(self._spoken(act, key, value)) for key, value in slots.items()}
        return fill(text, {"company": protect(self.company.name), **spoken})

    def _spoken(self, act: str, key: str, value: str) -> str:
        """A value as it is said: a number now and then in words, some values first said wrong."""
        rng = self.rng
        if key == "number" and rng.random() < WORDS_RATE:
            return values.spoken_number(rng, value)
        if key in ("number", "address") and not act.startswith("correct_") and rng.random() < CORRECTION_RATE:
            misread = {"number": values.misread_number, "address": values.misspoken_address}[key]
            return f"{misread(rng, value)}, {evenly(rng, CORRECTIONS)}{value}"
        return value

    def caller(self, *lines: str) -> None:
        """The caller's turn: what was pending, then `lines`."""
        text = sentences(" ".join((*self.pending, *lines)))
        self.pending = ()
        self.messages.append({"role": "user", "content": recognise(self.rng, text, 0.0, self.lower)})

    # -- what the clerk says and does

    def agent(self, *acts: str, **slots: str) -> None:
        """A spoken turn of several clauses, each worded independently."""
        shop = self.company
        always = {"company": shop.name, "depot": shop.depot, "greeting": shop.greeting, "prefix": shop.prefix}
        always |= {"sir": self.name or self.sir}
        text = ""
        for act in acts:
            clause = expand(self.rng, pick(self.rng, AGENT[act]))
            if ADDRESSED in text:  # once a turn is enough
                clause = clause.replace(ADDRESSED, "")
            text = f"{text} {clause}".lstrip()
        self.messages.append({"role": "assistant", "content": sentences(fill(text, always | slots))})

    def tool(self, name: str, result: dict[str, Any], /, **arguments: str) -> None:
        """A tool call and what came of it."""
        self.messages += tool_turns(name, arguments, result)

    # -- what is true

    def new_number(self) -> str:
        return values.tracking_number(self.rng, self.company.prefix)

    def new_reference(self, letters: str) -> str:
        return f"{letters}{self.rng.randint(10000, 99999)}"

    def day(self, last_weekday: int = 5) -> values.Day:
        """A coming day, by default one on which vans deliver."""
        return values.coming_day(self.rng, self.company.today, last_weekday)

    def window(self, first: int) -> dict[str, str]:
        """Two or three hours of a day, beginning no earlier than `first`."""
        start = self.rng.randint(first, max(first, 16))
        return {"from": f"{start:02}:00", "to": f"{start + self.rng.randint(2, 3):02}:00"}

    def parcel(self, number: str) -> Parcel:
        """What the records say of a parcel, the same whenever it is looked up."""
        if number not in self.parcels:
            self.parcels[number] = self._new_parcel()
        return self.parcels[number]

    def _new_parcel(self) -> Parcel:
        rng = self.rng
        status = rng.choices(("in transit", "out for delivery", "delivered", "delayed", "held"), (9, 4, 5, 4, 5))[0]
        if status == "in transit":
            return {"status": status, "at": rng.choice(values.TOWNS), "due": self.day().said}
        if status == "out for delivery":
            return {"status": status, **self.window(int(self.company.clock[:2]) + 1)}
        if status == "delivered":
            signed = rng.choice(values.RECEIVERS) if rng.random() < 0.4 else values.titled_name(rng, rng.choice(SIRS))
            return {"status": status, "day": values.past_day(rng, self.company.today).said, "signed": signed}
        if status == "delayed":
            return {"status": status, "cause": rng.choice(values.DELAYS), "due": self.day().said}
        cause = values.NO_ADDRESS if rng.random() < 0.4 else rng.choice(values.HELD_CAUSES)
        return {"status": status, "cause": cause, "until": self.day().said}


SIRS = ("sir", "madam")
