"""What the client of one fuzzed call has heard, held to what the contract says of the order of events."""

from __future__ import annotations

from firstword.books import Books
from firstword.v1 import call_service_pb2 as call_pb


class Heard:
    """calls: (turn, call id) of tool calls. answered: turns that have ended, wait for tools or were refused.

    certain: as long as the client has told the truth about what it has received.
    """

    def __init__(self) -> None:
        self.books = Books()
        self.wrong: list[str] = []
        self.calls: list[tuple[int, str]] = []
        self.answered: set[int] = set()
        self.certain = True
        self._lied = False
        self._ended: set[int] = set()
        self._texts: dict[int, int] = {}

    def take(self, response: call_pb.CallResponse) -> None:
        """Check one event against those before it."""
        kind = response.WhichOneof("event")
        if self._lied:
            self._lied = False
            self.books.seq = response.seq - 1 if not response.opened.resumed else response.seq
            self.books.generation = response.generation
        if kind == "opened" and response.opened.resumed:
            if response.seq != self.books.seq:
                self.wrong.append(f"resumed from {response.seq}, not {self.books.seq}")
            self.books.resumed(response)
            return
        if response.seq != self.books.seq + (kind != "heartbeat"):  # which has the number of the event before it
            self.wrong.append(f"event {response.seq} ({kind}) after {self.books.seq}")
        if response.generation < self.books.generation:
            self.wrong.append(f"generation {response.generation} after {self.books.generation}")
        self.books.take(response)
        match kind:
            case "text_delta":
                self._text(response.text_delta.turn_id, response.text_delta)
            case "tool_called":
                self.calls.append((response.tool_called.turn_id, response.tool_called.call.call_id))
            case "turn_waiting":
                self.answered.add(response.turn_waiting.turn_id)
            case "turn_ended":
                self._over(response.turn_ended.turn_id)
            case "error" if response.error.HasField("turn_id"):
                self.answered.add(response.error.turn_id)

    def forget(self, events: int) -> None:
        """The newest ones never came."""
        seq = max(0, self.books.seq - events)
        if seq == self.books.seq:
            return
        self.certain = False
        self.books.seq = seq
        for number in [number for number in self.books.records if number > seq]:
            del self.books.records[number]

    def lie(self) -> None:
        """The client has asked for a call in some other way than it should: whatever comes now, it must be in order."""
        self.certain, self._lied = False, True

    def _text(self, turn_id: int, delta: object) -> None:
        offset, text = delta.offset_code_points, delta.text  # type: ignore[attr-defined]
        known = self._texts.get(turn_id, 0)
        if self.certain and offset != known:
            self.wrong.append(f"the text of turn {turn_id} goes on at {offset}, not {known}")
        if self.certain and turn_id in self._ended:
            self.wrong.append(f"turn {turn_id} goes on behind its end")
        self._texts[turn_id] = offset + len(text)

    def _over(self, turn_id: int) -> None:
        if self.certain and turn_id in self._ended:
            self.wrong.append(f"turn {turn_id} has ended twice")
        self._ended.add(turn_id)
        self.answered.add(turn_id)
