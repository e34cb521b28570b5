"""Reads one reply: ids in, text that is safe to speak out, with its clauses, its tool calls and its stop strings.

Holds back what could still become half a character, the beginning of a stop string, or the mark of a tool call. Lives
with one turn; knows no session.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from engine.text.call_form import Call, CallForm, parse_calls
from engine.text.clauses import ClauseFinder
from engine.text.codec import Codec


@dataclass
class Read:
    """What a reply gained since it was last asked. malformed: texts of calls that are no JSON call."""

    text: str = ""
    clause_ends: list[int] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    malformed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class CallBlock:
    """What a reply writes of tool calls in one place, marks included: code points ``start`` to ``end`` of what its ids
    spell. calls: those in it; none where it is malformed.
    """

    start: int
    end: int
    calls: tuple[Call, ...]


class ReplyReader:
    """A ``TextWatcher`` over one reply. Its text is what its ids spell outside of its ``blocks``.

    calls: how the model writes tool calls; None where none is to be read, and what looks like one is text. names: of
    the tools; None for any. alone: a reply that is a call is one from its first character, and any other is text.
    """

    def __init__(
        self,
        codec: Codec,
        stop_strings: Sequence[str] = (),
        *,
        calls: CallForm | None = None,
        names: Collection[str] | None = None,
        alone: bool = False,
    ) -> None:
        if any(not stop for stop in stop_strings):
            raise ValueError("a stop string must not be empty")
        self._stream = codec.stream()
        self._stops = tuple(stop_strings)
        self._form = calls
        self._names = names
        self._alone = alone
        self._marks = (*self._stops, calls.mark) if calls is not None and calls.mark else self._stops
        self._may_be_call = calls is not None and not calls.mark
        """Whether the reply may still turn out to be a call as a whole."""
        self._clauses = ClauseFinder()
        self._pending = ""  # decoded, neither emitted nor ruled out
        self._call: str | None = None  # text of the call that is being written
        self._call_start = 0
        self.blocks: list[CallBlock] = []
        self._raw_length = 0
        self._said = False
        self._token_ends: list[int] = []
        self._stop_at: int | None = None
        self._read = Read()

    @property
    def stopped(self) -> bool:
        return self._stop_at is not None

    @property
    def kept_tokens(self) -> int:
        """Ids to keep: all, or those up to the last that ends on a whole character at or before the stop string."""
        if self._stop_at is None:
            return len(self._token_ends)
        fitting = bisect_right(self._token_ends, self._stop_at)
        # Behind the id that completes a character there may be some that begin the next one.
        end = self._token_ends[fitting - 1] if fitting else 0
        return bisect_left(self._token_ends, end) + 1 if end else 0

    def push(self, token: int) -> str:
        """Add one id; returns the text that became safe to emit (also kept for ``take``)."""
        piece = self._stream.push(token)
        self._raw_length += len(piece)
        self._token_ends.append(self._raw_length)
        if self.stopped or not piece:
            return ""
        self._pending += piece
        before = len(self._read.text)
        self._advance()
        return self._read.text[before:]

    def take(self, *, final: bool = False, cut: bool = False) -> Read:
        """Everything since the last ``take``. final: the reply is over, so nothing is held back any more. cut: it was
        cut off, and a call that it broke off in is none.
        """
        if final:
            if cut and self._call is not None:
                self._call += self._pending + "\0"  # which no JSON goes on with
                self._pending = ""
            self.finish()
        read, self._read = self._read, Read()
        return read

    def finish(self) -> str:
        """Release what was held back. A call whose end mark never came counts if it is whole, else as malformed."""
        text = ""
        self._may_be_call = False
        if self._pending and self._call is None:
            self._advance()  # what was kept back as the beginning of a call is none
        if not self.stopped and self._pending:
            if self._call is None:
                text = self._pending
                self._emit(text)
            else:
                self._call += self._pending
            self._pending = ""
        if self._call is not None:
            self._finish_call()
        self._read.clause_ends += self._clauses.finish()
        return text

    def _advance(self) -> None:
        """Move what is certain out of the pending text."""
        while self._pending:
            if self._call is not None:
                if not self._advance_call():
                    return
                continue
            if self._may_be_call:
                assert self._form is not None
                begun = self._form.is_begun_by(self._pending)
                if begun is None:
                    return
                self._may_be_call = False
                if begun:
                    self._call_start = self._raw_length - len(self._pending)
                    self._pending, self._call = "", self._pending
                    return
            at, mark = self._first_mark()
            if mark is None:
                held = self._held_back()
                self._emit(self._pending[: len(self._pending) - held])
                self._pending = self._pending[len(self._pending) - held :]
                return
            self._emit(self._pending[:at])
            begin = self._raw_length - len(self._pending) + at
            if self._form is None or mark != self._form.mark:
                self._stop_at, self._pending = begin, ""
                return
            self._pending, self._call, self._call_start = self._pending[at + len(mark) :], "", begin

    def _advance_call(self) -> bool:
        """Take pending text into the call; False when all of it was taken and the call goes on."""
        assert self._call is not None and self._form is not None
        text, end_mark = self._call + self._pending, self._form.end_mark
        at = text.find(end_mark) if end_mark else -1
        while at >= 0 and _is_inside_string(text[:at]):
            at = text.find(end_mark, at + 1)
        if at < 0:
            self._call, self._pending = text, ""
            return False
        self._call, self._pending = text[:at], text[at + len(end_mark) :]
        self._finish_call()
        return True

    def _finish_call(self) -> None:
        text, self._call = self._call or "", None
        calls = parse_calls(text, self._names)
        self._read.calls += calls
        if not calls and self._alone and self._form is not None and not self._form.mark and "\0" not in text:
            self._emit(text)  # a JSON reply that begins as calls do
            return
        if not calls:
            self._read.malformed.append(text)
        self.blocks.append(CallBlock(self._call_start, self._raw_length - len(self._pending), tuple(calls)))

    @property
    def _live_marks(self) -> Sequence[str]:
        """Stop strings, and the mark of a call where one may begin."""
        if not self._alone or self._form is None or not self._form.mark:
            return self._marks
        begin, mark = self._pending.lstrip(), self._form.mark
        return self._stops if self._said or not (begin.startswith(mark) or mark.startswith(begin)) else self._marks

    def _first_mark(self) -> tuple[int, str | None]:
        """Where the stop string or call mark begins that is complete first, however the text was cut into tokens."""
        found = [(at + len(mark), at, mark) for mark in self._live_marks if (at := self._pending.find(mark)) >= 0]
        return min(found)[1:] if found else (-1, None)

    def _held_back(self) -> int:
        """Length of the longest end of the pending text that could be the beginning of a mark."""
        longest = 0
        for mark in self._live_marks:
            for length in range(min(len(mark) - 1, len(self._pending)), longest, -1):
                if self._pending.endswith(mark[:length]):
                    longest = length
                    break
        return longest

    def _emit(self, text: str) -> None:
        if text:
            self._said = True
            self._read.text += text
            self._read.clause_ends += self._clauses.push(text)


def _is_inside_string(json_text: str) -> bool:
    """Whether JSON breaks off inside a string."""
    inside = escaped = False
    for character in json_text:
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = inside
        elif character == '"':
            inside = not inside
    return inside
