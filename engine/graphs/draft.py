"""Drafting a whole tree as one static step: the pairs that a session has gained, then every level of the search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.graphs.capture import Captured
from engine.graphs.frame import fill_table, sink_of
from engine.graphs.tree import DeviceTree, tree_of
from engine.interfaces import Draft
from engine.kernels import Ops, PagedPlace, Rows
from engine.kernels.rows import WORD
from engine.proposers.pairs.draft import PairDraft
from engine.proposers.pairs.proposer import PairProposer
from engine.proposers.pairs.search import joined
from engine.proposers.search import Shape, grow, shape_for
from engine.tree import DraftTree

MOST_PAIRS = 9
"""Pairs that a static step makes before it searches: one for each node of the deepest path, and the root's."""

MOST_SCRATCH = 128
"""Positions behind a full context that a static step may name, though nothing of them is ever kept."""


@dataclass(frozen=True, eq=False)
class DraftState:
    """What every static step of one proposer reads and writes, on the device.

    features: [MOST_PAIRS, taps, d] and tokens: int64 [MOST_PAIRS], the pairs to make, ``count`` int64 [1] of them.
    length: int64 [1], pairs in the cache before. table: int64 [1, P]. root: int64 [1], the token that the last pair was
    made with. last: [1, H], the head's output there.
    """

    features: Tensor
    tokens: Tensor
    count: Tensor
    length: Tensor
    table: Tensor
    root: Tensor
    last: Tensor

    @staticmethod
    def of(proposer: PairProposer, width: int, most_tokens: int) -> DraftState:
        """width: of a tapped state. most_tokens: of a session."""
        cos, pages = proposer.head.rotary.cos, -(-(most_tokens + MOST_SCRATCH) // proposer.pool.page_tokens)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.long, device=cos.device)

        features = torch.zeros(MOST_PAIRS, len(proposer.taps), width, dtype=cos.dtype, device=cos.device)
        return DraftState(
            features=features,
            tokens=zeros(MOST_PAIRS),
            count=zeros(1) + 1,
            length=zeros(1),
            table=zeros(1, pages),
            root=zeros(1),
            last=torch.zeros_like(proposer.head.fuse(features[:1])),
        )


class StaticDraft:
    """The work of ``PairProposer.propose`` for one session and one budget, over a ``DraftState``.

    tree: what the work draws, of ``budget`` nodes or of all that the search finds.
    """

    def __init__(self, proposer: PairProposer, state: DraftState, ops: Ops, sink: int, budget: int) -> None:
        self.shape: Shape = shape_for(budget)
        self.head = proposer.head
        self._kv, self._page_tokens = proposer.pool.kv[0], proposer.pool.page_tokens
        self._state, self._ops, self._sink, self._budget = state, ops, sink, budget
        self._device = state.root.device
        depth, beams = self.shape.depth, self.shape.beams
        self.tree = DeviceTree.zeros(min(budget, 1 + beams + (depth - 1) * beams**2), self._device)

    def work(self) -> None:
        """Makes the pairs and draws the tree."""
        state = self._state
        out = self._make_pairs()
        state.last.copy_(out[state.count - 1])
        log_probs, hidden = self.head.predict(state.last)
        found = grow(log_probs[0], _Expand(self, hidden, state.length + state.count), self.shape)
        self.tree.copy_(tree_of(found, state.root, self._budget, self.head.to_target, self.shape))

    def _make_pairs(self) -> Tensor:
        state = self._state
        at = torch.arange(MOST_PAIRS, device=self._device)
        rows = self._rows(state.length + at, state.length, first=0, ancestors=None, live=at < state.count)
        place = PagedPlace(rows, self.head.rotary, self._ops)
        return self.head.forward(state.tokens, self.head.fuse(state.features), self._kv, place)

    def read_level(self, level: int, tokens: Tensor, hidden: Tensor, length: Tensor, ancestors: Tensor) -> Tensor:
        """The head's output [beams, H] at a level's nodes, which stand behind ``length`` pairs."""
        first = (level - 1) * self.shape.beams
        positions = (length + (level - 1)).expand(self.shape.beams)
        rows = self._rows(positions, length, first=first, ancestors=ancestors, live=None)
        return self.head.forward(tokens, hidden, self._kv, PagedPlace(rows, self.head.rotary, self._ops))

    def _rows(
        self, positions: Tensor, length: Tensor, *, first: int, ancestors: Tensor | None, live: Tensor | None
    ) -> Rows:
        n, size, table = positions.numel(), self._page_tokens, self._state.table
        scratch = length + first + torch.arange(n, device=self._device)
        slots = table[0, scratch // size] * size + scratch % size
        if live is not None:
            slots = torch.where(live, slots, self._sink)
        last = self.head.rotary.cos.shape[0] - 1
        return Rows(
            positions=positions.clamp_max(last),  # what is past the context is never kept, and has no angle
            slots=slots,
            tables=table,
            lengths=length,
            computed=torch.full((1,), first, device=self._device),
            starts=torch.arange(2, device=self._device) * n,
            ancestors=ancestors,
            max_rows=n,
            page_tokens=size,
        )


class _Expand:
    """``engine.proposers.search.Expand``: keeps what a level hands to the next."""

    def __init__(self, draft: StaticDraft, hidden: Tensor, length: Tensor) -> None:
        self._draft, self._hidden, self._length = draft, hidden, length
        beams, depth = draft.shape.beams, draft.shape.depth
        self._words = max(1, -(-beams * depth // WORD))
        self._ancestors = torch.zeros(1, self._words, dtype=torch.long, device=length.device)

    def __call__(self, level: int, ids: Tensor, rows: Tensor) -> Tensor:
        draft, beams = self._draft, self._draft.shape.beams
        head = draft.head
        node = (level - 1) * beams + torch.arange(beams, device=ids.device)
        own = torch.zeros(beams, self._words, dtype=torch.long, device=ids.device)
        own.scatter_(1, (node // WORD)[:, None], (torch.ones_like(node) << (node % WORD))[:, None])
        self._ancestors = self._ancestors[rows] | own
        tokens = head.to_target[ids]
        out = draft.read_level(level, tokens, self._hidden[rows], self._length, self._ancestors)
        log_probs, self._hidden = head.predict(out)
        return log_probs


class GraphProposer:
    """A ``Proposer``: ``real`` with static steps where one session drafts, has gained few pairs, and shares no noise.

    width: of a tapped state of the target. most_tokens: of a session. budgets: sizes of trees that have a static step;
    a draft takes the next larger, and is cut.
    """

    top_k = 0

    def __init__(
        self, real: PairProposer, ops: Ops, *, width: int, most_tokens: int, memory: object, budgets: Sequence[int]
    ) -> None:
        self.real = real
        self.name, self.taps, self.noise_levels = real.name, real.taps, real.noise_levels
        self.start, self.observe, self.catch_up, self.behind = real.start, real.observe, real.catch_up, real.behind
        self._ops, self._memory, self.budgets = ops, memory, tuple(sorted(budgets))
        self._sink = sink_of(real.pool)
        self.state = DraftState.of(real, width, most_tokens)
        self._host_table = torch.zeros_like(self.state.table, device="cpu")
        self._pages: tuple[int, ...] = ()
        self.loads = 0
        """How often a session's pairs were handed to the device: who was there before is there no more."""
        self._steps: dict[int, tuple[StaticDraft, Captured]] = {}

    @torch.inference_mode()
    def prepare(self) -> None:
        """Capture every step, the largest first."""
        for budget in reversed(self.budgets):
            self.step(budget)

    def step(self, budget: int) -> tuple[StaticDraft, Captured]:
        """The static step of one of ``budgets``. What is loaded has to be loaded again where it was captured now."""
        if budget not in self._steps:
            self.state.table.fill_(self._sink // self.real.pool.page_tokens)  # capturing runs it, over nobody's pages
            self._pages = ()
            static = StaticDraft(self.real, self.state, self._ops, self._sink, budget)
            self._steps[budget] = static, Captured(static.work, self.state.root.device, self._memory)
        return self._steps[budget]

    @property
    def num_steps(self) -> int:
        """Static steps that there are."""
        return len(self._steps)

    def release(self) -> None:
        """Forget the steps and give back the sink."""
        self._steps.clear()
        self.real.pool.release(self._sink // self.real.pool.page_tokens)

    def size_for(self, budget: int) -> int | None:
        """The size of the static step that a tree of ``budget`` nodes takes; None where there is none."""
        return next((size for size in self.budgets if size >= budget), None) if budget > 1 else None

    def propose(
        self, drafts: Sequence[Draft], roots: Sequence[int], noise: Sequence[Tensor | None], budget: int
    ) -> list[DraftTree]:
        size = self.size_for(budget)
        if len(drafts) != 1 or size is None or noise[0] is not None:
            return self.real.propose(drafts, roots, noise, budget)  # which reads the head once for several sessions
        draft, root = drafts[0], roots[0]
        assert isinstance(draft, PairDraft)
        if not takes(draft, root):
            return self.real.propose(drafts, roots, noise, budget)
        static, captured = self.step(size)
        self.make_room(draft, root, size)
        self.load(draft, root)
        captured.run()
        draft.root_pair = (root, self.state.last.clone())
        return [static.tree.to_host(self.real.source, causal=static.shape.beams == 1).best(budget)]

    def make_room(self, draft: PairDraft, root: int, budget: int, *, twice: bool = False) -> None:
        """Pages for the pairs and the levels of a static step, and of the one behind it. Raises OutOfPages, and nothing
        was changed.
        """
        shape = shape_for(budget)
        gained = shape.depth + 1 if twice else 0
        draft.cache.reserve(draft.num_ready(root) + gained + shape.depth * shape.beams)
        if draft.cache.pages != self._pages:
            self._pages = draft.cache.pages
            fill_table(self._host_table[0], draft.cache)
            self.state.table.copy_(self._host_table)

    def load(self, draft: PairDraft, root: int) -> None:
        """Hand a session's waiting pairs to the static step, which will make them."""
        state, ready = self.state, draft.num_ready(root)
        self.loads += 1
        state.length.fill_(draft.cache.length)
        features, tokens = draft.take(root)
        state.features[:ready] = joined(features)
        state.tokens[:ready] = tokens.to(state.tokens.device)
        state.count.fill_(ready)
        state.root.fill_(root)
        draft.cache.commit(list(range(ready)))


def takes(draft: PairDraft, root: int) -> bool:
    """Whether a static step makes the pairs that wait: as many as it has room for, one at least, and none projected."""
    if draft.root_pair is not None and draft.root_pair[0] != root:
        draft.redo_root()
    few = draft.root_pair is None and 1 <= draft.num_ready(root) <= MOST_PAIRS
    return few and draft.waiting.is_raw(draft.num_pairs)
