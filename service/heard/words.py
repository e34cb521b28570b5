"""What makes up the words of a text, to compare it with another: letters and digits without case. Text that grows is
read on from where it has grown.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import regex

_RUNS = regex.compile(r"([0-9A-Za-z]+)(?![\p{GCB=EX}\p{GCB=SM}\p{GCB=ZWJ}])|\X")
"""Letters and digits that are a character each, and else what a reader takes for one character (a grapheme)."""

_CHARACTERS = regex.compile(r"\X")

_NO_SPACES = regex.compile(
    r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Bopomofo}\p{Script=Yi}\p{Line_Break=SA}ーｰ々〆〇]"
)
"""Scripts that put no spaces between words: Chinese, Japanese, Thai, Lao, Khmer, Burmese and their like."""

_UNSPOKEN = "™℠©®"

_WITHIN = "'’\u00ad\u200c\u200d\u2060"
"""What stands within a word: apostrophes, soft hyphens and joiners."""


class Words:
    """parts: the letters and digits, and those marks on them that make another letter. starts, ends: for each, where
    the character that it is of starts and ends in the text. begins: whether a word begins with it. alone: whether its
    script has no spaces; there each character counts as a word.
    """

    def __init__(self, text: str = "") -> None:
        self.text = ""
        self.parts: list[str] = []
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.begins: list[bool] = []
        self.alone: list[bool] = []
        self.become(text)

    def become(self, text: str) -> int:
        """Be the words of another text; returns how many parts have stayed. What both texts begin with is kept, but for
        the last character of it, which may be another one with what follows.
        """
        if text == self.text:
            return len(self.parts)
        same = len(self.text) if text.startswith(self.text) else _common(self.text, text)
        stayed = bisect_left(self.starts, same)
        start = self.starts[stayed - 1] if stayed else 0
        stayed = bisect_left(self.starts, start)
        for column in (self.parts, self.starts, self.ends, self.begins, self.alone):
            del column[stayed:]
        self.text = text
        self._read(start)
        return stayed

    def stayed_since(self, text: str) -> int:
        """How many parts are those that there were when the text was another one, as of ``become``."""
        if text == self.text:
            return len(self.parts)
        same = len(text) if self.text.startswith(text) else _common(text, self.text)
        stayed = bisect_left(self.starts, same)
        return bisect_left(self.starts, self.starts[stayed - 1]) if stayed else 0

    def begins_at(self, place: int) -> bool:
        """Whether a word begins there, or nothing is left."""
        return place == len(self.parts) or self.begins[place]

    def ends_at(self, place: int) -> bool:
        """Whether a word ends there."""
        return place <= len(self.parts) and self.begins_at(place)

    def may_change(self, place: int) -> bool:
        """Whether what comes behind the text may be there, or be of the character that is there."""
        return place >= len(self.parts) or self.starts[place] == self.starts[-1]

    def behind(self, place: int) -> int:
        """Where the word behind the one at ``place`` begins."""
        return next((at for at in range(place + 1, len(self.parts)) if self.begins[at]), len(self.parts))

    def within(self, end: int) -> int:
        """How many parts there are in the first ``end`` code points."""
        return bisect_right(self.ends, end)

    def character_end(self, end: int) -> int:
        """Where the character ends that the letter or digit before ``end`` is of."""
        place = bisect_left(self.starts, end)
        return max(end, self.ends[place - 1]) if place else end

    def before(self, place: int, since: int) -> str:
        """What stands in the text between the part at ``place``, or the end, and the part before it, or ``since``."""
        start = max(self.ends[place - 1] if place else 0, since)
        return self.text[start : self.starts[place] if place < len(self.parts) else len(self.text)]

    def marks(self, place: int, since: int) -> Iterator[tuple[str, int]]:
        """The characters that stand there, of each what it begins with and where it ends."""
        start = max(self.ends[place - 1] if place else 0, since)
        for mark in _CHARACTERS.finditer(self.before(place, since)):
            yield mark.group()[0], start + mark.end()

    def _read(self, start: int) -> None:
        """Add what there is from a place in the text on."""
        for run in _RUNS.finditer(self.text, start):
            begin, end = run.span()
            if run.group(1):
                parts, alone = run.group().lower(), False
                starts, ends = list(range(begin, end)), list(range(begin + 1, end + 1))
            else:
                parts, alone = _folded(run.group())
                starts, ends = [begin] * len(parts), [end] * len(parts)
            if not parts:
                continue
            first = not self.parts or alone or self.alone[-1] or self._is_apart(begin, parts[0])
            self.parts += parts
            self.starts += starts
            self.ends += ends
            self.begins += [first] + [False] * (len(parts) - 1)
            self.alone += [alone] * len(parts)

    def _is_apart(self, begin: int, part: str) -> bool:
        """Whether a part whose character starts there is of another word than the last one: not where an apostrophe
        stands between, nor what groups the digits of one number.
        """
        between = self.text[self.ends[-1] : begin]
        if not between:
            return False
        if self.parts[-1].isdigit() and part.isdigit() and not any(char.isspace() for char in between):
            return False
        return bool(between.strip(_WITHIN))


class _Folded(NamedTuple):
    parts: str
    alone: bool


@lru_cache(16_384)
def _folded(character: str) -> _Folded:
    """What a character is of a word. Accents, and the points of Hebrew and Arabic, are no part of it: they come and go
    in what a synthesiser makes of a text.
    """
    folded = unicodedata.normalize("NFKD", character).upper().casefold()  # a dotless i is a capital I, too
    folded = unicodedata.normalize("NFKD", folded)
    parts = "" if character[0] in _UNSPOKEN else "".join(part for part in folded if _is_part(part))
    return _Folded(parts, bool(_NO_SPACES.match(character)))


def _is_part(char: str) -> bool:
    if not unicodedata.category(char).startswith("M"):
        return char.isalnum()
    accent = unicodedata.combining(char)
    return not (10 <= accent <= 36 or accent >= 200) and not 0xFE00 <= ord(char) <= 0xFE0F and char != "\u20e3"


def _common(one: str, other: str) -> int:
    """How many code points both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low
