"""One telephone call being written: turns, tool calls and their results. Owns how clauses become turns; the flows
decide which clauses.
"""

import json
import random
from dataclasses import dataclass, field
from typing import Any

from training.dialogues import names
from training.dialogues.agent_wording import AGENT
from training.dialogues.business import MONTHS, WEEKDAYS, Business, article, ordinal
from training.dialogues.caller import CALLER
from training.dialogues.caller.framing import CLOSERS, CORRECTED, OPENERS
from training.dialogues.noise import PROTECT, RELEASE, protect, recognise, spoken_phone, spoken_time
from training.dialogues.phrases import evenly, expand, fill, pick, template_ids

OPENER_RATE, CLOSER_RATE = 0.15, 0.06
UNCOUNTED = {"highlights", "baby photos", "whitening", "color"}


@dataclass(frozen=True)
class Split:
    """Which halves of the split a call draws from: False is what is trained on, True what never is."""

    names: bool = False
    paraphrases: bool = False
    intents: bool = False

    @property
    def label(self) -> str:
        held = [key for key in ("names", "paraphrases", "intents") if getattr(self, key)]
        return "held " + "+".join(held) if held else "as trained"


def with_article(service: str) -> str:
    """ "an eye exam", "a haircut", "highlights"."""
    if service in UNCOUNTED:
        return service
    return f"{article(service)} {service}"


def on_date(date: str) -> str:
    """The date as it stands in a sentence: "on Tuesday", "tomorrow", "next Tuesday"."""
    return date if date == "tomorrow" or date.startswith("next ") else f"on {date}"


def random_date(rng: random.Random) -> str:
    """A day as callers say it."""
    kind = rng.random()
    if kind < 0.45:
        return rng.choice(WEEKDAYS[:6])
    if kind < 0.6:
        return f"next {rng.choice(WEEKDAYS[:6])}"
    if kind < 0.7:
        return "tomorrow"
    if kind < 0.9:
        return f"{rng.choice(MONTHS)} {ordinal(rng.randint(1, 30))}"
    return f"the {ordinal(rng.randint(1, 30))}"


def random_time(rng: random.Random) -> str:
    """A time in a working day, on the quarter hour."""
    hour = rng.randint(8, 18)
    minutes = rng.choice(("", "", "", ":30", ":30", ":15", ":45"))
    return f"{(hour - 1) % 12 + 1}{minutes} {'am' if hour < 12 else 'pm'}"


def tool_turns(name: str, arguments: dict[str, str], result: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages of a tool call and of what came of it."""
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": json.dumps(result)},
    ]


@dataclass
class Call:
    """The state of one call while it is written. `known` holds the caller's name and phone once they were said."""

    rng: random.Random
    business: Business
    split: Split
    lower: bool
    noise: float
    generous: bool = False  # the caller says all at once (drills)
    messages: list[dict[str, Any]] = field(default_factory=list)
    known: dict[str, str] = field(default_factory=dict)
    pending: str | None = None  # a caller's line that waits for the next one: "Yes, one more thing." + the next wish

    # -- what the caller says
    # -------------------------------------------------------------------------------------------------------------

    def caller_line(self, act: str, slots: dict[str, str]) -> str:
        templates = CALLER[act]
        held_out = self.split.paraphrases and len(templates) >= 5
        choices = template_ids(len(templates), held_out) or list(range(len(templates)))
        line = self._framed(expand(self.rng, templates[self.rng.choice(choices)], evenly))
        return fill(
            line,
            {
                "business": protect(self.business.name),
                **{key: self._spoken(key, value) for key, value in slots.items()},
            },
        )

    def _framed(self, line: str) -> str:
        """The line, now and then with an opener before it or a closer behind it."""
        rng = self.rng
        if rng.random() < OPENER_RATE:
            line = f"{self._of(OPENERS)}{rng.choice((',', '.', ','))} {line}"
        if rng.random() < CLOSER_RATE and line[-1] in ".?!":
            line = f"{line[:-1]}, {self._of(CLOSERS)}{line[-1]}"
        return line

    def _of(self, pool: list[str]) -> str:
        return pool[self.rng.choice(template_ids(len(pool), self.split.paraphrases))]

    def caller(self, *lines: str) -> None:
        text = " ".join(line[0].upper() + line[1:] for line in ([self.pending] if self.pending else []) + list(lines))
        self.pending = None
        self.messages.append({"role": "user", "content": recognise(self.rng, text, self.noise, self.lower)})

    def _spoken(self, key: str, value: str) -> str:
        """A value as it stands in the caller's line: protected, now and then spoken in words or corrected at once."""
        rng = self.rng
        if value.startswith(PROTECT):
            return value
        if key == "phone" and rng.random() < (0.2 if self.lower else 0.06):
            return protect(spoken_phone(rng, value))
        if key == "time" and rng.random() < 0.08:
            return protect(spoken_time(value))
        if key in ("on_date", "date", "time") and rng.random() < 0.04:
            wrong = random_time(rng) if key == "time" else (on_date if key == "on_date" else str)(random_date(rng))
            if wrong != value:
                return protect(f"{wrong}, {fill(expand(rng, CORRECTED[0], evenly), {'right': value})}")
        return protect(value)

    def when_slots(self, date: str, time: str) -> dict[str, str]:
        """The slots `when` ("on Tuesday at 3 pm") and `to_when` ("Tuesday at 3 pm")."""
        day, clock = self._spoken("on_date", on_date(date)), self._spoken("time", time)
        bare = self._spoken("date", date)
        when = self.rng.choice((f"{day} at {clock}", f"{day} at {clock}", f"at {clock} {day}"))
        return {"when": _inner(when), "to_when": _inner(f"{bare} at {clock}")}

    # -- what the receptionist says and does
    # ----------------------------------------------------------------------------------------------

    def agent(self, *acts: str, **slots: str) -> None:
        """A spoken turn of several clauses, each worded independently."""
        slots["business"] = self.business.name
        if "service" in slots:
            slots["a_service"] = with_article(slots["service"])
        if "date" in slots and "time" in slots:
            slots["on_date"] = on_date(slots["date"])
            slots["when"], slots["to_when"] = (
                f"{slots['on_date']} at {slots['time']}",
                f"{slots['date']} at {slots['time']}",
            )
        text = " ".join(self.agent_clause(act, slots) for act in acts)
        self.messages.append({"role": "assistant", "content": text})

    def agent_clause(self, act: str, slots: dict[str, str]) -> str:
        template = pick(self.rng, AGENT[act])
        if "provider" not in slots:
            template = template.replace("{ with <provider>|}", "")
        else:
            template = template.replace("{ with <provider>|}", " with <provider>")
        clause = fill(expand(self.rng, template), slots).strip()
        return clause[0].upper() + clause[1:]

    def tool(self, name: str, arguments: dict[str, str], result: dict[str, Any]) -> None:
        self.messages += tool_turns(name, arguments, result)

    def new_person(self) -> str:
        return names.person(self.rng, self.split.names)


def _inner(text: str) -> str:
    """A value made of protected parts, with the words between them protected too."""
    return protect(text.replace(PROTECT, "").replace(RELEASE, ""))
