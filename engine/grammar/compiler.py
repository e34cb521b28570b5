"""Makes grammars of constraints over one model's tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import llguidance.hf
import llguidance.numpy
import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer

from engine.constraint import Constraint, JsonConstraint, ToolConstraint
from engine.errors import InvalidConstraint
from engine.grammar.guided import GuidedGrammar
from engine.grammar.lark import lark, may_follow_text
from engine.text.codec import Codec

MAX_FORCED_BYTES = 50_000
"""That a document must begin with. One whose schema requires itself again has no end, and the matcher gives up in the
middle of a reply.
"""


def check_schema(schema: str) -> str:
    """What keeps a JSON Schema from being enforced, whatever the model; empty where nothing does."""
    problem = ""
    for closed in (True, False):
        try:
            grammar = lark(JsonConstraint(schema), lambda text: [text], closed=closed)
        except ValueError as error:
            return str(error)
        failed, messages = LLMatcher.validate_grammar_with_warnings(grammar)
        if not failed:
            forced = len(LLMatcher(LLTokenizer("byte"), grammar, log_level=0).compute_ff_tokens())
            return "" if forced <= MAX_FORCED_BYTES else "no document of it has an end"
        problem = messages[0]
    return problem


@dataclass(frozen=True)
class Compiled:
    """A constraint's grammar before any reply. matcher: is copied for each. free, leaves: see ``GuidedGrammar``."""

    matcher: LLMatcher
    free: np.ndarray | None
    leaves: np.ndarray


class GrammarCompiler:
    """vocab_size: of the model's logits, which may be more than the tokenizer has."""

    def __init__(self, codec: Codec, vocab_size: int, device: torch.device) -> None:
        self._codec = codec
        self._vocab_size = vocab_size
        self._device = device
        stops = sorted(codec.stop_tokens)
        self._left_by: dict[str, np.ndarray] = {}
        self._tokenizer = llguidance.hf.from_tokenizer(codec.hf, n_vocab=vocab_size, eos_token=stops)

    def compile(self, constraint: Constraint) -> Compiled:
        """Raises InvalidConstraint for a schema that cannot be enforced."""
        matcher = self._matcher(constraint, closed=True)
        if matcher.is_error():  # closing objects has made it impossible
            matcher = self._matcher(constraint, closed=False)
        if matcher.is_error():
            raise InvalidConstraint(matcher.get_error())
        mark = constraint.form.mark if isinstance(constraint, ToolConstraint) and _is_text_at_first(constraint) else ""
        free = None
        if mark:
            free = llguidance.numpy.allocate_token_bitmask(1, self._vocab_size)
            llguidance.numpy.fill_next_token_bitmask(matcher, free, 0)
        return Compiled(matcher, free, self._leaving(mark) if mark else np.zeros(0, dtype=np.bool_))

    def _matcher(self, constraint: Constraint, *, closed: bool) -> LLMatcher:
        try:
            return LLMatcher(self._tokenizer, lark(constraint, self._split, closed=closed), log_level=0)
        except ValueError as error:
            raise InvalidConstraint(str(error)) from None

    def begin(self, compiled: Compiled) -> GuidedGrammar:
        """The grammar for one reply."""
        matcher, stops = compiled.matcher.deep_copy(), self._codec.stop_tokens
        return GuidedGrammar(matcher, self._vocab_size, stops, self._device, compiled.free, compiled.leaves)

    def _split(self, text: str) -> list[str | int]:
        """Text cut at tokens that llguidance takes for marks and not for what they spell."""
        pieces: list[str | int] = []
        for piece in self._codec.cut_at_markup(text):
            token = self._codec.hf.convert_tokens_to_ids(piece)
            is_mark = not self._codec.is_plain(piece) and self._tokenizer.is_special_token(token)
            pieces.append(token if is_mark else piece)
        return pieces

    def _leaving(self, mark: str) -> np.ndarray:
        """bool [V], made once a mark: tokens behind which not every text may follow. Those are the ones that spell the
        mark's first character, no whole characters, or nothing.
        """
        if mark not in self._left_by:
            first = mark[:1].encode()
            leaving = [not _is_text(spelt) or first in spelt for spelt in self._spellings]
            self._left_by[mark] = np.array(leaving, dtype=np.bool_)
        return self._left_by[mark]

    @cached_property
    def _spellings(self) -> list[bytes]:
        """What each token spells; nothing for one that is a mark."""
        tokenizer, count = self._tokenizer, self._vocab_size
        return [b"" if tokenizer.is_special_token(t) else tokenizer.decode_bytes([t]) for t in range(count)]


def _is_text(spelt: bytes) -> bool:
    try:
        return bool(spelt.decode())
    except UnicodeDecodeError:
        return False


def _is_text_at_first(constraint: ToolConstraint) -> bool:
    return not constraint.text and (constraint.choice == "none" or may_follow_text(constraint))
