"""How much of a turn's text was heard, as its client tells it: by the text, by its length or by the time played.

Text is compared without case, punctuation and spacing. What counts is a beginning of what was heard: less where that is
not certain, and no word that happens to stand further on, as far as ``Alignment`` can tell.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from service.client_events import Heard, WordTiming
from service.heard.alignment import Alignment
from service.heard.words import Words
from service.problems import invalid


@dataclass(frozen=True)
class Extent:
    """chars: code points of the turn's text that were heard. certain: whether all that was told is in them."""

    chars: int
    certain: bool = True


class Hearing:
    """What a client has told of one turn. words: the timings that are known of it.

    Playback is reported many times a second: what has been found in the text stays found while both grow.
    """

    def __init__(self, words: Iterable[WordTiming] = ()) -> None:
        self.words: tuple[WordTiming, ...] = ()
        self._said = Words()
        self._by_text = Alignment(self._said)
        self._runs: list[_Run] = []
        self._latest: list[int] = []
        """For each word, when it and all before it have ended, in ms."""
        self._put(words)

    def extent(self, text: str, heard: Heard, path: str) -> Extent:
        """How much of a turn's ``text`` was heard; timings that come with ``heard`` are known from then on.

        Raises Problem, which names the field under ``path``, for milliseconds without word timings, but for none at
        all.
        """
        if heard.played_ms and not (self.words or heard.words):
            raise invalid(f"{path}.played_ms", "needs word timings, and none of this turn are known")
        self._said.become(text)
        if heard.words:
            self._join(text, heard.words)
        if heard.text is not None:
            return self._of_text(text, heard.text)
        if heard.chars is not None:
            return Extent(min(heard.chars, len(text)))
        return self._of_time(text, heard.played_ms or 0)

    def _of_text(self, text: str, heard: str) -> Extent:
        """The beginning of ``text`` that reads like ``heard``. The last word may have been heard in part."""
        found = self._by_text
        found.follow(heard)
        said, place = found.said, found.place
        if not said.parts:
            return Extent(len(text) if heard.strip() and not found.spoken.parts else 0, not found.spoken.parts)
        if place == len(said.parts):
            return Extent(len(text), found.is_whole)
        return Extent(found.end(len(found.reached) - 1), found.is_whole)

    def _of_time(self, text: str, played_ms: int) -> Extent:
        """As far as the words that had ended by then; timings may leave out the mark at the end."""
        count = bisect_right(self._latest, played_ms)
        found = self._up_to(text, count)
        only_marks = found.chars and not any(map(str.isalnum, text[found.chars :]))
        if only_marks or (count == len(self.words) and self._is_played_out(played_ms)):
            return Extent(len(text), found.certain or not only_marks)
        return found

    def _is_played_out(self, played_ms: int) -> bool:
        """Whether playback has gone past the last word, and something was spoken for the only one that is left."""
        run = self._runs[-1] if self._runs else None
        if run is None or run.is_placed or played_ms <= self._latest[-1]:
            return False
        return run.left_unread

    def _up_to(self, text: str, count: int) -> Extent:
        """What the first ``count`` words reach of ``text``. One that is not found ends where the one before it does."""
        number = bisect_left(self._runs, count, key=_first) - 1
        return self._runs[number].up_to(text, count) if count else Extent(0)

    def _before(self, text: str, end: int) -> int:
        """How many words are left without those at the end that reach a place in the text."""
        left = len(self.words)
        for run in reversed(self._runs):
            counts = range(run.first + 1, left + 1)
            left = run.first + bisect_left(counts, end, key=partial(_reached, run, text))
            if left > run.first:
                break
        return left

    def _put(self, words: Iterable[WordTiming]) -> None:
        """Add timings behind those that are known."""
        known = list(self.words)
        for word in words:
            is_placed = word.end_chars is not None
            if not self._runs or self._runs[-1].is_placed != is_placed:
                start = known[-1].end_chars or 0 if known else 0
                self._runs.append(_Run(self._said, len(known), is_placed, start))
            self._runs[-1].add(word)
            self._latest.append(max(word.end_ms, self._latest[-1] if self._latest else 0))
            known.append(word)
        self.words = tuple(known)

    def _join(self, text: str, more: Sequence[WordTiming]) -> None:
        """Take timings that came later: they are added behind those known, or replace them from the first one's place
        on: where its word ends, where it says so, and else when it ends. The same ones again change nothing.
        """
        known = self.words
        left, first = len(known), more[0]
        if first.end_chars is None:
            while left and known[left - 1].end_ms >= first.end_ms:
                left -= 1
            while left < len(known) and known[left].end_ms == first.end_ms and known[left] != first:
                left += 1  # another word that ends at the same time
        else:
            left = self._before(text, first.end_chars)
        if known[left : left + len(more)] == tuple(more):
            return
        if left < len(known):
            self.words, self._runs, self._latest = (), [], []
            self._put(known[:left])
        self._put(more)


class _Run:
    """Timings that follow each other and all say where their words end in the text, or all which words they are.

    said: the words of the text. first: how many timings are before them. start: where the words before them end.
    """

    def __init__(self, said: Words, first: int, is_placed: bool, start: int) -> None:
        self.first, self.is_placed, self._start = first, is_placed, start
        self._ends: list[int] = []
        self._spoken = ""
        self._found = Alignment(said, start)

    def add(self, word: WordTiming) -> None:
        if word.end_chars is not None:
            self._ends.append(max(word.end_chars, self._ends[-1] if self._ends else 0))
        else:
            self._spoken += word.word
            self._ends.append(len(self._spoken))
            self._spoken += "\n"

    def up_to(self, text: str, count: int) -> Extent:
        """What the first ``count`` of all words reach, the last of which is one of these."""
        ends = self._ends[: count - self.first]
        if self.is_placed:
            return Extent(min(ends[-1], len(text)))
        found = self._follow()
        for end in reversed(ends):
            spoken = found.spoken.within(end)
            place = found.place_of(spoken)
            if place is not None and found.is_between_words(place):
                return Extent(found.end(spoken), end == ends[-1])
        return Extent(min(self._start, len(text)), certain=False)

    @property
    def left_unread(self) -> bool:
        """As of ``Alignment``."""
        return self._follow().left_unread

    def _follow(self) -> Alignment:
        self._found.follow(self._spoken)
        return self._found


def _reached(run: _Run, text: str, count: int) -> int:
    return run.up_to(text, count).chars


def _first(run: _Run) -> int:
    return run.first
