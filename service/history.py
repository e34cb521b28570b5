"""A call's history in the two places that hold it: the conversation and the engine's log.

The conversation is the truth; the engine is told of its changes as late as it may be.
Knows replies as what history is written from; knows no client and no order of events.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from engine import records
from engine.text.common import common_length
from service.admission import AskAside
from service.ahead import HeldReply
from service.call_services import CallServices, Record
from service.call_state import LogChange, SegmentState, Written
from service.client_events import EagerEndOfTurn, Generate
from service.conversation import Conversation
from service.instructions import Instructions
from service.items import Item, ToolCallItem, ToolDefinition, ToolResultItem
from service.mirror import Repeat
from service.options import Generation
from service.problems import Problem, Reason
from service.reply import RecordSink, Reply, Segment
from service.server_events import HistoryState
from service.shadow import Shadow
from service.submission import submission

INTERRUPTED_RESULT = '{"status": "interrupted"}'
"""What the history holds as the result of a tool call that the caller spoke over and whose result never came."""

TIMED_OUT_RESULT = '{"status": "error", "error": "the tool did not answer in time"}'
"""What it holds as the result of a tool call that had none in time."""

UNHELD_RESULT = '{"status": "done", "output": "too long"}'
"""What the history holds in place of results that the context has no room for."""


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
        self._services = services
        self._session = session
        self._conversation = conversation
        self._tenant = tenant
        self.shadows = shadows or {}
        self._submissions = 0
        self.version = 1

    @property
    def length(self) -> int:
        """Tokens in use."""
        return self._conversation.length

    def open(self, seed: int, generation: Generation, on_failed: Callable[[records.Failed], None]) -> None:
        """Open the call's session in the engine. generation: of a reply that asks for nothing of its own. on_failed:
        told of commands that belong to no reply. As with ``flush``, what is longer than the context is not told.
        """
        _, tokens = self._conversation.take_change(limit=self._services.max_context_tokens)
        constraint = self._conversation.constraint(generation, goes_on=False)
        preamble = records.Preamble(self._tenant, self._conversation.preamble)
        self._services.engine.open(self._session, tokens, seed, on_failed, constraint, preamble)

    # What is written down

    @property
    def counts(self) -> tuple[int, int, int, bool]:
        """(version, generations asked for, items named, whether replies may call tools)"""
        return self.version, self._submissions, self._conversation.made_ids, self._conversation.may_call

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
        self.version, self._submissions = version, submissions

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
        elif model in self.shadows:
            segment.read_again(self.shadows[model].decoder())
        return segment

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
        self._services.engine.submit(replace(command, forced=forced), hear, told)

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
            self.require_room(more + len(self._conversation.prompt), "update.system_prompt")
        return found

    def wake(self) -> None:
        """The caller begins to speak: what has gone cold is brought back before they have finished. Not the shadows:
        none is needed unless this model is late.
        """
        self._services.engine.wake(self._session)

    def prepare(self, generation: Generation) -> None:
        """Replies that ask for nothing of their own are made so from now on."""
        constraint = self._conversation.constraint(generation, goes_on=False)
        if constraint is not None:
            self._services.engine.prepare(self._session, constraint)

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
        if moved is None or not self.fits(need):
            restore()
            return None
        self.version += 1
        return common_length(before, self._conversation.tokens), moved

    def close_fork(self, name: str) -> None:
        """What was asked aside under this name is over, or not wanted any more."""
        self._services.engine.close(name)

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
        self.require_room(len(conversation.prompt), "items.items")

    def rename(self, ids: Sequence[str]) -> dict[str, str]:
        """Give the items these ids, where they are not empty; returns them by the old ones."""
        return self._conversation.rename(ids)

    def close(self) -> None:
        """Nothing is generated any more, and the engine forgets."""
        self._services.engine.close(self._session)
        for shadow in self.shadows.values():
            shadow.close()

    def hold(self, held: bool) -> None:
        """Whether replies stand where they are, whichever model makes them: the client does not read them."""
        self._services.engine.hold(self._session, held)
        for shadow in self.shadows.values():
            shadow.hold(held)

    def state(self, item_ids: tuple[str, ...] = ()) -> HistoryState:
        return HistoryState(self.version, self._conversation.length, item_ids)

    def require_room(self, more: int, path: str = "") -> None:
        """The policy for a full context: refuse. Raises Problem unless the tokens and one more fit."""
        used, limit = self._conversation.length, self._services.max_context_tokens
        if not self.fits(more):
            message = f"the conversation has {used} tokens; {more} more do not fit {limit}"
            raise Problem(Reason.CONTEXT_FULL, message, field=path)

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
        self.require_room(len(tokens) + len(self._conversation.prompt))
        self._conversation.put_user(text, tokens, item_id)
        return begin

    def put_said(self, text: str, item_id: str) -> Segment:
        """Add given text as the assistant's. Raises Problem, and changes nothing, where it does not fit."""
        self.require_room(self._conversation.said_tokens(text))
        return self._conversation.put_said(text, self._next_submission(), item_id)

    def require_prompt(self) -> int:
        """Where the history ends. Raises Problem where no reply fits any more."""
        self.require_room(len(self._conversation.prompt))
        return self._conversation.length

    def said_tokens(self, text: str) -> int:
        """How many tokens ``put_said`` will add, at most."""
        return self._conversation.said_tokens(text)

    def turn_tokens(self, text: str) -> int:
        """How many tokens a turn of the caller needs, with what asks for the reply to it."""
        return len(self._conversation.user_tokens(text)) + len(self._conversation.prompt)

    def result(self, call: ToolCallItem, output: str, *, is_error: bool = False, item_id: str = "") -> ToolResultItem:
        """The result of a call, not yet put anywhere."""
        return ToolResultItem(item_id or self.new_id(), call.call_id, call.name, output, is_error)

    def stand_in(self, call: ToolCallItem, output: str, *, is_error: bool = False) -> ToolResultItem:
        """What the model is told instead of the result of a call."""
        return replace(self.result(call, output, is_error=is_error), stands_in=True)

    def require_results(self, results: Sequence[ToolResultItem], *, reply: bool) -> None:
        """Raises Problem where the results of the generation at the history's end, and a reply to them if there shall
        be one, do not fit.
        """
        self.require_room(self.results_tokens(results, reply=reply), "tool_result.output")

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

    def rewrite(self, reply: Reply, chars: int) -> str:
        """Make the history hold the first ``chars`` code points of the reply, and the tools it has used.

        Returns the text that it holds then. Tool calls of which none has a result are put there with the first one;
        until the others have theirs, something stands for it. Where the newest results leave no room for a reply, it
        holds that they were too long; or not even their calls, where that leaves none either.
        """
        text = self._write(reply, chars)
        if reply.segments and reply.current.results and not self._fits_reply:
            segment, held = reply.current, reply.current.results
            segment.results = {
                key: result if result.stands_in else replace(result, output=UNHELD_RESULT)
                for key, result in held.items()
            }
            text = self._write(reply, chars)
            if not self._fits_reply:
                segment.results = held
                text = self._write(reply, chars, newest_calls=False)
        return text

    def put_stand_ins(self, reply: Reply) -> int | None:
        """Put what stands for the results that a reply which was cut will not have. Tokens at the front that stayed;
        None where all did.
        """
        assert reply.cut is not None
        before = self._conversation.tokens
        reply.kept = self.rewrite(reply, reply.cut)
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
        kept = self._write(reply, reply.cut)
        if not self._fits_reply:
            message = f"the conversation would have {conversation.length} tokens, which leaves no room for a reply"
            restore()
            segment.results, segment.standing_in = held
            raise Problem(Reason.CONTEXT_FULL, message, field="tool_result.output")
        reply.kept = kept
        self.version += 1
        return common_length(before, conversation.tokens)

    @property
    def _fits_reply(self) -> bool:
        """Whether a reply could be asked for."""
        return self.fits(len(self._conversation.prompt))

    def _write(self, reply: Reply, chars: int, *, newest_calls: bool = True) -> str:
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
                self.put_results(segment)
        return text

    def _stand_in(self, segment: Segment) -> None:
        """Some of a generation's calls were carried out, so all of them stay."""
        for call in segment.outstanding:
            if call.call_id not in segment.results:
                segment.answer(self.stand_in(call, INTERRUPTED_RESULT), outstanding=True)

    def has_result(self, call_id: str) -> bool:
        """Whether there is a result of a call, and not what stands for it."""
        return any(not item.stands_in for item in self._results_of(call_id))

    def standing_in(self, call_id: str) -> ToolResultItem | None:
        """What the model was told instead of a call's result, where it was."""
        return next((item for item in self._results_of(call_id) if item.stands_in), None)

    def _results_of(self, call_id: str) -> list[ToolResultItem]:
        return [item for item in self.items if isinstance(item, ToolResultItem) and item.call_id == call_id]

    def put_late_result(self, result: ToolResultItem) -> tuple[ToolResultItem, int, Callable[[int], int]] | None:
        """Put a result, or that it was too long, in the place of what stands in for it. What is there since, and as
        ``instruct``; None where nothing stands there any more.
        """
        conversation, before = self._conversation, self._conversation.tokens
        limit = self._services.max_context_tokens - len(conversation.prompt) - 1  # and so a reply still fits
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
        keep, tokens = self._conversation.take_change(limit=self._services.max_context_tokens)
        self._services.engine.sync(self._session, keep, tokens)
        self._follow()

    def _follow(self) -> None:
        """Bring the shadows to what the history is now."""
        for shadow in self.shadows.values():
            shadow.follow(self._conversation.content)

    def _silence(self) -> None:
        """Shadows that still make a reply which was overtaken make it no more. The others are brought along later:
        whoever waits for a first token has no use of it.
        """
        for shadow in self.shadows.values():
            if shadow.busy:
                shadow.follow(self._conversation.content)

    def follow(self, model: str) -> bool:
        """Bring one shadow to what the history is now; whether it can answer."""
        shadow = self.shadows[model]
        shadow.follow(self._conversation.content)
        return shadow.can_answer

    def fits_said(self, text: str) -> bool:
        """Whether given text would fit."""
        return self.fits(self._conversation.said_tokens(text))

    def fits(self, more: int) -> bool:
        """Whether so many tokens and one more fit."""
        return self._conversation.length + more < self._services.max_context_tokens

    def prefill(self, text: str, on_prefilled: Callable[[records.Prefilled], None] | None = None) -> None:
        """Let the engine compute the caller's turn as far as it is known; it is no part of the history yet."""
        conversation = self._conversation
        # With the prompt behind it: a final that says the same finds everything but one position computed.
        ahead = (*conversation.user_tokens(text), *conversation.prompt)
        if conversation.length + len(ahead) >= self._services.max_context_tokens:
            self.flush()
            return
        keep, tokens = conversation.take_change(ahead)
        self._services.engine.sync(self._session, keep, tokens, len(ahead), on_prefilled)

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
        segment = conversation.begin_segment(self._next_submission())
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
        self._services.engine.submit(command, lambda record: sink(segment, record))
        self._silence()

    def _submit_elsewhere(self, shadow: Shadow, reply: Reply, sink: RecordSink) -> None:
        conversation, generation = self._conversation, reply.generation
        shadow.follow(conversation.content)
        segment = conversation.begin_segment(self._next_submission(), len(conversation.prompt), foreign=True)

        def hear(record: Record) -> None:
            sink(segment, record)

        said, deadline, may_call = reply.output_tokens, reply.deadline, conversation.may_call
        segment.decoder = shadow.submit(segment.number, generation, said, deadline, hear, may_call=may_call)
        conversation.put_prompt()
        reply.segments.append(segment)

    def submit_ahead(self, asked: EagerEndOfTurn, generation: Generation, hold: int) -> HeldReply:
        """Ask for the reply to a turn that is not committed; nothing of it is history yet. Raises Problem where no
        reply would fit.
        """
        conversation = self._conversation
        user = conversation.user_tokens(asked.text)
        ahead = (*user, *conversation.prompt)
        self.require_room(len(ahead))
        keep, tokens = conversation.take_change(ahead)
        segment = conversation.begin_segment(self._next_submission(), len(ahead))
        held = HeldReply(asked, user, generation, segment)
        command = submission(
            conversation, self._session, segment.number, keep, tokens, generation, hold=hold, ahead=len(ahead)
        )
        self._services.engine.submit(command, held.take)
        return held

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
        limit = self._services.max_context_tokens
        if keep + len(tokens) >= limit:
            message = f"the question has {keep + len(tokens)} tokens; they and an answer do not fit {limit}"
            raise Problem(Reason.CONTEXT_FULL, message, field="generate.prompt")
        answer = min(generation.max_tokens, limit - keep - len(tokens))
        admit(len(tokens), answer)
        command = submission(conversation, self._session, 1, keep, tokens, generation)
        self._services.engine.fork(self._session, name)
        self._services.engine.submit(replace(command, session=name, request=asked.request_id, aside=True), sink)
        return len(tokens) + answer

    def put_answered(self, held: HeldReply, item_id: str) -> int:
        """Add the turn that was answered ahead; returns where it begins."""
        begin = self._conversation.length
        self._conversation.put_user(held.asked.text, held.tokens, item_id)
        return begin

    def release(self, held: HeldReply, reply: Reply) -> None:
        """The reply that was made ahead, to the turn at the history's end, is wanted now."""
        self._conversation.put_prompt()
        self._services.engine.release(self._session, held.segment.number, reply.deadline, reply.speaking_rate)
        self._conversation.take_change()  # which the engine has been told ahead
        self._silence()

    def _next_submission(self) -> int:
        self._submissions += 1
        return self._submissions
