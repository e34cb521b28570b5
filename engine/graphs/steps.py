"""Everything static around one decoder and its drafter: forwards, drafts, and cycles of both."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.graphs.capture import graph_memory
from engine.graphs.cycle import Cycle, CycleState
from engine.graphs.draft import GraphProposer
from engine.graphs.frame import sink_of
from engine.graphs.target import GraphTarget
from engine.interfaces import Proposer
from engine.models.decoder import Decoder
from engine.proposers.pairs.proposer import PairProposer

BUDGETS = (8, 16, 24, 32, 60)
"""Sizes of the trees that have a static step."""


class Graphs:
    """target, proposer: wrapped where they have static steps. A pair head that searches trees has; another drafter, and
    a head that drafts chains of any length, stays what it is.
    """

    def __init__(
        self, decoder: Decoder, proposer: Proposer, *, budgets: Sequence[int] = BUDGETS, most_windows: int = 8
    ) -> None:
        self.decoder = decoder
        self.state = CycleState.on(decoder.device)
        self.target = GraphTarget(decoder, proposer.taps, most_windows=most_windows)
        self._memory = graph_memory(decoder.device)
        self.proposer: Proposer = proposer
        if isinstance(proposer, PairProposer) and not proposer._chain:
            self.proposer = GraphProposer(
                proposer,
                decoder.ops,
                width=decoder.config.hidden_size,
                most_tokens=decoder.max_context_tokens,
                memory=self._memory,
                budgets=budgets,
            )
        self._sink = sink_of(decoder.pool)
        self._cycles: dict[int, Cycle] = {}

    @torch.inference_mode()
    def prepare(self, *, cycles: bool = True) -> None:
        """Capture every step, the largest first, and whole cycles of a pair head or not."""
        self.target.prepare()
        if isinstance(self.proposer, GraphProposer):
            self.proposer.prepare()
            for budget in reversed(self.proposer.budgets if cycles else ()):
                self.cycle(budget)

    def cycle(self, size: int) -> Cycle:
        """The cycle for trees of one of the budgets. A reply has to be loaded again where it was captured now."""
        if size not in self._cycles:
            assert isinstance(self.proposer, GraphProposer)
            pool = self.decoder.pool
            self._cycles[size] = Cycle(
                self.decoder,
                self.proposer,
                self.state,
                budget=size,
                sink=self._sink,
                pages=-(-self.decoder.max_context_tokens // pool.page_tokens) + 1,
                memory=self._memory,
            )
        return self._cycles[size]

    @property
    def num_steps(self) -> int:
        """Static steps that there are; a cycle's draft is one of the proposer's."""
        drafts = self.proposer.num_steps if isinstance(self.proposer, GraphProposer) else 0
        return self.target.num_steps + drafts + len(self._cycles)

    def has_cycle(self, size: int) -> bool:
        return size in self._cycles

    def release(self) -> None:
        """Forget every step and give back the pages where rows write that nobody reads."""
        self._cycles.clear()
        self.target.release()
        if isinstance(self.proposer, GraphProposer):
            self.proposer.release()
        self.decoder.pool.release(self._sink // self.decoder.pool.page_tokens)
