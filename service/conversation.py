"""A call's history: its items, and the token log that is the truth about them.

Owns which tokens belong to which item, what a cut leaves of a reply, and from where on the engine's log differs from
this one. Knows no turn, no client and no engine; what items look like to the model is ``engine.text.chat``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from engine.constraint import Constraint, JsonConstraint, ToolConstraint
from engine.models.config import read_json
from engine.text.call_form import CallForm
from engine.text.chat import Chat
from engine.text.codec import Codec, IncrementalDecoder
from engine.text.common import common_length
from service.client_events import Open
from service.instructions import Instructions
from service.items import Item, MessageItem, ToolCallItem, ToolDefinition, ToolResultItem
from service.kept import kept
from service.options import Generation, ToolMode
from service.problems import Problem, invalid
from service.reply import Segment

if TYPE_CHECKING:
    from service.call_state import CallState

ITEM_PREFIX = "fw-"
"""Of the ids that the service makes. A client's own id that begins so may meet one of these."""


@dataclass(frozen=True)
class Span:
    """Tokens ``start`` to ``end`` of the log are these items, and what the template puts around them."""

    items: tuple[Item, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Content:
    """A conversation that is in no model's words yet."""

    system: str
    tools: tuple[ToolDefinition, ...]
    items: tuple[Item, ...]


class Conversation:
    """The history of one call."""

    @staticmethod
    def opened(chat: Chat, opening: Open) -> Conversation:
        """As a call begins. Raises Problem for items or tools that the model's template refuses."""
        of = Instructions.of(chat, opening.system, opening.items, opening.tools, "open", "items")
        return Conversation(chat, of)

    @staticmethod
    def restored(chat: Chat, state: CallState) -> Conversation:
        """As it was written down. Raises Problem where the template refuses what it took then."""
        was, status = state.written, state.status
        made = Conversation(chat, Instructions.of(chat, was.system, was.items, was.tools, "open", "items", was.summary))
        made._tokens, made.spans = state.tokens.copy(), state.spans.copy()
        made._made_ids, made.may_call = status.made_ids, status.may_call
        return made

    def __init__(self, chat: Chat, instructions: Instructions) -> None:
        self._chat = chat
        self._instructions = instructions
        self._tokens = list(instructions.head.ids)
        self._known = 0
        """Tokens of the log that the engine has been told."""
        self._recorded = 0
        """Tokens of it that have been written down, and as which spans and behind what."""
        self._recorded_spans: list[Span] = []
        self._recorded_length = 0
        self._recorded_instructions: Instructions | None = None
        self._made_ids = 0
        self.may_call = True
        named = tuple(item if item.id else replace(item, id=self.new_id()) for item in instructions.items)
        self.spans = [Span(named, 0, len(self._tokens))]

    @property
    def length(self) -> int:
        return len(self._tokens)

    @property
    def preamble(self) -> int:
        """Tokens at the front that the instructions and the tools alone decide."""
        mine = self._instructions
        if not mine.items:
            return len(mine.head.ids)
        try:
            return common_length(self._bare(mine.summary).head.ids, self._tokens)
        except Problem:
            return 0

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(self._tokens)

    def tokens_from(self, start: int) -> tuple[int, ...]:
        """Those behind the first ``start``."""
        return tuple(self._tokens[start:])

    @property
    def instructions_now(self) -> Instructions:
        """What stands before it."""
        return self._instructions

    @property
    def vocab_size(self) -> int:
        return len(self._chat.codec.hf)

    @property
    def call_form(self) -> CallForm | None:
        """How replies call tools; None where there are none."""
        return self._instructions.call_form

    @property
    def prompt(self) -> tuple[int, ...]:
        """What asks the model for a reply."""
        return self._chat.prompt

    @property
    def stop_tokens(self) -> frozenset[int]:
        return self._chat.codec.stop_tokens

    def constraint(self, generation: Generation, *, goes_on: bool) -> Constraint | None:
        """What form a generation must have; None for any. goes_on: a reply behind its tool results, which has made the
        calls that it had to make.
        """
        choice, text = generation.tool_choice, generation.text_schema
        form = self._instructions.call_form
        if form is None:
            return JsonConstraint(text) if text else None
        mode: ToolMode = "auto" if choice.mode == "required" and goes_on else choice.mode
        if not self.may_call:
            mode = "none"
        schemas = self._instructions.schemas
        tools = tuple(tool for tool in schemas if mode != "required" or choice.tool in ("", tool[0]))
        return ToolConstraint(form, tools, mode, choice.several, text)

    @property
    def content(self) -> Content:
        """What it is in no model's words."""
        return Content(self._instructions.written, self._instructions.tools, self.items)

    def take_change(self, ahead: Sequence[int] = (), *, limit: int | None = None) -> tuple[int, tuple[int, ...]]:
        """(keep, tokens) that make the engine's log this one, followed by ``ahead``; the engine counts as told.

        ``ahead`` is no part of the history: the next change replaces it. ``limit``: how many tokens the engine's log
        can have; the rest of this one is not told.
        """
        keep = self._known
        told = self._tokens[keep:limit]
        self._known = keep + len(told)
        return keep, (*told, *ahead)

    @property
    def made_ids(self) -> int:
        """How many items were named here."""
        return self._made_ids

    def take_entry(self) -> tuple[Instructions | None, tuple[int, int] | None]:
        """What is not written down yet: the instructions, if they are other ones, and how many tokens and spans at the
        front are as they were, if not all. It counts as written down from now on.
        """
        instructions = None if self._instructions is self._recorded_instructions else self._instructions
        kept, same, length = self._recorded, _same(self._recorded_spans, self.spans), len(self._tokens)
        unchanged = kept == self._recorded_length == length and same == len(self.spans) == len(self._recorded_spans)
        if not unchanged:
            self._recorded = self._recorded_length = length
            self._recorded_spans, self._recorded_instructions = self.spans.copy(), self._instructions
        return instructions, None if unchanged else (kept, same)

    def user_tokens(self, text: str) -> tuple[int, ...]:
        """A turn of the caller as it would follow now."""
        return tuple(self._chat.user(text, first=None if self._had_user else self._instructions.head.first_user))

    def aside(self, question: str) -> tuple[int, tuple[int, ...]]:
        """(keep, tokens) that make the log of a fork of the engine's: the whole items of the history, a question behind
        them, and what asks for the answer.
        """
        base = self._tokens[: self.spans[-1].end]
        keep = min(self._known, len(base))
        return keep, (*base[keep:], *self.user_tokens(question), *self.prompt)

    def aside_items(self, items: Sequence[Item]) -> tuple[int, tuple[int, ...]]:
        """The same of other items in place of the history's. Raises Problem for items that the template refuses."""
        mine = self._instructions
        event, place = "generate", "conversation.items"
        asked = Instructions.of(self._chat, mine.system, items, mine.tools, event, place, mine.summary)
        other = Conversation(self._chat, asked)
        tokens = (*other.tokens, *self.prompt)
        keep = common_length(self._tokens[: self._known], tokens)
        return keep, tokens[keep:]

    def new_id(self) -> str:
        """A name for an item that the client did not name."""
        self._made_ids += 1
        return f"{ITEM_PREFIX}{self._made_ids}"

    def item_ids(self, since: int = 0) -> tuple[str, ...]:
        """Ids of the items whose tokens begin at position ``since`` or after, in order."""
        return tuple(item.id for span in self.spans if span.start >= since for item in span.items)

    def put_user(self, text: str, tokens: Sequence[int], item_id: str = "") -> None:
        """Append a turn of the caller, ``tokens`` being its ``user_tokens``."""
        self._put(tokens, MessageItem(item_id or self.new_id(), "user", text))

    def put_prompt(self) -> None:
        """Append what asks for a reply. It is part of the reply's span."""
        self._put(self.prompt)

    def spells(self, segment: Segment) -> bool:
        """Whether the tokens of a generation without calls spell all of its text."""
        return max(self._chat.codec.text_ends(segment.tokens), default=0) >= len(segment.text)

    def adopt(self, segment: Segment) -> None:
        """The engine's log has a whole generation at its end: so has this one, with the message properly closed."""
        self._tokens += segment.tokens
        self._known = len(self._tokens)
        self._close(segment, segment.start, segment.text, segment.calls)

    def begin_segment(self, number: int, ahead: int = 0, *, foreign: bool = False) -> Segment:
        """The generation that begins where the log ends now, or ``ahead`` tokens later. foreign: by another model."""
        start, decoder = len(self._tokens) + ahead, None if foreign else self._chat.codec.stream()
        return Segment(number, start, self.new_id(), decoder, foreign, may_call=self.may_call)

    def decoder(self) -> IncrementalDecoder:
        """What reads the tokens of a generation of the call's own model."""
        return self._chat.codec.stream()

    def adopt_foreign(self, segment: Segment) -> None:
        """What another model has said, in this one's ids, stands behind what asked for it."""
        tokens, _ = kept(self._chat, segment, len(segment.text), segment.calls)
        self._tokens += tokens
        self._close(segment, segment.start, segment.text, segment.calls)

    def put_said(self, text: str, number: int, item_id: str) -> Segment:
        """Append given text as a message of the assistant."""
        self.put_prompt()
        segment = Segment(number, len(self._tokens), item_id or self.new_id(), tokens=self._chat.said(text), text=text)
        self._put(segment.tokens)
        self._close(segment, segment.start, text, ())
        return segment

    def said_tokens(self, text: str) -> int:
        """How many tokens ``put_said`` will append, at most."""
        return len(self.prompt) + len(self._chat.said(text)) + len(self._chat.close(None))

    def put_heard(self, segment: Segment, chars: int, calls: Sequence[ToolCallItem]) -> str:
        """Append what was heard of a generation, and the tool calls it made; returns the text that this holds.

        What that is, is the rule of ``service.kept``. Nothing at all is appended where it leaves nothing.
        """
        tokens, text = kept(self._chat, segment, chars, calls)
        if not text and not calls:
            return ""
        self.put_prompt()
        start = len(self._tokens)
        self._put(tokens)
        self._close(segment, start, text, calls)
        return text

    def put_results(self, results: Sequence[ToolResultItem]) -> None:
        """Append the results of a generation's tool calls. Raises ValueError where the template has no place."""
        if results:
            self._put(self._result_tokens(results), *results)

    def put_late_result(self, result: ToolResultItem, limit: int) -> Callable[[int], int] | None:
        """Put a result in the place of what stands in for it. Returns where each end of an item is since; None, and
        changes nothing, where nothing does, or there are more than ``limit`` tokens with it.
        """
        spans = enumerate(self.spans)
        at = next((at for at, span in spans if any(_stands_in(item, result.call_id) for item in span.items)), None)
        if at is None:
            return None
        span = self.spans[at]
        results = [
            replace(result, id=result.id or item.id) if _stands_in(item, result.call_id) else item
            for item in span.items
        ]
        if at == 0:
            return self._reopen(results, limit)
        tokens = self._result_tokens([item for item in results if isinstance(item, ToolResultItem)])
        shift = len(tokens) - (span.end - span.start)
        if self.length + shift > limit:
            return None
        self._tokens[span.start : span.end] = tokens
        self._changed_from(span.start)
        behind = [Span(later.items, later.start + shift, later.end + shift) for later in self.spans[at + 1 :]]
        self.spans[at:] = [Span(tuple(results), span.start, span.end + shift), *behind]
        return lambda end: end if end < span.end else end + shift

    def _reopen(self, items: Sequence[Item], limit: int) -> Callable[[int], int] | None:
        """As ``put_late_result``, of what the call was opened with, or a client has put in place of all that: these
        items stand before everything else.
        """
        mine, restore = self._instructions, self.snapshot()
        opened = Instructions.of(self._chat, mine.system, items, mine.tools, "items", "items", mine.summary)
        self.spans[0] = replace(self.spans[0], items=tuple(items))
        moved = self.instruct(opened)
        if self.length > limit:
            restore()
            return None
        return moved

    def result_tokens(self, results: Sequence[ToolResultItem]) -> int:
        """How many tokens ``put_results`` will append."""
        return len(self._result_tokens(results))

    def _changed_from(self, length: int) -> None:
        """What was told or written down of the log behind its first ``length`` tokens is no more."""
        self._known, self._recorded = min(self._known, length), min(self._recorded, length)

    def rewind(self, length: int) -> None:
        """Forget everything behind the first ``length`` tokens, which must end a span."""
        del self._tokens[length:]
        self._changed_from(length)
        while self.spans and self.spans[-1].end > length:
            self.spans.pop()

    # What is changed before the end

    @property
    def items(self) -> tuple[Item, ...]:
        """All of them, in order."""
        return tuple(item for span in self.spans for item in span.items)

    def instructions(
        self, system: str | None, tools: Sequence[ToolDefinition] | None, base: Instructions | None = None
    ) -> Instructions:
        """Those of ``base``, or else the ones in force, with what is not None changed. Raises Problem."""
        now = base or self._instructions
        system, tools = now.system if system is None else system, now.tools if tools is None else tools
        return Instructions.of(self._chat, system, now.items, tools, "update", "system_prompt", now.summary)

    @property
    def longest_turn(self) -> int:
        """Tokens of the longest turn of the caller."""
        return max((span.end - span.start for _, span in self._turns), default=0)

    @property
    def settled_items(self) -> tuple[Item, ...]:
        """Those before the newest turn."""
        newest = next((at for at, _ in reversed(self._turns)), 0)
        return tuple(item for span in self.spans[:newest] for item in span.items)

    def drop_oldest(
        self, keep_tokens: int, covered: int | None = None, summary: str = ""
    ) -> Callable[[int], int] | None:
        """Forget the oldest turns, whole ones and never the newest, until at most ``keep_tokens`` tokens are left.

        covered: items that the summary speaks of; of the others none goes. Returns where each end of a span is now;
        None where nothing has changed. Raises Problem where the template has no place for a summary.
        """
        restore, before, mine = self.snapshot(), self._tokens, self._instructions
        summary = summary or mine.summary
        bare = self._bare(summary)
        shift, head = self._unfold(), len(bare.head.ids)
        turns, folded = self._turns, bool(self._instructions.items)
        fitting = (at for at, span in turns if head + self._length_from(span, bare.head.first_user) <= keep_tokens)
        first = next(fitting, turns[-1][0] if turns else len(self.spans))
        if covered is not None:
            ends = [at for at in range(1, first + 1) if sum(len(span.items) for span in self.spans[:at]) <= covered]
            first = max(ends, default=1)
        goes = first > 1 or folded
        if not turns or not goes:
            restore()
            return None
        dropped = self.spans[first].start
        self.spans = [Span((), 0, self.spans[0].end), *self.spans[first:]]
        moved = self.instruct(bare, new_first=goes)
        self._changed_from(common_length(before, self._tokens))
        return lambda end: head if end + shift == dropped else moved(end + shift)

    def _bare(self, summary: str) -> Instructions:
        """Those in force with this summary, and no items. Raises Problem where the template refuses them so."""
        mine = self._instructions
        return Instructions.of(self._chat, mine.system, (), mine.tools, "open", "items", summary)

    def _length_from(self, turn: Span, first: str | None) -> int:
        """Tokens from a turn of the caller on, were it the first: some templates write the tools into that."""
        (item,) = turn.items
        assert isinstance(item, MessageItem)
        own = turn.end - turn.start if first is None else len(self._chat.user(item.text, first=first))
        return own + self.length - turn.end

    def _unfold(self) -> int:
        """Give the items that the call was opened with spans of their own, as if they had been said since; by how much
        what follows has moved. Where the template cannot write them so they stay as they are, and go together.
        """
        mine, end = self._instructions, self.spans[0].end
        if not mine.items:
            return 0
        of = self._bare(mine.summary)
        unfolded = Conversation(self._chat, of)
        try:
            unfolded.put_items(self.spans[0].items)
        except Problem:
            return 0
        shift = unfolded.length - end
        since = (Span(span.items, span.start + shift, span.end + shift) for span in self.spans[1:])
        self._instructions, self.spans = of, [*unfolded.spans, *since]
        self._tokens = [*unfolded.tokens, *self._tokens[end:]]
        return shift

    @property
    def _turns(self) -> list[tuple[int, Span]]:
        """Where the caller's turns are, but for what stood before the call."""
        return [(at, span) for at, span in enumerate(self.spans) if at and _kind(span.items[0]) == "user"]

    def instruct(self, instructions: Instructions, *, new_first: bool = False) -> Callable[[int], int]:
        """Replace what stands before the history; no reply is in progress. Returns where each end of a span is now.

        What was said since keeps its tokens, but for the caller's first turn where the template writes the tools there.
        new_first: that turn has just become the first.
        """
        old, self._instructions = self._instructions, instructions
        same = not new_first and old.head.first_user == instructions.head.first_user
        first = None if same else instructions.head.first_user
        tokens, spans, ends = list(instructions.head.ids), self.spans, {self.spans[0].end: len(instructions.head.ids)}
        before, self.spans = self._tokens, [Span(spans[0].items, 0, len(tokens))]
        for span in spans[1:]:
            own, (item, *_) = before[span.start : span.end], span.items
            if first is not None and isinstance(item, MessageItem) and item.role == "user":
                own, first = self._chat.user(item.text, first=first), None
            start = len(tokens)
            tokens += own
            self.spans.append(Span(span.items, start, len(tokens)))
            ends[span.end] = len(tokens)
        self._tokens = tokens
        self._changed_from(common_length(before, tokens))
        return lambda end: ends[end]

    def snapshot(self) -> Callable[[], None]:
        """What makes it again what it is now."""
        held = (self._instructions, self._tokens.copy(), self._known, self._recorded, self.spans.copy())

        def restore() -> None:
            self._instructions, self._tokens, self._known, self._recorded, self.spans = held

        return restore

    def keep_items(self, count: int) -> int:
        """Forget all items but the first ``count``, and those that cannot be told from the next; how many are left."""
        left = 0
        for place, span in enumerate(self.spans):
            if left + len(span.items) > count:
                self.rewind(self.spans[place - 1].end if place else 0)
                return left
            left += len(span.items)
        self.rewind(self.spans[-1].end)
        return left

    def rename(self, ids: Sequence[str]) -> dict[str, str]:
        """Give the first items these ids, an empty one leaves an item's own; returns the new ones by the old."""
        names, renamed = iter(ids), {}

        def named(item: Item) -> Item:
            name = next(names, "")
            if not name:
                return item
            renamed[item.id] = name
            return replace(item, id=name)

        self.spans = [replace(span, items=tuple(map(named, span.items))) for span in self.spans]
        return renamed

    @staticmethod
    def written_apart(items: Sequence[Item], count: int) -> int:
        """The most items, of the first ``count``, whose end is an end in the log as well: a tool call belongs to the
        message before it, and results that follow each other are written as one by some templates.
        """
        while 0 < count < len(items) and _kind(items[count]) == _kind(items[count - 1]) != "user":
            if isinstance(items[count], MessageItem):
                break
            count -= 1
        return count

    def put_items(self, items: Sequence[Item]) -> None:
        """Append items. Raises Problem for what the model's template refuses."""
        named = [item if item.id else replace(item, id=self.new_id()) for item in items]
        if not self.spans:
            mine = self._instructions
            begun = Instructions.of(self._chat, mine.system, named, mine.tools, "items", "items")
            fresh = Conversation(self._chat, begun)
            self._instructions, self._tokens, self.spans = begun, fresh._tokens, fresh.spans
            self._changed_from(0)
            return
        for kind, group in groupby(named, _kind):
            try:
                self._put_group(kind, list(group))
            except ValueError as error:
                raise invalid("items.items", str(error)) from None

    def _put_group(self, kind: str, group: list[Item]) -> None:
        """Append neighbours that the template writes as one."""
        if kind == "user":
            for item in group:
                assert isinstance(item, MessageItem)
                self._put(self.user_tokens(item.text), item)
        elif kind == "tool":
            self.put_results([item for item in group if isinstance(item, ToolResultItem)])
        elif kind == "assistant":
            while group:
                end = next((at for at, item in enumerate(group) if at and isinstance(item, MessageItem)), len(group))
                self._put_assistant(group[:end])
                group = group[end:]
        else:
            raise ValueError("instructions stand before the conversation")

    def _put_assistant(self, items: list[Item]) -> None:
        """A message of the assistant with the tool calls behind it."""
        text = "".join(item.text for item in items if isinstance(item, MessageItem))
        calls = [(item.name, item.arguments) for item in items if isinstance(item, ToolCallItem)]
        start = len(self._tokens)
        said = self._chat.assistant(text, calls)
        self._tokens += [*self.prompt, *said]
        self._tokens += self._chat.close(said[-1] if said else None)
        self.spans.append(Span(tuple(items), start, len(self._tokens)))

    @property
    def _had_user(self) -> bool:
        return self._instructions.head.first_user is None or any(
            isinstance(item, MessageItem) and item.role == "user" for span in self.spans for item in span.items
        )

    def _result_tokens(self, results: Sequence[ToolResultItem]) -> list[int]:
        return self._chat.tool_results([(result.name, result.output) for result in results])

    def _put(self, tokens: Sequence[int], *items: Item) -> None:
        start = len(self._tokens)
        self._tokens += tokens
        if items:
            self.spans.append(Span(items, start, len(self._tokens)))

    def _close(self, segment: Segment, start: int, text: str, calls: Sequence[ToolCallItem]) -> None:
        """End the assistant's message whose own tokens begin at ``start``."""
        last = self._tokens[-1] if len(self._tokens) > start else None
        self._tokens += self._chat.close(last)
        items: tuple[Item, ...] = tuple(calls)
        if text or not calls:
            message = MessageItem(segment.item_id, "assistant", text, interrupted=text != segment.text)
            items = (message, *items)
        self.spans.append(Span(items, start - len(self.prompt), len(self._tokens)))


def load_chat(directory: str) -> Chat:
    """The chat template and tokenizer of a model directory. Raises ``engine.errors.ModelError``."""
    vocab_size = read_json(Path(directory) / "config.json")["vocab_size"]
    return Chat(Codec.load(directory, int(vocab_size)))


def _same(before: list[Span], now: list[Span]) -> int:
    """How many spans at the front are the very ones."""
    pairs = enumerate(zip(before, now, strict=False))
    return next((at for at, (one, other) in pairs if one is not other), min(len(before), len(now)))


def _stands_in(item: Item, call_id: str) -> bool:
    """Whether an item is there instead of the result of a call."""
    return isinstance(item, ToolResultItem) and item.call_id == call_id and item.stands_in


def _kind(item: Item) -> str:
    """Whose message an item belongs to."""
    match item:
        case MessageItem():
            return item.role
        case ToolCallItem():
            return "assistant"
        case ToolResultItem():
            return "tool"
