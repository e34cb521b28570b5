"""What the context of a call has room for."""

from __future__ import annotations

from service.conversation import Conversation
from service.problems import Problem, Reason


class Room:
    """limit: tokens that the context holds, of which one is a reply's at least."""

    def __init__(self, conversation: Conversation, limit: int) -> None:
        self._conversation = conversation
        self.limit = limit

    def fits(self, more: int) -> bool:
        """Whether so many tokens and one more fit."""
        return self._conversation.length + more < self.limit

    @property
    def fits_reply(self) -> bool:
        """Whether a reply could be asked for."""
        return self.fits(len(self._conversation.prompt))

    def require(self, more: int, path: str = "") -> None:
        """The policy for a full context: refuse. Raises Problem unless the tokens and one more fit."""
        if not self.fits(more):
            message = f"the conversation has {self._conversation.length} tokens; {more} more do not fit {self.limit}"
            raise Problem(Reason.CONTEXT_FULL, message, field=path)
