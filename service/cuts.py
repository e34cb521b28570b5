"""What the history holds of a reply that was cut: what was heard of it, and the tools it has used."""

from __future__ import annotations

from dataclasses import replace

from service.conversation import Conversation
from service.reply import Reply, Segment
from service.room import Room
from service.tool_results import INTERRUPTED_RESULT, UNHELD_RESULT, ToolResults


class Cuts:
    """Of one call."""

    def __init__(self, conversation: Conversation, room: Room, results: ToolResults) -> None:
        self._conversation = conversation
        self._room = room
        self._results = results

    def rewrite(self, reply: Reply, chars: int) -> str:
        """Make the history hold the first ``chars`` code points of the reply, and the tools it has used.

        Returns the text that it holds then. Tool calls of which none has a result are put there with the first one;
        until the others have theirs, something stands for it. Where the newest results leave no room for a reply, it
        holds that they were too long; or not even their calls, where that leaves none either.
        """
        text = self.write(reply, chars)
        if reply.segments and reply.current.results and not self._room.fits_reply:
            segment, held = reply.current, reply.current.results
            segment.results = {
                key: result if result.stands_in else replace(result, output=UNHELD_RESULT)
                for key, result in held.items()
            }
            text = self.write(reply, chars)
            if not self._room.fits_reply:
                segment.results = held
                text = self.write(reply, chars, newest_calls=False)
        return text

    def write(self, reply: Reply, chars: int, *, newest_calls: bool = True) -> str:
        """As ``rewrite``, whatever room there is. newest_calls: whether those of the newest generation may stay."""
        conversation = self._conversation
        conversation.rewind(reply.before)
        text = ""
        for segment in reply.segments:
            heard = min(len(segment.text), max(0, chars))
            chars -= len(segment.text)
            if segment.answered:
                self._stand_in(segment)
            stay = len(segment.results) == len(segment.calls) and (newest_calls or segment is not reply.current)
            calls = tuple(segment.calls) if stay else ()
            if heard > 0 or calls:
                text += conversation.put_heard(segment, heard, calls)
            if calls:
                conversation.put_results([segment.results[call.call_id] for call in segment.calls])
        return text

    def _stand_in(self, segment: Segment) -> None:
        """Some of a generation's calls were carried out, so all of them stay."""
        for call in segment.outstanding:
            if call.call_id not in segment.results:
                segment.answer(self._results.stand_in(call, INTERRUPTED_RESULT), outstanding=True)
