"""Where clauses end in streaming text, so that a synthesiser can start before the sentence is over.

A mark ends a clause when what follows it is known to begin something new, so the decision about the last mark waits for
the next character or for the end of the reply. Knows no token.
"""

from __future__ import annotations

import re

_ABBREVIATIONS = frozenset(
    re.findall(
        r"\S+",
        """dr mr mrs ms prof rev hon st ave blvd rd no nos vs etc inc ltd co corp jr sr dept est approx ext fig gen sgt
        capt jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thur thurs fri sat sun e.g i.e a.m
        p.m u.s u.k ph.d""",
    )
)
_STRONG, _WEAK = ".!?…", ",;:—–"
_WIDE_STRONG, _WIDE_WEAK = "。！？", "，；："  # written without a space after them
_CLOSERS = "\"'”’)]»"
_WORD_BEFORE = re.compile(r"[^\s(\[\"“'‘]+$")


class ClauseFinder:
    """Feeds on pieces of one text and gives the code point offsets at which clauses end.

    min_words: words that a clause must have before a comma, semicolon, colon or dash ends it.
    """

    def __init__(self, *, min_words: int = 3) -> None:
        self._min_words = min_words
        self._text = ""  # from the start of the clause in progress
        self._start = 0  # offset of that start
        self._scanned = 0  # characters of _text that are decided

    def push(self, piece: str) -> list[int]:
        """Offsets that are certain now that ``piece`` has come."""
        self._text += piece
        return self._scan(final=False)

    def finish(self) -> list[int]:
        """The text is over: its end ends a clause, where there is one."""
        ends = self._scan(final=True)
        if self._text.strip():
            ends.append(self._start + len(self._text.rstrip()))
            self._start, self._text, self._scanned = self._start + len(self._text), "", 0
        return ends

    def _scan(self, *, final: bool) -> list[int]:
        ends: list[int] = []
        at = self._scanned
        while at < len(self._text):
            stop = self._mark_end(at)
            if stop is None:
                at += 1
                continue
            if stop == len(self._text) and not final and self._text[at] not in _WIDE_STRONG:
                break  # whether this ends a clause depends on what comes next
            if self._ends_clause(at, stop, final):
                ends.append(self._start + stop)
                self._start += stop
                self._text, at = self._text[stop:], 0
            else:
                at = stop
        self._scanned = at
        return ends

    def _mark_end(self, at: int) -> int | None:
        """End of the run of marks and closing quotes that begins at ``at``; None where no mark stands there."""
        if self._text[at] == "\n":
            return at + 1 if self._text[:at].strip() else None
        if self._text[at] not in _STRONG + _WEAK + _WIDE_STRONG + _WIDE_WEAK:
            return None
        stop = at + 1
        while stop < len(self._text) and self._text[stop] in _STRONG + _CLOSERS:
            stop += 1
        return stop

    def _ends_clause(self, at: int, stop: int, final: bool) -> bool:
        mark, before, after = self._text[at], self._text[:at], self._text[stop : stop + 1]
        if not before.strip():
            return False
        if mark == "\n" or mark in _WIDE_STRONG:
            return True
        if mark in _WIDE_WEAK:
            return len(before.strip()) >= 2 * self._min_words
        if after and not after.isspace():
            return False  # 3.50, 3:30, example.com, 1,200
        if mark in _WEAK:
            return len(before.split()) >= self._min_words
        return mark != "." or final or not self._abbreviates(before, self._text[at:stop])

    @staticmethod
    def _abbreviates(before: str, marks: str) -> bool:
        """Whether a full stop after ``before`` belongs to an abbreviation, an initial or a numbered point."""
        found = _WORD_BEFORE.search(before)
        if found is None or len(marks) > 1:
            return False
        word = found.group().lower()
        if word in _ABBREVIATIONS:
            return True
        if len(word) == 1 and word.isalpha() and word != "i":
            return True
        return word.isdigit() and not before[: found.start()].strip()
