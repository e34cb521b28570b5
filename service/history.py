"""A call's history in the two places that hold it: the conversation and the engine's log.

The conversation is the truth; the engine is told of its changes as late as it may be.
Knows replies as what history is written from; knows no client and no order of events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from engine import records
from engine.text.common import common_length
from service.ahead import HeldReply
from service.call_services import CallServices
from service.call_state import LogChange, Written
from service.conversation import Conversation
from service.cuts import Cuts
from service.generations import Generations
from service.instructions import Instructions
from service.items import Item, ToolDefinition, ToolResultItem
from service.options import Generation
from service.problems import Problem, Reason
from service.reply import Reply, Segment
from service.room import Room
from service.server_events import HistoryState
from service.shadow import Shadow
from service.tool_results import UNHELD_RESULT, ToolResults


class History:
    """The history of one call. ``version`` grows with each reply that stops, with each cut, and with each edit.

    shadows: the call at the models that may have to answer in its own one's place, by their names. tenant: whose call
    it is: its instructions are computed once for all of that tenant's.
    """

    def __init__(
        self,
        services: CallServices,
        session: str,
        conversation: Conversation,
        shadows: Mapping[str, Shadow] | None = None,
        tenant: str = "",
    ) -> None:
        self._engine = services.engine
        self._session = session
        self._conversation = conversation
        self._tenant = tenant
        self.shadows = shadows or {}
        self._room = room = Room(conversation, services.max_context_tokens)
        self.results = ToolResults(conversation)
        self.cuts = Cuts(conversation, room, self.results)
        self.generations = Generations(services.engine, session, conversation, room, self.shadows)
        self.version = 1

    @property
    def length(self) -> int:
        """Tokens in use."""
        return self._conversation.length

    def open(self, seed: int, generation: Generation, on_failed: Callable[[records.Failed], None]) -> None:
        """Open the call's session in the engine. generation: of a reply that asks for nothing of its own. on_failed:
        told of commands that belong to no reply. As with ``flush``, what is longer than the context is not told.
        """
        _, tokens = self._conversation.take_change(limit=self._room.limit)
        constraint = self._conversation.constraint(generation, goes_on=False)
        preamble = records.Preamble(self._tenant, self._conversation.preamble)
        self._engine.open(self._session, tokens, seed, on_failed, constraint, preamble)

    # What is written down

    @property
    def counts(self) -> tuple[int, int, int, bool]:
        """(version, generations asked for, items named, whether replies may call tools)"""
        return self.version, self.generations.asked, self._conversation.made_ids, self._conversation.may_call

    @property
    def written(self) -> Written:
        """What stands before it."""
        mine = self._conversation.instructions_now
        return Written(mine.system, mine.tools, mine.items, mine.summary)

    def whole_log(self) -> LogChange:
        """All of it."""
        return LogChange(0, self._conversation.tokens, 0, tuple(self._conversation.spans))

    def take_entry(self) -> tuple[Written | None, LogChange | None]:
        """What has changed since this was last asked; None where nothing has."""
        instructions, kept = self._conversation.take_entry()
        written = None if instructions is None else self.written
        if kept is None:
            return written, None
        tokens, spans = self._conversation.tokens_from(kept[0]), tuple(self._conversation.spans[kept[1] :])
        return written, LogChange(kept[0], tokens, kept[1], spans)

    def restore(self, version: int, submissions: int) -> None:
        """The conversation is one that was written down, at this version."""
        self.version, self.generations.asked = version, submissions

    @property
    def items(self) -> tuple[Item, ...]:
        return self._conversation.items

    def instructions(
        self, system: str | None, tools: Sequence[ToolDefinition] | None, base: Instructions | None
    ) -> Instructions:
        """New ones, not yet in force. Raises Problem where they cannot be, or leave no room for a reply."""
        found = self._conversation.instructions(system, tools, base)
        more = len(found.head.ids) - self._conversation.spans[0].end
        if more > 0:
            self._room.require(more + len(self._conversation.prompt), "update.system_prompt")
        return found

    def wake(self) -> None:
        """The caller begins to speak: what has gone cold is brought back before they have finished. Not the shadows:
        none is needed unless this model is late.
        """
        self._engine.wake(self._session)

    def prepare(self, generation: Generation) -> None:
        """Replies that ask for nothing of their own are made so from now on."""
        constraint = self._conversation.constraint(generation, goes_on=False)
        if constraint is not None:
            self._engine.prepare(self._session, constraint)

    def instruct(self, instructions: Instructions) -> tuple[int, Callable[[int], int]]:
        """(tokens at the front that stayed as they were, where an end of an item is since)"""
        before = self._conversation.tokens
        moved = self._conversation.instruct(instructions)
        self.version += 1
        return common_length(before, self._conversation.tokens), moved

    @property
    def longest_turn(self) -> int:
        """Tokens of the caller's longest turn."""
        return self._conversation.longest_turn

    @property
    def prompt_tokens(self) -> int:
        """Of what asks for a reply."""
        return len(self._conversation.prompt)

    @property
    def settled_items(self) -> tuple[Item, ...]:
        """Those before the newest turn."""
        return self._conversation.settled_items

    def drop_oldest(
        self, keep_tokens: int, covered: int | None = None, summary: str = "", need: int = 0
    ) -> tuple[int, Callable[[int], int]] | None:
        """As ``instruct``, of ``Conversation.drop_oldest``; None where nothing has changed, and nothing does where
        ``need`` more tokens would not fit all the same.
        """
        before, restore = self._conversation.tokens, self._conversation.snapshot()
        moved = self._conversation.drop_oldest(keep_tokens, covered, summary)
        if moved is None or not self._room.fits(need):
            restore()
            return None
        self.version += 1
        return common_length(before, self._conversation.tokens), moved

    def replace_items(self, items: Sequence[Item], same: int) -> int:
        """Make the history these items, the first ``same`` of which it has; returns how many of its tokens stayed."""
        before = self._conversation.tokens
        self._put_items(items, same)
        self.version += 1
        return common_length(before, self._conversation.tokens)

    def items_before(self, position: int) -> int:
        """How many items end at or before a position in the log."""
        return sum(len(span.items) for span in self._conversation.spans if span.end <= position)

    def try_items(self, items: Sequence[Item], same: int) -> None:
        """Raises Problem where ``replace_items`` would. Changes nothing."""
        restore = self._conversation.snapshot()
        try:
            self._put_items(items, same)
        finally:
            restore()

    def _put_items(self, items: Sequence[Item], same: int) -> None:
        conversation = self._conversation
        kept = conversation.keep_items(conversation.written_apart(items, same))
        conversation.put_items(items[kept:])
        self._room.require(len(conversation.prompt), "items.items")

    def rename(self, ids: Sequence[str]) -> dict[str, str]:
        """Give the items these ids, where they are not empty; returns them by the old ones."""
        return self._conversation.rename(ids)

    def close(self) -> None:
        """Nothing is generated any more, and the engine forgets."""
        self._engine.close(self._session)
        for shadow in self.shadows.values():
            shadow.close()

    def hold(self, held: bool) -> None:
        """Whether replies stand where they are, whichever model makes them: the client does not read them."""
        self._engine.hold(self._session, held)
        for shadow in self.shadows.values():
            shadow.hold(held)

    def state(self, item_ids: tuple[str, ...] = ()) -> HistoryState:
        return HistoryState(self.version, self._conversation.length, item_ids)

    def item_ids(self, reply: Reply) -> tuple[str, ...]:
        """Ids of the items that the newest reply's turn has put there, the caller's message included."""
        return self._conversation.item_ids(reply.begin)

    def user_tokens(self, text: str) -> tuple[int, ...]:
        """A turn of the caller as it would follow now."""
        return self._conversation.user_tokens(text)

    def new_id(self) -> str:
        return self._conversation.new_id()

    def forbid_calls(self) -> bool:
        """No reply calls a tool any more; whether that is new."""
        could, self._conversation.may_call = self._conversation.may_call, False
        return could

    # What is added

    def put_user(self, text: str, item_id: str) -> int:
        """Add a turn of the caller; returns where it begins. Raises Problem, and changes nothing, where no reply to it
        would fit.
        """
        tokens, begin = self._conversation.user_tokens(text), self._conversation.length
        self._room.require(len(tokens) + len(self._conversation.prompt))
        self._conversation.put_user(text, tokens, item_id)
        return begin

    def put_said(self, text: str, item_id: str) -> Segment:
        """Add given text as the assistant's. Raises Problem, and changes nothing, where it does not fit."""
        self._room.require(self._conversation.said_tokens(text))
        return self._conversation.put_said(text, self.generations.next_number(), item_id)

    def require_prompt(self) -> int:
        """Where the history ends. Raises Problem where no reply fits any more."""
        self._room.require(len(self._conversation.prompt))
        return self._conversation.length

    def said_tokens(self, text: str) -> int:
        """How many tokens ``put_said`` will add, at most."""
        return self._conversation.said_tokens(text)

    def turn_tokens(self, text: str) -> int:
        """How many tokens a turn of the caller needs, with what asks for the reply to it."""
        return len(self._conversation.user_tokens(text)) + len(self._conversation.prompt)

    def require_results(self, results: Sequence[ToolResultItem], *, reply: bool) -> None:
        """Raises Problem where the results of the generation at the history's end, and a reply to them if there shall
        be one, do not fit.
        """
        self._room.require(self.results_tokens(results, reply=reply), "tool_result.output")

    def results_tokens(self, results: Sequence[ToolResultItem], *, reply: bool) -> int:
        """How many tokens ``require_results`` asks room for."""
        return self._conversation.result_tokens(results) + (len(self._conversation.prompt) if reply else 0)

    def put_results(self, segment: Segment) -> None:
        """Add the results of a generation's calls, in the order of the calls."""
        self._conversation.put_results([segment.results[call.call_id] for call in segment.calls])

    def adopt(self, segment: Segment, *, broken_off: bool = False) -> None:
        """A whole generation is in the engine's log: it is history, but for tool calls that are none. broken_off: it
        failed, and may have tokens behind what was told of it, which alone is history then.

        Text that its tokens do not spell, for a stop string began within one, is written anew.
        """
        is_cut_within = not segment.calls and not segment.foreign and not self._conversation.spells(segment)
        if not segment.tokens and not segment.text:
            self.drop(segment)
        elif is_cut_within or ((segment.malformed_calls or broken_off) and not segment.foreign):
            self.drop(segment)
            self._conversation.put_heard(segment, len(segment.text), segment.calls)
            self.flush()
        elif segment.foreign:
            self._conversation.adopt_foreign(segment)
            self.flush()
        else:
            self._conversation.adopt(segment)
            self._follow()

    def drop(self, segment: Segment) -> None:
        """A generation came to nothing: what asked for it goes too."""
        self._conversation.rewind(segment.start - len(self._conversation.prompt))

    def withdraw(self, reply: Reply) -> None:
        """Nothing has come of the reply's newest generation, if it has one, and nothing shall."""
        if reply.segments:
            self.drop(reply.segments.pop())
        self.flush()

    def put_stand_ins(self, reply: Reply) -> int | None:
        """Put what stands for the results that a reply which was cut will not have. Tokens at the front that stayed;
        None where all did.
        """
        assert reply.cut is not None
        before = self._conversation.tokens
        reply.kept = self.cuts.rewrite(reply, reply.cut)
        if self._conversation.tokens == before:
            return None
        self.version += 1
        return common_length(before, self._conversation.tokens)

    def put_behind_cut(self, reply: Reply, segment: Segment, result: ToolResultItem) -> int:
        """Put one more result of a reply that was cut; returns how many tokens at the front stayed. Raises Problem, and
        changes nothing, where no reply would fit any more.
        """
        assert reply.cut is not None
        conversation, before, restore = self._conversation, self._conversation.tokens, self._conversation.snapshot()
        held = segment.results.copy(), segment.standing_in.copy()
        segment.answer(result)
        kept = self.cuts.write(reply, reply.cut)
        if not self._room.fits_reply:
            message = f"the conversation would have {conversation.length} tokens, which leaves no room for a reply"
            restore()
            segment.results, segment.standing_in = held
            raise Problem(Reason.CONTEXT_FULL, message, field="tool_result.output")
        reply.kept = kept
        self.version += 1
        return common_length(before, conversation.tokens)

    def put_late_result(self, result: ToolResultItem) -> tuple[ToolResultItem, int, Callable[[int], int]] | None:
        """Put a result, or that it was too long, in the place of what stands in for it. What is there since, and as
        ``instruct``; None where nothing stands there any more.
        """
        conversation, before = self._conversation, self._conversation.tokens
        limit = self._room.limit - len(conversation.prompt) - 1  # and so a reply still fits
        for put in (result, replace(result, output=UNHELD_RESULT)):
            if (moved := conversation.put_late_result(put, limit)) is not None:
                self.version += 1
                return put, common_length(before, conversation.tokens), moved
        return None

    # What the engine is told

    def flush(self) -> None:
        """Tell the engine what the history is now. Whatever it was generating on the old one ends.

        What is longer than the context is told as far as it fits: nothing is asked of it before it is shorter.
        """
        keep, tokens = self._conversation.take_change(limit=self._room.limit)
        self._engine.sync(self._session, keep, tokens)
        self._follow()

    def _follow(self) -> None:
        """Bring the shadows to what the history is now."""
        for shadow in self.shadows.values():
            shadow.follow(self._conversation.content)

    def follow(self, model: str) -> bool:
        """Bring one shadow to what the history is now; whether it can answer."""
        shadow = self.shadows[model]
        shadow.follow(self._conversation.content)
        return shadow.can_answer

    def fits_said(self, text: str) -> bool:
        """Whether given text would fit."""
        return self._room.fits(self._conversation.said_tokens(text))

    def prefill(self, text: str, on_prefilled: Callable[[records.Prefilled], None] | None = None) -> None:
        """Let the engine compute the caller's turn as far as it is known; it is no part of the history yet."""
        conversation = self._conversation
        # With the prompt behind it: a final that says the same finds everything but one position computed.
        ahead = (*conversation.user_tokens(text), *conversation.prompt)
        if conversation.length + len(ahead) >= self._room.limit:
            self.flush()
            return
        keep, tokens = conversation.take_change(ahead)
        self._engine.sync(self._session, keep, tokens, len(ahead), on_prefilled)

    def put_answered(self, held: HeldReply, item_id: str) -> int:
        """Add the turn that was answered ahead; returns where it begins."""
        begin = self._conversation.length
        self._conversation.put_user(held.asked.text, held.tokens, item_id)
        return begin
