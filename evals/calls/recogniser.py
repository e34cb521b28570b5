"""What a streaming recogniser says of a line while it is spoken: word-timed hypotheses, revised as it hears more.

Modelled on recognisers that find ends of turns themselves: an update a quarter of a second, the last words often wrong
at first, punctuation once the next word has begun, an eager end of turn in a pause that may be one, and the end of the
turn some time later, usually with the same text (Deepgram's Flux documents this order of events).
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from evals.calls import Heard, Kind, SpokenTurn
from training.dialogues.words import words

UPDATE_MS = 250
LATENCY_MS = 120
"""From the end of a word to the first hypothesis that may hold it."""
MS_PER_CHARACTER = (55, 75)
"""About 160 words a minute."""
HESITATION, HESITATION_MS = 0.06, (300, 900)
SENTENCE_PAUSE_MS = (150, 600)
MISHEARD = 0.12
"""Of words: how often the first guess is another one; it stands for CORRECTED_MS."""
CORRECTED_MS = (200, 700)
SETTLED_MS = 900
"""A word this old is not revised any more."""
EAGER_MS = 240
"""Silence behind a sentence after which a turn is probably over."""
NO_EAGER = 0.1
COMMITTED_MS = (120, 650)
"""From an eager end to the final."""
REFORMATTED, REWORDED = 0.06, 0.03
"""Of turns: how often the final has other punctuation than the eager end, and another word."""


@dataclass(frozen=True)
class Word:
    """text: with its punctuation. guess: what is heard first, until ``corrected_ms``."""

    text: str
    start_ms: int
    end_ms: int
    guess: str
    corrected_ms: int


def speak(rng: random.Random, line: str, *, says_stable: bool) -> SpokenTurn:
    """A turn in which the line is said. says_stable: whether this recogniser tells which words are settled."""
    spoken = _timed(rng, line.split())
    over = spoken[-1].end_ms
    eager = rng.random() >= NO_EAGER
    ends = _eager_ends(spoken)
    final_ms = over + EAGER_MS + rng.randint(*COMMITTED_MS)
    events: list[Heard] = []
    for at in range(UPDATE_MS, over + LATENCY_MS + UPDATE_MS, UPDATE_MS):
        text, stable = _hypothesis(spoken, at)
        if text and (not events or text != events[-1].text):
            events.append(Heard(at, Kind.PARTIAL, text, stable if says_stable else None))
    for silent_ms, resumed_ms in ends if eager else ():
        text = _hypothesis(spoken, silent_ms + EAGER_MS, whole=True)[0]
        events.append(Heard(silent_ms + EAGER_MS, Kind.EAGER, text))
        events.append(Heard(resumed_ms, Kind.RESUMED, ""))
    last = line
    if eager:
        if rng.random() < REWORDED:
            last = _reworded(rng, last)
        events.append(Heard(over + EAGER_MS, Kind.EAGER, last))
        events = [heard for heard in events if heard.kind is not Kind.PARTIAL or heard.at_ms < over + EAGER_MS]
        if rng.random() < REFORMATTED:
            line = line[:-1] if line[-1] in ".?!" else line + "."
    events.append(Heard(final_ms, Kind.FINAL, line))
    return SpokenTurn(tuple(sorted(events, key=lambda heard: heard.at_ms)))


def _timed(rng: random.Random, line: list[str]) -> list[Word]:
    found, now = [], 0
    rate = rng.uniform(*MS_PER_CHARACTER)
    misheard = words("misheard")
    for at, text in enumerate(line):
        if at and line[at - 1][-1] in ".?!":
            now += rng.randint(*SENTENCE_PAUSE_MS)
        elif at and rng.random() < HESITATION:
            now += rng.randint(*HESITATION_MS)
        end = now + round(rate * (len(text) + 1) * rng.uniform(0.8, 1.2))
        guess = rng.choice(misheard) if rng.random() < MISHEARD and text.isalpha() else text
        found.append(Word(text, now, end, guess, end + rng.randint(*CORRECTED_MS)))
        now = end
    return found


def _hypothesis(spoken: list[Word], now: int, *, whole: bool = False) -> tuple[str, int]:
    """The text at a time, and how much of it will stay. whole: no word is in doubt any more."""
    heard = [word for word in spoken if word.end_ms + LATENCY_MS <= now or (whole and word.end_ms <= now)]
    parts, stable = [], 0
    for at, word in enumerate(heard):
        text = word.guess if now < word.corrected_ms and not whole else word.text
        if at == len(heard) - 1 and not whole:
            text = text.rstrip(".,?!;")  # until the next word is there
        parts.append(text)
        settled = word.end_ms + SETTLED_MS <= now and at < len(heard) - 1
        if settled and stable == len(" ".join(parts[:-1])):
            stable = len(" ".join(parts))
    return " ".join(parts), stable


def _eager_ends(spoken: list[Word]) -> list[tuple[int, int]]:
    """(silent from, speech again heard at) of the pauses inside a turn that sound like its end."""
    pairs = itertools.pairwise(spoken)
    return [
        (word.end_ms, after.start_ms + LATENCY_MS)
        for word, after in pairs
        if word.text[-1] in ".?!" and after.start_ms - word.end_ms > EAGER_MS
    ]


def _reworded(rng: random.Random, line: str) -> str:
    """The line with one word heard otherwise."""
    parts = line.split(" ")
    at = rng.randrange(len(parts))
    parts[at] = rng.choice(words("misheard"))
    return " ".join(parts)
