"""Which words of a text may be passed over for what was spoken in their place, without knowing how they are spoken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from service.heard.words import Words

_CONSONANTS = frozenset("bcdfghjklmnpqrstvwxz")
_LONGEST_SHORTENED = 4
"""Letters of a word that may be an abbreviation with a full stop behind it."""


class Written(NamedTuple):
    """A word as it is written. is_plain: nothing shows that it is spoken otherwise, as figures, capitals and
    abbreviations do. is_number, is_compound: it has figures, and something between them, as 2,50 and 16:30 have.
    """

    letters: str
    is_plain: bool
    is_number: bool
    is_compound: bool


def written(said: Words, start: int, end: int) -> Iterator[Written]:
    """The words of a text from its part ``start`` up to ``end``, where words begin."""
    while start < end:
        behind = said.behind(start)
        begins, ends = said.starts[start], said.ends[behind - 1]
        yield _written("".join(said.parts[start:behind]), said.text[begins:ends], said.text[ends : ends + 1])
        start = behind


def _written(letters: str, text: str, mark: str) -> Written:
    is_shortened = mark == "." and len(letters) <= _LONGEST_SHORTENED
    is_plain = letters.isalpha() and not text.isupper() and not _CONSONANTS.issuperset(letters) and not is_shortened
    is_number = letters.isdecimal()
    return Written(letters, is_plain, is_number, is_number and len(text) > len(letters))


def may_be_spoken(passed: Sequence[Written], spoken: Sequence[str], *, then_ends: bool) -> bool:
    """Whether the words ``spoken`` may be all that is spoken for those that are ``passed`` over, in the text's order.

    Plain words that are among the spoken part both, and what is between them must fit. then_ends: the one word behind
    them is the last that was spoken, and may still be within a number: "2,50 Euro" is "zwei Euro fünfzig".
    """
    if then_ends and any(word.is_compound for word in passed):
        return False
    begin = heard = 0
    for place, word in enumerate(passed):
        if place and word.is_plain and word.letters in spoken[heard:]:
            found = spoken.index(word.letters, heard)
            if not _fits(passed[begin:place], found - heard):
                return False
            begin, heard = place + 1, found + 1
    return _fits(passed[begin:], len(spoken) - heard)


def _fits(passed: Sequence[Written], spoken: int) -> bool:
    """Whether so many words may be spoken for those: at least one for each, but that groups of figures may be one
    number. Behind a word that is not plain there is none that is: it would have been heard.
    """
    numbers = sum(one.is_number and other.is_number for one, other in pairwise(passed))
    plain = [word.is_plain for word in passed]
    return len(passed) - numbers <= spoken and (all(plain) or not any(plain[1:]))
