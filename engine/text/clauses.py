"""Where clauses end in streaming text, so that a synthesiser can start before the sentence is over.

A mark ends a clause when what follows it is known to begin something new, so the decision about the last mark waits for
the next character or for the end of the reply. Knows no token.
"""

from __future__ import annotations

import re

_ABBREVIATIONS = frozenset(
    re.findall(
        r"\S+",
        """dr mr mrs ms prof rev hon st ave blvd rd nos vs etc inc ltd co corp jr sr dept est approx ext gen sgt
        capt jan feb apr jun jul aug sep sept oct nov dec mon tue tues wed thu thur thurs fri e.g i.e a.m p.m
        u.s u.k ph.d""",
    )
)
_WORDS_TOO = frozenset(("no", "fig", "mar", "sat", "sun"))
"""Abbreviations before a number ("No. 5", "Sat. 10"), and words that end a sentence elsewhere."""
_STRONG, _WEAK = ".!?…", ",;:—–"
_WIDE_STRONG, _WIDE_WEAK = "。！？", "，；："  # written without a space after them
_CLOSERS = "\"'”’)]»」』）"
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
            if not final and self._depends_on_more(at, stop):
                break
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

    def _depends_on_more(self, at: int, stop: int) -> bool:
        """Whether it takes more text than there is to tell if the marks from ``at`` to ``stop`` end a clause."""
        if stop == len(self._text):
            return True
        doubtful = self._text[at:stop] == "." and _word_before(self._text[:at]) in _WORDS_TOO
        return doubtful and not self._following(stop)

    def _following(self, stop: int) -> str:
        """The first character from ``stop`` on that is a new line or no space; empty while there is none."""
        return next((c for c in self._text[stop:] if c == "\n" or not c.isspace()), "")

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
        return self._text[at:stop] != "." or final or not _abbreviates(before, self._following(stop))


def _word_before(text: str) -> str:
    """The word, in small letters, that the text ends with."""
    found = _WORD_BEFORE.search(text)
    return found.group().lower() if found else ""


def _abbreviates(before: str, following: str) -> bool:
    """Whether a full stop between the two belongs to an abbreviation, an initial or a numbered point."""
    word = _word_before(before)
    if word in _ABBREVIATIONS:
        return True
    if word in _WORDS_TOO:
        return following.isdigit()
    if len(word) == 1 and word.isalpha() and word != "i":
        return True
    return word.isdigit() and before.strip().lower() == word
