"""A call as another resident model has it: the same items in that model's own ids, kept warm for when it must answer.

The call's own history is the truth; a shadow is brought to it and decides nothing.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence

from engine import records
from engine.text.codec import IncrementalDecoder
from service.call_services import Record, Resident
from service.conversation import Content, Conversation
from service.instructions import Instructions
from service.items import Item
from service.mirror import Repeat
from service.options import Generation
from service.problems import Problem, Reason, invalid
from service.submission import submission

log = logging.getLogger(__name__)


class Shadow:
    """One call at one resident.

    generation: of a reply that asks for nothing of its own. Raises Problem, which names ``field``, where the model
    cannot have the call.
    """

    def __init__(
        self,
        resident: Resident,
        session: str,
        seed: int,
        content: Content,
        generation: Generation,
        field: str,
        tenant: str = "",
    ) -> None:
        self.resident = resident
        self._session = session
        self._content = content
        self._generation = generation
        try:
            self._conversation = self._begun(content)
        except Problem as problem:
            raise invalid(field, problem.message) from None
        if self._conversation.length >= resident.max_context_tokens:
            message = (
                f"the conversation has {self._conversation.length} tokens, of at most {resident.max_context_tokens}"
            )
            raise Problem(Reason.CONTEXT_FULL, message, field=field)
        self._busy = False
        self._usable = True
        known, tokens = self._conversation.take_change(limit=resident.max_context_tokens - 1)
        self._known = known + len(tokens)
        preamble = records.Preamble(tenant, min(self._conversation.preamble, len(tokens)))
        resident.engine.open(session, tokens, seed, self._engine_failed, preamble=preamble)
        self._prepare()

    @property
    def can_answer(self) -> bool:
        """Whether it has room for a reply, as far as it has been brought, and its engine is there."""
        return self._usable and self.resident.engine.serving and self._has_room

    @property
    def busy(self) -> bool:
        """Whether it is generating."""
        return self._busy

    @property
    def _has_room(self) -> bool:
        conversation = self._conversation
        return conversation.length + len(conversation.prompt) < self.resident.max_context_tokens

    def follow(self, content: Content) -> None:
        """The call's history is this now. Whatever this model was generating ends."""
        if not self._usable:
            return
        try:
            mine = self._content
            if (mine.system, mine.tools) == (content.system, content.tools):
                self._become(content.items)
            else:
                self._conversation = self._begun(content)
                self._prepare()
            self._content = content
        except Problem as problem:
            self._give_up(str(problem))
            return
        keep, tokens = self._conversation.take_change(limit=self.resident.max_context_tokens - 1)
        if self._busy or tokens or keep < self._known:
            self.resident.engine.sync(self._session, keep, tokens)
        self._busy, self._known = False, keep + len(tokens)

    def submit(
        self,
        number: int,
        generation: Generation,
        said: int,
        deadline: float,
        sink: Callable[[Record], None],
        *,
        may_call: bool,
        forced: tuple[int, ...] = (),
        told: Repeat | None = None,
    ) -> IncrementalDecoder:
        """Ask for a generation behind what it follows; returns what reads its tokens. Raises Problem where there is no
        room.

        said: tokens of the reply that came before. forced, told: as in ``EngineClient.submit``. Stop tokens
        by id are the call's own model's, and stop nothing here.
        """
        conversation = self._conversation
        if not self._usable or not self._has_room:
            raise Problem(Reason.CONTEXT_FULL, f"{self.resident.name} cannot hold the conversation")
        conversation.may_call = may_call
        keep, tokens = conversation.take_change(conversation.prompt)
        asked = dataclasses.replace(generation, stop_token_ids=frozenset())
        command = submission(conversation, self._session, number, keep, tokens, asked, said=said, deadline=deadline)
        submitted, first = time.monotonic(), True

        def hear(record: Record) -> None:
            nonlocal first
            if first and isinstance(record, records.Progress):
                first = False
                self.resident.answered(time.monotonic() - submitted)
            sink(record)

        self._busy = True
        self.resident.engine.submit(dataclasses.replace(command, forced=forced), hear, told)
        return self.decoder()

    def decoder(self) -> IncrementalDecoder:
        """What reads the tokens of its generations."""
        return self.resident.chat.codec.stream()

    def hold(self, held: bool) -> None:
        """Whether its replies stand still."""
        self.resident.engine.hold(self._session, held)

    def close(self) -> None:
        """The call is over."""
        self.resident.engine.close(self._session)

    def _prepare(self) -> None:
        """Replies will have the form that the tools ask for."""
        constraint = self._conversation.constraint(self._generation, goes_on=False)
        if constraint is not None:
            self.resident.engine.prepare(self._session, constraint)

    def _begun(self, content: Content) -> Conversation:
        chat, items = self.resident.chat, content.items
        return Conversation(chat, Instructions.of(chat, content.system, items, content.tools, "open", "items"))

    def _become(self, items: Sequence[Item]) -> None:
        """Rewind to the first item that differs, and put what is new behind it."""
        conversation = self._conversation
        mine = conversation.items
        same = next((at for at, pair in enumerate(zip(mine, items, strict=False)) if pair[0] != pair[1]), None)
        same = min(len(mine), len(items)) if same is None else same
        if same < len(mine) or same < len(items):
            kept = conversation.keep_items(conversation.written_apart(items, same))
            conversation.put_items(items[kept:])

    def _engine_failed(self, record: records.Failed) -> None:
        self._give_up(f"{record.reason}: {record.message}")

    def _give_up(self, cause: str) -> None:
        """This model cannot have the call; the rest of the chain is there."""
        self._usable = False
        log.error("fallback lost a call", extra={"session": self._session, "model": self.resident.name, "cause": cause})
