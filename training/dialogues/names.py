"""Open-ended values: people, phone numbers, booking ids. Owns their train/held-out split, by hash of every single word.

A word of a held-out name never occurs in a training name, neither as first nor as last name, nor in a business's name.
"""

import random
import zlib

from training.dialogues.words import words

HELD_OUT_CLASSES = 8
SYNTHETIC_SHARE = 0.5

FIRST = words("first_names")
LAST = words("last_names")
_ONSETS = words("onsets")
_VOWELS = words("vowels")
_CODAS = words("codas")
LETTERS_SHARE = 0.05
"""Share of made words that are letters at random: what can only be copied letter by letter."""


def is_held_out(word: str) -> bool:
    """Whether this word of a name is never trained on."""
    return zlib.crc32(word.lower().encode()) % HELD_OUT_CLASSES == 0


def _synthetic(rng: random.Random) -> str:
    if rng.random() < LETTERS_SHARE:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 8))).capitalize()
    syllables = rng.choices((1, 2, 3), (3, 8, 2))[0]
    made = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables))
    return (made + rng.choice(_CODAS).strip(".")).capitalize()


def word(rng: random.Random, real: list[str], held_out: bool) -> str:
    """One word of a name: from the list `real` or made of syllables."""
    while True:
        candidate = _synthetic(rng) if rng.random() < SYNTHETIC_SHARE else rng.choice(real)
        if len(candidate) > 2 and is_held_out(candidate) == held_out:
            return candidate


def person(rng: random.Random, held_out: bool) -> str:
    """A full name; one in eight callers gives the first name alone."""
    first = word(rng, FIRST, held_out)
    return first if rng.random() < 0.125 else f"{first} {word(rng, LAST, held_out)}"


def phone(rng: random.Random) -> str:
    """A number in the recogniser's grouping, 555-123-4567, sometimes without the area code."""
    digits = "".join(rng.choice("0123456789") for _ in range(7))
    local = f"{digits[:3]}-{digits[3:]}"
    return local if rng.random() < 0.15 else f"{rng.randint(201, 989)}-{local}"


def booking_id(rng: random.Random) -> str:
    """An id as a booking system makes them, K4821."""
    return rng.choice("ABCDEFGHJKLMNPRSTVWXYZ") + str(rng.randint(1000, 9999))
