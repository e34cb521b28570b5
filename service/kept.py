"""What a history keeps of a generation: the text that was heard, and the tool calls that were made.

The rule, for text and calls in any order:

- Text is what stands outside of the calls, together. Of it stays what was heard, up to the last token that ends on a
  whole character at or before the cut.
- A call that is to stay, stays whole and in its place, also behind text that goes. One that is not to stay goes whole:
  it has no result yet, is malformed, or is above a limit.
- What stays keeps the model's own tokens. Where that cannot be, for one token holds something that stays and something
  that goes (a full stop that was not heard and the mark of a call in one), the message is written anew, as the chat
  template would write it; so is what another model has said, and given text before which the template puts something.

So the text that is told and what the tokens spell outside of calls never disagree, and neither is more than was heard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.text.call_form import Call
from engine.text.chat import Chat
from engine.text.reply import CallBlock, ReplyReader
from service.items import ToolCallItem
from service.reply import Segment


@dataclass(frozen=True)
class _Piece:
    """Tokens ``first`` to ``last`` of a generation, which complete one or more characters: ``start`` to ``end`` of what
    the tokens spell.
    """

    first: int
    last: int
    start: int
    end: int


def kept(chat: Chat, segment: Segment, chars: int, calls: Sequence[ToolCallItem]) -> tuple[list[int], str]:
    """The tokens that stay of a generation of which ``chars`` code points were heard, and their text.

    calls: those to stay, a beginning of the segment's own. Without a token that closes the message.
    """
    if segment.foreign:
        return _written_anew(chat, segment.text[:chars], calls)
    ends = chat.codec.text_ends(segment.tokens)
    blocks = _blocks(chat, segment)
    staying, missing = _staying(chat, segment, blocks, calls)
    said = _said_before(blocks, ends[-1] if ends else 0)
    if not blocks and not chat.codec.decode(segment.tokens).startswith(segment.text):
        return _written_anew(chat, segment.text[:chars], calls)
    limit = min(chars, len(segment.text))
    heard = max((said[end] for end in ends if said[end] <= limit), default=0)
    tokens: list[int] = []
    for piece in _pieces(ends):
        stays = [_stays(place, said, heard, blocks, staying) for place in range(piece.start, piece.end)]
        if any(stays) and not all(stays):
            missing = True
        elif any(stays):
            tokens += segment.tokens[piece.first : piece.last + 1]
    return _written_anew(chat, segment.text[:heard], calls) if missing else (tokens, segment.text[:heard])


def _written_anew(chat: Chat, text: str, calls: Sequence[ToolCallItem]) -> tuple[list[int], str]:
    return chat.assistant(text, [(call.name, call.arguments) for call in calls]), text


def _pieces(ends: Sequence[int]) -> list[_Piece]:
    """The tokens by what they complete together, without those at the end that complete nothing, as a stop token."""
    pieces, first, start = [], 0, 0
    for last, end in enumerate(ends):
        if end > start:
            pieces.append(_Piece(first, last, start, end))
            first, start = last + 1, end
    return pieces


def _blocks(chat: Chat, segment: Segment) -> list[CallBlock]:
    """Where the generation writes calls, malformed ones included. One that is still being written is none yet."""
    if chat.call_form is None or not (segment.calls or segment.malformed_calls):
        return []
    reader = ReplyReader(chat.codec, calls=chat.call_form)
    for token in segment.tokens:
        reader.push(token)
    reader.finish()
    return reader.blocks


def _staying(
    chat: Chat, segment: Segment, blocks: Sequence[CallBlock], calls: Sequence[ToolCallItem]
) -> tuple[dict[CallBlock, int], bool]:
    """(where what stays of each block ends, whether a call that is to stay is in none of them)"""
    wanted = [Call(call.name, call.arguments) for call in calls]
    ends = {}
    for block in blocks:
        made = next((n for n, pair in enumerate(zip(block.calls, wanted, strict=False)) if pair[0] != pair[1]), None)
        made = min(len(block.calls), len(wanted)) if made is None else made
        if made and made == len(block.calls):
            ends[block] = block.end
        elif made and chat.call_form is not None and not chat.call_form.mark:  # such calls need no mark at their end
            text = chat.codec.decode(segment.tokens)[block.start : block.end]
            ends[block] = block.start + chat.call_form.end_of_calls(text, made)
        else:
            made = 0
        del wanted[:made]
    return ends, bool(wanted)


def _said_before(blocks: Sequence[CallBlock], length: int) -> list[int]:
    """For each place in what the tokens spell, how many code points before it are text."""
    said, at = [0], 0
    for place in range(length):
        at += not any(block.start <= place < block.end for block in blocks)
        said.append(at)
    return said


def _stays(
    place: int, said: Sequence[int], heard: int, blocks: Sequence[CallBlock], staying: dict[CallBlock, int]
) -> bool:
    """Whether a code point of what the tokens spell stays."""
    block = next((block for block in blocks if block.start <= place < block.end), None)
    return said[place] < heard if block is None else place < staying.get(block, block.start)
