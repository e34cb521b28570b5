"""Where in a text it is that something was spoken: the two are followed side by side, letter by letter.

A synthesiser speaks some words otherwise than they are written. Where the two part, the word is looked up among the
``readings`` of what is written so. What is spoken otherwise still is passed over: the two go on together from the first
place where two words of the text are heard next to each other again, or its last one at the end. Until there is such a
place, only what was heard before counts.

What is spoken for a word may stand written further on, too: "2,50 EUR, also zwei Euro fünfzig" heard as "zwei Euro
fünfzig" is no more than "2,50 EUR". So no more words are passed over than were spoken for them, and those that are
spoken as they are written only where they were heard. What stands written directly behind the word, as in "2,50,
fünfzig Cent", cannot be told from the end of what is spoken for it.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from service.heard.abbreviations import SYMBOLS
from service.heard.passing import may_be_spoken, written
from service.heard.readings import LONGEST, LONGEST_WRITTEN, readings
from service.heard.words import Words

MOST_SPOKEN = 64
"""Words that may be spoken for what is passed over, such as an address of the web."""
MOST_WRITTEN = 24
"""Words of the text that may be passed over at once."""


class _Anchor(NamedTuple):
    """What the text goes on with at a place. parts: its letters. last: whether it is the text's last word alone, which
    must then be the last one that is spoken.
    """

    place: int
    parts: list[str]
    last: bool


class Alignment:
    """said: the words of the text, which may be those of others, too. start: the code points of it that are before what
    is followed. spoken: the words that were heard.

    reached: for each beginning of what was spoken, the empty one included, how many parts of what was said it reaches;
    None where that is not certain. It has nothing for those behind the last place where the two agree. Both texts may
    change: what they have in common with what they were is not followed again, so growing with each word is cheap.
    """

    def __init__(self, said: Words, start: int = 0) -> None:
        self.said, self.spoken = said, Words()
        self._start, self._text = start, ""
        self.reached: list[int | None] = [0]
        self._since = 0
        self._undecided: int | None = None
        self._reading = False
        self._ends: dict[int, int] = {}
        """Where in the text the reading or symbol ends that ends with so many parts of what was spoken."""

    def follow(self, heard: str) -> None:
        """What was spoken is ``heard`` now, and the text is what it is now."""
        if (self._text, self.spoken.text) == (self.said.text, heard):
            return
        said, spoken = self.said.stayed_since(self._text), self.spoken.become(heard)
        self._text, first = self.said.text, bisect_left(self.said.starts, self._start)
        if first != self.reached[0]:
            self.reached, self._ends = [first], {}
        self._go_back(spoken, said)
        self._go_on()

    @property
    def is_whole(self) -> bool:
        """Whether all that was spoken is found."""
        return len(self.reached) > len(self.spoken.parts)

    @property
    def place(self) -> int:
        """How many parts of the text are reached by all that was spoken, as far as that is certain."""
        place = self.reached[-1]
        assert place is not None
        return place

    def place_of(self, spoken: int) -> int | None:
        """The same of the first parts of what was spoken; None where that is not certain."""
        return self.reached[spoken] if spoken < len(self.reached) else None

    def end(self, spoken: int) -> int:
        """How many code points of the text the first parts reach that were spoken, for which that is certain; without a
        character that was not heard to its end.
        """
        place, first = self.reached[spoken] or 0, self.reached[0] or 0
        begun = self.said.starts[place] if place < len(self.said.parts) else len(self.said.text)
        while place > first and self.said.ends[place - 1] > begun:
            place -= 1
        start = min(self._start, len(self.said.text))
        return max(start, self.said.ends[place - 1] if place > first else 0, self._ends.get(spoken, 0))

    def is_between_words(self, place: int) -> bool:
        """Whether no word of the text is reached in part there."""
        return place == self.reached[0] or self.said.begins_at(place)

    @property
    def left_unread(self) -> bool:
        """Whether something was spoken in place of the text's last word, and it cannot be told what."""
        place = self.place
        return not self.is_whole and not self._reading and place < len(self.said.parts) == self.said.behind(place)

    def _go_back(self, spoken: int, said: int) -> None:
        """To the last place where both begin a word and that no more than so many parts of both were needed for."""
        if self._undecided is not None:
            spoken = min(spoken, self._undecided)
        at = min(spoken, len(self.reached) - 1)
        while at and not self._is_start(at, said):
            at -= 1
        del self.reached[at + 1 :]
        self._ends = {spoken: end for spoken, end in self._ends.items() if spoken <= at}
        self._since, self._undecided = at, None

    def _is_start(self, at: int, said: int) -> bool:
        place = self.reached[at]
        return place is not None and place <= said and self._both_begin(at, place)

    def _both_begin(self, spoken: int, said: int) -> bool:
        return self.spoken.begins_at(spoken) and self.said.begins_at(said)

    def _go_on(self) -> None:
        """From where the last certain place is."""
        place = self.reached[-1]
        assert place is not None
        while (at := len(self.reached) - 1) < len(self.spoken.parts):
            if place < len(self.said.parts) and self.spoken.parts[at] == self.said.parts[place]:
                place += 1
                self.reached.append(place)
                continue
            is_open = self.said.may_change(place)
            while at > self._since and not self._both_begin(at, place):
                self.reached.pop()
                at, place = at - 1, place - 1
            if is_open:
                self._leave_undecided(at)
            found = self._read(at, place)
            if found is None:
                return
            behind, place = found
            self.reached += [None] * (behind - at - 1) + [place]
            self._since = behind
        self._leave_begun(place)

    def _leave_begun(self, place: int) -> None:
        """A word of the text that begins within a spoken one, and does not end with it, was not heard."""
        begin, at = place, len(self.reached) - 1
        while not self.said.begins_at(begin):
            begin, at = begin - 1, at - 1
        if begin < place and at > self._since and not self.spoken.begins_at(at):
            del self.reached[at + 1 :]

    def _read(self, at: int, place: int) -> tuple[int, int] | None:
        """Where both go on behind what is spoken from ``at`` on and written from ``place`` on, which differ."""
        read, self._reading = self._by_reading(at, place)
        return read or self._by_symbol(at, place) or (None if self._reading else self._by_anchor(at, place))

    def _by_reading(self, at: int, place: int) -> tuple[tuple[int, int] | None, bool]:
        """(behind something that is known to be spoken so, the longest of what it may be; whether it may be something
        else, of which only the beginning was spoken)
        """
        if place == len(self.said.parts):
            return None, False
        found, begun = (0, 0, [0]), False
        if len(self.said.text) - self.said.starts[place] < LONGEST_WRITTEN:
            self._leave_undecided(at)
        for end, forms in readings(self.said.text, self.said.starts[place]):
            fitting, goes_on = self._fitting(at, forms)
            if goes_on:
                self._leave_undecided(at)
            begun = begun or (goes_on and not fitting)
            if fitting:
                found = max(found, (fitting[-1], self.said.character_end(end), fitting))
        longest, end, fitting = found
        if begun or not longest:
            return None, begun
        behind = at + self._without_what_follows(at, fitting, self.said.within(end))
        self._ends[behind] = end
        return (behind, self.said.within(end)), begun

    def _fitting(self, at: int, forms: Iterable[str]) -> tuple[list[int], bool]:
        """(letters of the forms that are spoken from ``at`` on, the longest last; whether a longer one may be)"""
        rest, fitting, goes_on = "".join(self.spoken.parts[at : at + LONGEST]), set[int](), False
        for form in forms:
            if len(form) > len(rest):
                goes_on = goes_on or form.startswith(rest)
            elif rest.startswith(form) and self.spoken.ends_at(at + len(form)):
                fitting.add(len(form))
        return sorted(fitting), goes_on

    def _without_what_follows(self, at: int, fitting: Sequence[int], place: int) -> int:
        """Letters of the longest form but for what the text itself goes on with: "½ of" is "a half" and "of"."""
        longest = fitting[-1]
        for length in fitting:
            end = place + longest - length
            if self.said.parts[place:end] == self.spoken.parts[at + length : at + longest] and self.said.ends_at(end):
                return length
        return longest

    def _by_symbol(self, at: int, place: int) -> tuple[int, int] | None:
        """Behind the name of a symbol that stands before the place."""
        for symbol, symbol_end in self.said.marks(place, self._start):
            for form in SYMBOLS.get(symbol, ()):
                end = at + len(form)
                if self.spoken.ends_at(end) and "".join(self.spoken.parts[at:end]) == form:
                    self._ends[end] = symbol_end
                    return end, place
        return None

    def _by_anchor(self, at: int, place: int) -> tuple[int, int] | None:
        """Behind what is passed over: the first place where what is spoken is how the text goes on."""
        anchors, parts = list(self._anchors(at, place)), self.spoken.parts
        behind, spoken = at, list[str]()
        for _ in range(MOST_SPOKEN):
            begin, behind = behind, self.spoken.behind(behind)
            spoken.append("".join(parts[begin:behind]))
            for anchor in anchors:
                end = behind + len(anchor.parts)
                if parts[behind:end] == anchor.parts and self.spoken.ends_at(end):
                    passed = list(written(self.said, place, anchor.place))
                    if not may_be_spoken(passed, spoken, then_ends=anchor.last):
                        continue
                    if end == len(parts):
                        self._leave_undecided(at)
                    elif anchor.last:
                        continue
                    return behind, anchor.place
        return None

    def _anchors(self, at: int, place: int) -> Iterator[_Anchor]:
        """What the text goes on with behind each of the next words, or at once where a symbol stands there, which may
        have any name.
        """
        said = self.said
        first = 0 if _has_symbol(said.before(place, self._start)) else 1
        word = said.behind(place) if first else place
        for passed in range(first, MOST_WRITTEN + 1):
            end = self._end_of_word(word)
            if end == len(said.parts):
                self._leave_undecided(at)
                if passed <= 1 and word < end:
                    yield _Anchor(word, said.parts[word:], last=True)
                return
            second = self._end_of_word(end)
            if said.parts[word:end] != said.parts[end:second]:
                # Of two that are the same, the first may be the end of what is spoken for the one before.
                yield _Anchor(word, said.parts[word:second], last=False)
            word = said.behind(word)

    def _end_of_word(self, start: int) -> int:
        """Where the word ends that begins there; in scripts without spaces, two characters."""
        said = self.said
        end = said.behind(start) if start < len(said.parts) else start
        if end < len(said.parts) and said.alone[start] and said.alone[end]:
            return said.behind(end)
        return end

    def _leave_undecided(self, at: int) -> None:
        """What comes behind what there is may show that it was something else."""
        self._undecided = at if self._undecided is None else min(at, self._undecided)


def _has_symbol(between: str) -> bool:
    return any(char in "&%@#*/\\" or unicodedata.category(char)[0] == "S" for char in between)
