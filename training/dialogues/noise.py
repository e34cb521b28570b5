"""What a speech recogniser does to a caller's words. Owns fillers, repeats, misheard words, homophones, casing; never
touches a protected value.

Values (names, dates, ...) are put into a line between PROTECT and RELEASE, so that noise around them cannot damage
what a tool call must copy.
"""

import random
import re

from training.dialogues.words import words

PROTECT, RELEASE = "\x01", "\x02"
_FILLERS = ("um", "uh", "er", "like", "you know", "well", "so")
_HOMOPHONES = {
    "their": "there", "there": "their", "your": "you're", "you're": "your", "hear": "here", "here": "hear",
    "right": "write", "to": "too", "for": "four", "would": "wood", "see": "sea", "know": "no", "week": "weak",
    "wait": "weight", "by": "buy", "hi": "high",
}  # fmt: skip
_MISHEARD = words("misheard")
_DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_HOUR_WORDS = ("", *_DIGIT_WORDS[1:], "ten", "eleven", "twelve")


def protect(value: str) -> str:
    """`value` marked so that noise leaves it alone."""
    return f"{PROTECT}{value}{RELEASE}"


def spoken_phone(rng: random.Random, phone: str) -> str:
    """The number as words: five five five, one two three, ..."""
    groups = [" ".join(_DIGIT_WORDS[int(d)] for d in group) for group in phone.split("-")]
    return ", ".join(groups) if rng.random() < 0.5 else " ".join(groups)


def spoken_time(time: str) -> str:
    """3 pm as "three pm", 2:30 pm as "two thirty pm"."""
    clock, half = time.split(" ")
    hour, _, minutes = clock.partition(":")
    return " ".join(
        part
        for part in (
            _HOUR_WORDS[int(hour)],
            {"": "", "15": "fifteen", "30": "thirty", "45": "forty five"}[minutes],
            half,
        )
        if part
    )


def _disturb(rng: random.Random, words: list[str], rate: float) -> list[str]:
    out: list[str] = []
    for word in words:
        # A word that begins with punctuation hangs on the value before it: a filler would come between the two.
        if word[:1].isalnum() and rng.random() < rate:
            kind = rng.random()
            if kind < 0.3:
                out.append(rng.choice(_FILLERS) + ("," if rng.random() < 0.5 else ""))
            elif kind < 0.5 and word.isalpha():
                out.append(word)
            elif kind < 0.75 and word.isalpha():
                word = rng.choice(_MISHEARD)
            elif word in _HOMOPHONES:
                word = _HOMOPHONES[word]
        out.append(word)
    return out


def recognise(rng: random.Random, line: str, rate: float, lower: bool) -> str:
    """The line as the recogniser heard it: `rate` disturbances per word; `lower` drops casing and punctuation as
    plain recognisers do.
    """
    pieces = re.split(f"({PROTECT}[^{RELEASE}]*{RELEASE})", line)
    heard = []
    for piece in pieces:
        if piece.startswith(PROTECT):
            heard.append(piece[1:-1])
        else:
            heard.append(" ".join(_disturb(rng, piece.split(" "), rate)))
    text = re.sub(r" +", " ", "".join(heard)).strip()
    if lower:
        # Hyphens, colons and slashes hold phone numbers and times together.
        return re.sub(r" +", " ", re.sub(r"[.,?!;]", "", text)).strip().lower()
    return text[0].upper() + text[1:]
