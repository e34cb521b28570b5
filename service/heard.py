"""How much of a turn's text was heard, out of the ways in which a client can say it. Text in, code points out.

The rule for words, be they a text that was heard or the words of timings: they are compared with the turn's text from
its beginning on, letter by letter and digit by digit, without case, punctuation and spacing. A synthesiser may speak a
word otherwise than it is written ("seven thirty" for 7:30, "Doctor" for Dr.). Such a word is passed over where the two
words behind it in the text are heard behind what was spoken in its place, or the one that is left: then it was heard,
too. Where they are not, nothing behind the last whole word that agrees counts as heard. So what counts is a beginning
of what was heard: less where that is not certain, never a word that happens to stand further on.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

from service.client_events import Heard, WordTiming
from service.problems import invalid

MOST_WORDS = 32
"""Words that may be spoken for a single one that is written, such as an address of the web."""


@dataclass(frozen=True)
class Extent:
    """chars: code points of the turn's text that were heard. certain: whether all that was told is in them."""

    chars: int
    certain: bool = True


def extent(text: str, heard: Heard, words: Sequence[WordTiming], path: str) -> Extent:
    """How much of a turn's ``text`` was heard; ``words`` are all timings known of it.

    Raises Problem, which names the field under ``path``, for milliseconds without word timings, but for none at all.
    """
    if heard.text is not None:
        return _beginning(text, heard.text)
    if heard.chars is not None:
        return Extent(min(heard.chars, len(text)))
    played = heard.played_ms or 0
    if played and not words:
        raise invalid(f"{path}.played_ms", "needs word timings, and none of this turn are known")
    spoken = [end for end, word in zip(_word_ends(text, words), words, strict=True) if word.end_ms <= played]
    end = max(spoken, default=0)
    more = any(_folded(char)[0] for char in text[end:])
    return Extent(end if more or not end else len(text))  # timings may leave out the mark at the end


def joined(text: str, known: Sequence[WordTiming], more: Sequence[WordTiming]) -> list[WordTiming]:
    """The timings of a turn with those that came later: added behind, or in place of the ones from their first on.

    The first one's place is where its word ends, where it says so, and else when it ends.
    """
    if not more:
        return list(known)
    first = more[0]
    if first.end_chars is None:
        return [word for word in known if word.end_ms < first.end_ms] + list(more)
    ends = _word_ends(text, known)
    return [word for word, end in zip(known, ends, strict=True) if end < first.end_chars] + list(more)


def _beginning(text: str, heard: str) -> Extent:
    """The beginning of ``text`` that reads like ``heard``. The last word may have been heard in part."""
    said, spoken = _Words.of(text), _Words.of(heard)
    if not said.parts:
        return Extent(len(text) if heard.strip() and not spoken.parts else 0, not spoken.parts)
    reached = _reached(said, spoken)
    count, certain = next(place for place in reversed(reached) if place is not None), reached[-1] is not None
    if count == len(said.parts):
        return Extent(len(text), certain)
    begun = said.ends[count]  # where the first character ends that was not heard to its end
    return Extent(max((end for end in said.ends[:count] if end < begun), default=0), certain)


def _word_ends(text: str, words: Sequence[WordTiming]) -> list[int]:
    """Where each word ends in ``text``, in code points; one that is not found ends where the one before it does."""
    ends: list[int] = []
    for at, word in enumerate(words):
        if word.end_chars is not None:
            ends.append(min(word.end_chars, len(text)))
        elif at == len(ends):
            behind = next((k for k in range(at, len(words)) if words[k].end_chars is not None), len(words))
            ends += _spoken_ends(text, ends[-1] if ends else 0, [word.word for word in words[at:behind]])
    return ends


def _spoken_ends(text: str, start: int, words: Sequence[str]) -> list[int]:
    """The same of words that are spoken one after the other behind the first ``start`` code points."""
    said, spoken, counts = _Words.of(text[start:]), _Words(), []
    for word in words:
        spoken.add(word)
        counts.append(len(spoken.parts))
    reached, ends, end = _reached(said, spoken), [], start
    for count in counts:
        place = reached[count]
        if place and said.begins_at(place):
            end = start + said.ends[place - 1]
        ends.append(end)
    return ends


@dataclass
class _Words:
    """What makes up the words of a text: letters, marks on them and digits, without case.

    ends: for each of ``parts``, where its character ends in the text. begins: whether a word begins with it. Playback
    is reported many times a second, so this and what is done with it must be cheap.
    """

    parts: list[str] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    begins: list[bool] = field(default_factory=list)

    @staticmethod
    def of(text: str) -> _Words:
        words = _Words()
        words.add(text)
        return words

    def add(self, text: str) -> None:
        """More of them; a word begins with the first."""
        behind, apart = 0, True  # apart: what comes next is another word
        for run in _RUNS.finditer(text):
            begin, end = run.span()
            if run.group(1):
                parts, alone = run.group().lower(), False
                ends = list(range(begin + 1, end + 1))
            else:
                parts, alone = _folded(run.group())
                ends = [end] * len(parts)
            if not parts:
                continue
            between = text[behind:begin]
            first = apart or alone or (between != "" and _parts_words(between, self.parts[-1], parts[0]))
            self.parts += parts
            self.ends += ends
            self.begins += [first] + [False] * (len(parts) - 1)
            behind, apart = end, alone

    def begins_at(self, place: int) -> bool:
        """Whether a word begins there, or nothing is left."""
        return place == len(self.parts) or self.begins[place]

    def ends_at(self, place: int) -> bool:
        """Whether a word ends there."""
        return place <= len(self.parts) and self.begins_at(place)

    def behind(self, place: int) -> int:
        """Where the word behind the one at ``place`` begins."""
        return next((at for at in range(place + 1, len(self.parts)) if self.begins[at]), len(self.parts))


_RUNS = re.compile(r"([0-9A-Za-z]+)|.", re.DOTALL)


@cache
def _folded(char: str) -> tuple[str, bool]:
    """(what a character is of a word, whether it is one by itself, for its script has no spaces)"""
    folded = unicodedata.normalize("NFKD", char).upper().casefold()  # a dotless i is a capital I, too
    parts = [part for part in folded if part.isalnum() or unicodedata.category(part).startswith("M")]
    return "".join(parts), unicodedata.east_asian_width(char) in "WF"


def _parts_words(between: str, before: str, after: str) -> bool:
    """Whether what stands between two letters or digits is between two words: not an apostrophe, and not what groups
    the digits of one number.
    """
    if before.isdigit() and after.isdigit() and not any(char.isspace() for char in between):
        return False
    return bool(between.strip("'’"))


def _reached(said: _Words, spoken: _Words) -> list[int | None]:
    """For each beginning of what was spoken, the empty one included, how many parts of what was said it reaches; None
    where that is not certain.
    """
    reached: list[int | None] = [0] + [None] * len(spoken.parts)
    i = j = since = 0
    while i < len(spoken.parts):
        if j < len(said.parts) and spoken.parts[i] == said.parts[j]:
            i, j = i + 1, j + 1
            reached[i] = j
            continue
        while i > since and not (spoken.begins_at(i) and said.begins_at(j)):  # back to where both end a word
            reached[i] = None
            i, j = i - 1, j - 1
        passed = _passed_over(said, spoken, i, j)
        if passed is None:
            break
        since, j = passed
        i = since
        reached[i] = j
    return reached


def _passed_over(said: _Words, spoken: _Words, i: int, j: int) -> tuple[int, int] | None:
    """Where both go on behind the word of ``said`` at ``j``, for which something else is spoken from ``i`` on; None
    where that is not certain. Where only one word is left of what was said, what was spoken must end with it.
    """
    behind = said.behind(j)
    second = said.behind(behind)
    follows = said.parts[behind : said.behind(second)]
    if not follows or said.parts[behind:second] == said.parts[second : said.behind(second)]:
        return None  # of two that are the same, the first may be the end of what is spoken for this one
    for _ in range(MOST_WORDS):
        i = spoken.behind(i)
        end = i + len(follows)
        whole = end == len(spoken.parts) if second == len(said.parts) else spoken.ends_at(end)
        if whole and spoken.parts[i:end] == follows:
            return i, behind
    return None
