"""What is asked of the engine for a call: the generations of its replies, and of questions aside.

Knows of the history what has to stand before a generation; what becomes of it then is ``History``'s.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace

from service.admission import AskAside
from service.ahead import HeldReply
from service.call_services import EnginePort, Record
from service.call_state import SegmentState
from service.client_events import EagerEndOfTurn, Generate
from service.conversation import Conversation
from service.mirror import Repeat
from service.options import Generation
from service.problems import Problem, Reason
from service.reply import RecordSink, Reply, Segment
from service.room import Room
from service.shadow import Shadow
from service.submission import submission


class Generations:
    """Of one call. shadows: the call at the models that may have to answer in its own one's place, by their names.

    asked: how many there have been.
    """

    def __init__(
        self,
        engine: EnginePort,
        session: str,
        conversation: Conversation,
        room: Room,
        shadows: Mapping[str, Shadow],
    ) -> None:
        self._engine = engine
        self._session = session
        self._conversation = conversation
        self._room = room
        self._shadows = shadows
        self.asked = 0

    def next_number(self) -> int:
        """Of the one that begins now."""
        self.asked += 1
        return self.asked

    # Replies

    def submit(self, reply: Reply, sink: RecordSink) -> None:
        """Ask for the next generation of a reply: the first, or the one after its tool results. Raises Problem where
        another model has to answer and cannot.
        """
        if reply.answerer is not None:
            self._submit_elsewhere(reply.answerer, reply, sink)
            return
        conversation = self._conversation
        conversation.put_prompt()
        keep, tokens = conversation.take_change()
        segment = conversation.begin_segment(self.next_number())
        command = submission(
            conversation,
            self._session,
            segment.number,
            keep,
            tokens,
            reply.generation,
            said=reply.output_tokens,
            deadline=reply.deadline,
            speaking_rate=reply.speaking_rate,
        )
        reply.segments.append(segment)
        self._engine.submit(command, lambda record: sink(segment, record))
        self._silence()

    def _submit_elsewhere(self, shadow: Shadow, reply: Reply, sink: RecordSink) -> None:
        conversation, generation = self._conversation, reply.generation
        shadow.follow(conversation.content)
        segment = conversation.begin_segment(self.next_number(), len(conversation.prompt), foreign=True)

        def hear(record: Record) -> None:
            sink(segment, record)

        said, deadline, may_call = reply.output_tokens, reply.deadline, conversation.may_call
        segment.decoder = shadow.submit(segment.number, generation, said, deadline, hear, may_call=may_call)
        conversation.put_prompt()
        reply.segments.append(segment)

    def submit_ahead(self, asked: EagerEndOfTurn, generation: Generation, hold: int, speaking_rate: float) -> HeldReply:
        """Ask for the reply to a turn that is not committed; nothing of it is history yet. speaking_rate: as in
        ``records.Submit``. Raises Problem where no reply would fit.
        """
        conversation = self._conversation
        user = conversation.user_tokens(asked.text)
        ahead = (*user, *conversation.prompt)
        self._room.require(len(ahead))
        keep, tokens = conversation.take_change(ahead)
        segment = conversation.begin_segment(self.next_number(), len(ahead))
        held = HeldReply(asked, user, generation, segment)
        command = submission(
            conversation,
            self._session,
            segment.number,
            keep,
            tokens,
            generation,
            hold=hold,
            ahead=len(ahead),
            speaking_rate=speaking_rate,
        )
        self._engine.submit(command, held.take)
        return held

    def release(self, held: HeldReply, reply: Reply) -> None:
        """The reply that was made ahead, to the turn at the history's end, is wanted now."""
        self._conversation.put_prompt()
        self._engine.release(self._session, held.segment.number, reply.deadline, reply.speaking_rate)
        self._conversation.take_change()  # which the engine has been told ahead
        self._silence()

    def go_on(self, reply: Reply, sink: RecordSink) -> None:
        """Let a reply that was being made go on behind what there is of it. Raises Problem where another model makes
        it, and cannot.
        """
        segment, conversation = reply.current, self._conversation
        told = Repeat(len(segment.text), segment.clause_ends, len(segment.calls))
        said, forced = reply.output_tokens - len(segment.tokens), tuple(segment.tokens)

        def hear(record: Record) -> None:
            sink(segment, record)

        if (shadow := reply.answerer) is not None:
            shadow.submit(
                segment.number, reply.generation, said, 0.0, hear, may_call=segment.may_call, forced=forced, told=told
            )
            return
        if segment.foreign:
            raise Problem(Reason.UNKNOWN_MODEL, "the model that answers cannot go on here")
        conversation.may_call, may_call = segment.may_call, conversation.may_call
        number, length = segment.number, conversation.length
        command = submission(conversation, self._session, number, length, (), reply.generation, said=said)
        conversation.may_call = may_call
        self._engine.submit(replace(command, forced=forced), hear, told)

    def restored_segment(self, state: SegmentState, model: str) -> Segment:
        """A generation that was written down. model: of the chain, that makes it; empty: the call's own."""
        segment = Segment(
            state.number,
            state.start,
            state.item_id,
            foreign=state.foreign,
            may_call=state.may_call,
            clause_ends=state.clause_ends,
            tokens=list(state.tokens),
            text=state.text,
            calls=list(state.calls),
            malformed_calls=state.malformed_calls,
            results={result.call_id: result for result in state.results},
            wants_reply=state.wants_reply,
            standing_in=set(state.standing_in),
        )
        if not state.foreign:
            segment.read_again(self._conversation.decoder())
        elif model in self._shadows:
            segment.read_again(self._shadows[model].decoder())
        return segment

    # Questions aside

    def new_fork(self, purpose: str) -> str:
        """A name for a fork of the call's session, which neither a call nor a later one's fork can have."""
        return f"{self._session}\n{purpose} {secrets.token_hex(4)}"

    def ask_aside(
        self,
        name: str,
        asked: Generate,
        generation: Generation,
        sink: Callable[[Record], None],
        admit: AskAside,
    ) -> int:
        """Ask a side question of a fork called ``name``. Raises Problem where it, or an answer, would not fit.

        admit: raises Problem where there is no room for what the fork does not share with the call. Returns how many
        tokens that are.
        """
        conversation = self._conversation
        if asked.items is None:
            keep, tokens = conversation.aside(asked.question)
        else:
            keep, tokens = conversation.aside_items(asked.items)
        limit = self._room.limit
        if keep + len(tokens) >= limit:
            message = f"the question has {keep + len(tokens)} tokens; they and an answer do not fit {limit}"
            raise Problem(Reason.CONTEXT_FULL, message, field="generate.prompt")
        answer = min(generation.max_tokens, limit - keep - len(tokens))
        admit(len(tokens), answer)
        command = submission(conversation, self._session, 1, keep, tokens, generation)
        self._engine.fork(self._session, name)
        self._engine.submit(replace(command, session=name, request=asked.request_id, aside=True), sink)
        return len(tokens) + answer

    def close_fork(self, name: str) -> None:
        """What was asked aside under this name is over, or not wanted any more."""
        self._engine.close(name)

    def _silence(self) -> None:
        """Shadows that still make a reply which was overtaken make it no more. The others are brought along later:
        whoever waits for a first token has no use of it.
        """
        for shadow in self._shadows.values():
            if shadow.busy:
                shadow.follow(self._conversation.content)
