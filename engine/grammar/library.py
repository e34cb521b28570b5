"""The grammars of one model, made beside the engine's loop and kept.

A large schema takes a tenth of a second to compile: what is announced when a call opens is compiled meanwhile, and
only a constraint that nobody has announced is waited for, by those who asked for it. llguidance is loaded with the
first: a machine that uses none needs it not.
"""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch

from engine.constraint import Constraint
from engine.errors import InvalidConstraint
from engine.interfaces import Grammar
from engine.text.codec import Codec

if TYPE_CHECKING:
    from engine.grammar.compiler import Compiled, GrammarCompiler

KEPT = 64
"""Compiled constraints: a call brings its own tools, and a turn may bring a schema more."""


class GrammarLibrary:
    """``Grammars`` over one tokenizer. vocab_size: of the model's logits."""

    def __init__(self, codec: Codec, vocab_size: int, device: torch.device) -> None:
        self._codec = codec
        self._vocab_size = vocab_size
        self._device = device
        # One thread, so that the compiler is made once and the order of requests is that of the work.
        self._thread = ThreadPoolExecutor(1, "grammar")
        self._compiler: GrammarCompiler | None = None
        self._kept: OrderedDict[Constraint, Future[Compiled]] = OrderedDict()

    def prepare(self, constraint: Constraint) -> None:
        """Begin to compile it. What is wrong with it is told when it is asked for."""
        if constraint not in self._kept:
            self._kept[constraint] = self._thread.submit(self._compile, constraint)
        self._kept.move_to_end(constraint)
        # Somebody may wait for one that is not done: it stays, however many there are.
        old = [done for done, compiled in self._kept.items() if compiled.done()][: max(0, len(self._kept) - KEPT)]
        for done in old:
            if done != constraint:
                del self._kept[done]

    def ready(self, constraint: Constraint) -> bool:
        """Whether it is compiled, or is known not to be possible. From now on it is being compiled."""
        self.prepare(constraint)
        return self._kept[constraint].done()

    def grammar(self, constraint: Constraint) -> Grammar:
        """For one reply. Raises InvalidConstraint for what cannot be enforced."""
        self.prepare(constraint)
        try:
            compiled = self._kept[constraint].result()
        except InvalidConstraint:
            raise
        except Exception as error:  # whatever a library raises must not end the engine
            raise InvalidConstraint(f"{type(error).__name__}: {error}") from error
        assert self._compiler is not None
        return self._compiler.begin(compiled)

    def _compile(self, constraint: Constraint) -> Compiled:
        if self._compiler is None:
            try:
                from engine.grammar.compiler import GrammarCompiler
            except ImportError as error:
                raise InvalidConstraint(f"holding replies to a form needs llguidance: {error}") from None

            self._compiler = GrammarCompiler(self._codec, self._vocab_size, self._device)
        return self._compiler.compile(constraint)
