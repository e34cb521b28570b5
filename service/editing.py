"""What changes a call from outside its turns: new instructions, and a conversation that the client has edited.

Owns updates and late results of tools that wait for the end of a turn, and the comparison of two views of a history.
Decides no turn.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, takewhile

from service.client_events import Items, Update
from service.history import History
from service.instructions import Instructions
from service.items import Item, MessageItem, ToolCallItem, ToolResultItem
from service.problems import Problem, Reason
from service.reply import Reply, Segment
from service.server_events import HistoryCause
from service.terms import Terms


class Editing:
    """Of one call. changed: told of each change, and how many tokens at the front stayed as they were. refuse: told
    what an update that was taken has failed of after all. put: told of a late result that is in the history now, or of
    what is there because it was too long.
    """

    def __init__(
        self,
        terms: Terms,
        history: History,
        changed: Callable[[HistoryCause, int], object],
        refuse: Callable[[Problem], object],
        put: Callable[[ToolResultItem], object],
    ) -> None:
        self._terms = terms
        self._history = history
        self._changed = changed
        self._refuse = refuse
        self._put = put
        self._waiting: list[tuple[Update, Instructions, Terms]] = []
        self._late: list[ToolResultItem] = []

    @property
    def waiting(self) -> tuple[Update, ...]:
        """What is to be put into force."""
        return tuple(update for update, _, _ in self._waiting)

    @property
    def late(self) -> tuple[ToolResultItem, ...]:
        """Results of tools that are to take the place of what stands for them."""
        return tuple(self._late)

    def knows(self, call_id: str) -> bool:
        """Whether a late result of a call is waiting already."""
        return any(late.call_id == call_id for late in self._late)

    def put_late(self, result: ToolResultItem) -> None:
        """Take a late result, for when nothing is generated."""
        self._late.append(result)

    @property
    def terms(self) -> Terms:
        """Those of the next turn."""
        return self._waiting[-1][2] if self._waiting else self._terms

    def update(self, event: Update) -> None:
        """Take new terms and instructions, for when no turn is in progress. Raises Problem, and changes nothing, for
        what cannot be used.
        """
        base = self._waiting[-1][1] if self._waiting else None
        instructions = self._history.instructions(event.system, event.tools, base)
        self._waiting.append((event, instructions, self.terms.updated(event.generation, event.tools)))

    def apply(self) -> Iterator[Callable[[int], int]]:
        """No turn is in progress: put what waits into force. Gives, for each, where an end of an item is since. The
        turn that it has waited for may have left no room, and what was refused is nothing for the next to build on.
        """
        yield from self.apply_late()
        while self._waiting:
            event, _, _ = self._waiting.pop(0)
            try:
                instructions = self._history.instructions(event.system, event.tools, None)
                terms = self._terms.updated(event.generation, event.tools)
            except Problem as problem:
                self._refuse(problem)
                continue
            self._terms.become(terms)
            kept, moved = self._history.instruct(instructions)
            yield moved
            self._history.prepare(self._terms.generation)
            self._changed(HistoryCause.UPDATE, kept)

    def apply_late(self) -> Iterator[Callable[[int], int]]:
        """Nothing is generated: put late results in their places. Gives the same."""
        while self._late:
            done = self._history.put_late_result(self._late.pop(0))
            if done is not None:
                result, kept, moved = done
                self._put(result)
                yield moved
                self._changed(HistoryCause.TOOL_RESULT, kept)

    def require_version(self, event: Items) -> None:
        """Raises Problem where the history has changed since the client took its view."""
        version = self._history.version
        if event.history_version is not None and event.history_version < version:
            message, known = f"the history is at version {version} by now", {"history_version": str(version)}
            raise Problem(Reason.STALE_HISTORY, message, field="items.history_version", metadata=known)

    def completed(self, event: Items, results: Sequence[ToolResultItem] | None = None) -> Items:
        """The client's view of the history, where calls without a result have the one among ``results``, or what the
        history has in its stead: a result that comes late needs a place.
        """
        if results is None:
            results = [item for item in self._history.items if isinstance(item, ToolResultItem) and item.stands_in]
        return replace(event, items=_completed(event.items, {result.call_id: result for result in results}))

    def agreeing(self, event: Items) -> int | None:
        """How many items the client's view and the history begin with both; None where they are the same."""
        mine = self._history.items
        same = agreeing(mine, event.items)
        return None if same == max(len(mine), len(event.items)) else same

    def require_room(self, event: Items, same: int) -> None:
        """Raises Problem where the history cannot become what the client sees. Changes nothing."""
        self._history.try_items(event.items, same)

    def left_of(self, event: Items, same: int, reply: Reply) -> str:
        """How much of the newest reply's text is left once the history is what the client sees, which agrees in the
        first ``same`` items: messages that stand, and of the first that does not so much as the client has left of it.
        """
        mine, theirs, left = self._history.items, event.items[same:], ""
        if reply.settled:  # nobody knows its messages by name any more
            said = "".join(item.text for item in event.items if isinstance(item, MessageItem))
            return reply.kept if reply.kept is not None and reply.kept in said else ""
        for segment in reply.segments:
            stands = next((item for item in mine[:same] if item.id == segment.item_id), None)
            text = stands.text if isinstance(stands, MessageItem) else _left_among(theirs, segment)
            left += text
            if text != segment.text:
                break
        return left

    def replace(self, event: Items, same: int) -> None:
        """Make the history what the client sees, which agrees in the first ``same`` items."""
        kept = self._history.replace_items(event.items, same)
        self.rename(event, kept)

    def rename(self, event: Items, kept: int | None = None) -> dict[str, str]:
        """Take over the client's ids, and say so; returns the new ones by the old. kept: tokens that stayed."""
        renamed = self._history.rename([item.id for item in event.items])
        self._changed(HistoryCause.ITEMS, self._history.length if kept is None else kept)
        return renamed


def agreeing(mine: Sequence[Item], theirs: Sequence[Item]) -> int:
    """How many items two views of a conversation begin with both."""
    pairs = enumerate(zip(mine, theirs, strict=False))
    return next((at for at, (one, other) in pairs if not _same(one, other)), min(len(mine), len(theirs)))


def _completed(items: Sequence[Item], known: Mapping[str, ToolResultItem]) -> tuple[Item, ...]:
    """The items, where calls without a result have the one that is known, in the order of the calls."""
    order = {item.call_id: at for at, item in enumerate(items) if isinstance(item, ToolCallItem)}
    missing = known.keys() - {item.call_id for item in items if isinstance(item, ToolResultItem)}
    found: list[Item] = []
    for calls, group in groupby(items, lambda item: not isinstance(item, MessageItem)):
        given = [item if not isinstance(item, ToolResultItem) else _standing(item, known) for item in group]
        found += given
        wanted = [item.call_id for item in given if isinstance(item, ToolCallItem) and item.call_id in missing]
        if calls and wanted:
            start = len(found) - len(list(takewhile(lambda item: isinstance(item, ToolResultItem), reversed(given))))
            behind = [item for item in found[start:] if isinstance(item, ToolResultItem)]
            behind = sorted(
                [*behind, *(known[call_id] for call_id in wanted)], key=lambda item: order.get(item.call_id, len(items))
            )
            found[start:] = behind
    return tuple(found)


def _standing(item: ToolResultItem, known: Mapping[str, ToolResultItem]) -> ToolResultItem:
    """A result of the client's view. It stands in for one where it says the same as what is known to do so."""
    mine = known.get(item.call_id)
    return item if mine is None else replace(item, stands_in=mine.stands_in and mine.output == item.output)


def _left_among(theirs: Sequence[Item], segment: Segment) -> str:
    """What the client has left of a message among these items: it has its name there, or none."""
    messages = (item for item in reversed(theirs) if isinstance(item, MessageItem) and item.role == "assistant")
    named = (message.text for message in messages if message.id in ("", segment.item_id))
    return next((text for text in named if segment.text.startswith(text)), "")


def _same(mine: Item, theirs: Item) -> bool:
    """By content. Of an interrupted message the history holds whole tokens, so the client may have heard a little more
    of it.
    """
    match mine, theirs:
        case MessageItem(), MessageItem():
            heard = mine.interrupted and theirs.text.startswith(mine.text)
            return mine.role == theirs.role and (mine.text == theirs.text or heard)
        case ToolCallItem(), ToolCallItem():
            alike = (mine.call_id, mine.name) == (theirs.call_id, theirs.name)
            return alike and json.loads(mine.arguments) == json.loads(theirs.arguments)
        case ToolResultItem(), ToolResultItem():
            return (mine.call_id, mine.output) == (theirs.call_id, theirs.output)
        case _:
            return False
