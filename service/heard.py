"""How much of a turn's text was heard, out of the ways in which a client can say it. Text in, code points out."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from service.client_events import Heard, WordTiming
from service.problems import invalid


def heard_chars(text: str, heard: Heard, words: Sequence[WordTiming], path: str) -> int:
    """How many code points of a turn's ``text`` were heard; ``words`` are all timings known of it.

    Raises Problem, which names the field under ``path``, for a text that is not how the turn begins and for
    milliseconds without word timings.
    """
    if heard.text is not None:
        return _prefix_chars(text, heard.text, f"{path}.text")
    if heard.chars is not None:
        return min(heard.chars, len(text))
    if not words:
        raise invalid(f"{path}.played_ms", "needs word timings, and none of this turn are known")
    ends = _word_ends(text, words)
    spoken = [end for end, word in zip(ends, words, strict=True) if word.end_ms <= (heard.played_ms or 0)]
    return max(spoken, default=0)


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


def _prefix_chars(text: str, spoken: str, path: str) -> int:
    """Length of the beginning of ``text`` that reads like ``spoken`` but for case, punctuation and spacing.

    Raises Problem where ``spoken`` has a letter, a mark on one, or a digit that is not there in ``text``.
    """
    said, wanted = _folded(text), [part for part, _ in _folded(spoken)]
    if [part for part, _ in said[: len(wanted)]] != wanted:
        raise invalid(path, "is not how the turn's text begins")
    if len(wanted) == len(said):
        return len(text) if spoken.strip() else 0
    begun = said[len(wanted)][1]  # where the first character ends that was not heard to its end
    return max((end for _, end in said[: len(wanted)] if end < begun), default=0)


def _folded(text: str) -> list[tuple[str, int]]:
    """What makes up the words of a text, without case, each part with where its character ends in the text."""
    return [
        (part, end)
        for end, char in enumerate(text, 1)
        for part in unicodedata.normalize("NFKD", char).upper().casefold()  # a dotless i is a capital I, too
        if part.isalnum() or unicodedata.category(part).startswith("M")
    ]


def _word_ends(text: str, words: Sequence[WordTiming]) -> list[int]:
    """Where each word ends in ``text``, in code points; a word that is not found ends where the one before it does."""
    ends: list[int] = []
    at = 0
    for word in words:
        if word.end_chars is not None:
            at = min(word.end_chars, len(text))
        elif (found := re.compile(re.escape(word.word), re.IGNORECASE).search(text, at)) is not None:
            at = found.end()
        ends.append(at)
    return ends
