"""One cycle of drafting and verifying as two static steps and one copy to the host.

The first draws the tree; the second forwards it, chooses behind every node, keeps the path that the target chose,
moves its keys to their places and readies the pairs of the next tree. The host learns afterwards what came of it, and
while it reads that, the device draws the next tree already.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.graphs.capture import Captured
from engine.graphs.draft import GraphProposer
from engine.graphs.frame import Frame, fill_table
from engine.graphs.target import forward
from engine.graphs.tree import accepted, unpacked
from engine.kernels.ops import Choice
from engine.models.decoder import Decoder
from engine.sampling import Sampling, signed
from engine.session import Session, Turn
from engine.tree import DraftTree


@dataclass(frozen=True, eq=False)
class CycleState:
    """The reply in progress, on the device: [1] each.

    length: positions in the target's cache. index: of the next token in the reply. The others as in ``Choice``.
    """

    length: Tensor
    index: Tensor
    seed: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor

    @staticmethod
    def on(device: torch.device) -> CycleState:
        whole = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(3)]
        real = [torch.zeros(1, device=device) for _ in range(3)]
        return CycleState(whole[0], whole[1], whole[2], real[0], torch.zeros_like(whole[0]), real[1] + 1, real[2])

    def load(self, length: int, index: int, seed: int, sampling: Sampling) -> None:
        values = (length, index, signed(seed), sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
        names = ("length", "index", "seed", "temperature", "top_k", "top_p", "min_p")
        for name, value in zip(names, values, strict=True):
            getattr(self, name).fill_(value)

    def choice(self, depth: Tensor) -> Choice:
        """Of the nodes of a tree."""
        n = depth.numel()
        wide = (part.expand(n).contiguous() for part in (self.temperature, self.top_k, self.top_p, self.min_p))
        return Choice(self.seed.expand(n).contiguous(), self.index + depth, *wide)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a cycle came to. path: nodes kept, root first. last: the choice behind it, -1 where it was not settled.

    features: [len(path), taps, d] of the nodes kept. logits: [1, V] behind the last of them.
    """

    tree: DraftTree
    path: list[int]
    last: int
    features: Tensor
    logits: Tensor


class Cycle:
    """The two static steps for trees of one size. They serve whatever reply is loaded."""

    def __init__(
        self,
        target: Decoder,
        proposer: GraphProposer,
        state: CycleState,
        *,
        budget: int,
        sink: int,
        pages: int,
        memory: object,
    ) -> None:
        self._target, self._proposer, self._state = target, proposer, state
        self._draft, self._draw = proposer.step(budget)
        self.levels, nodes = self._draft.shape.depth, len(self._draft.tree)
        self._frame = Frame(1, nodes, pages, sink, target.device, target.pool.page_tokens)
        self._sink = sink
        config, taps = target.config, len(proposer.taps)
        self._features = torch.zeros(
            self.levels + 1, taps, config.hidden_size, dtype=target.dtype, device=target.device
        )
        self._logits = torch.zeros(1, config.vocab_size, dtype=target.dtype, device=target.device)
        self._report = torch.zeros(2 + self.levels + 1 + 3 * nodes, dtype=torch.long, device=target.device)
        self._host = torch.zeros_like(self._report, device="cpu", pin_memory=target.device.type == "cuda")
        self._copied = torch.cuda.Event() if target.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._host_table = torch.zeros(pages, dtype=torch.long)
        self._table: tuple[int, ...] = ()
        self._check = Captured(self._verify, target.device, memory)

    @property
    def nodes(self) -> int:
        return self._frame.nodes

    def load(self, session: Session, turn: Turn) -> None:
        """Make this reply the one whose cycles come next. Its pages and pairs are there."""
        index = turn.first_index + turn.num_tokens
        self._state.load(session.cache.length, index, turn.seed, turn.sampling)

    def set_table(self, session: Session) -> None:
        if session.cache.pages != self._table:
            self._table = session.cache.pages
            fill_table(self._host_table, session.cache)
            self._frame.tables[0].copy_(self._host_table)

    def run(self, *, drawn: bool) -> Outcome:
        """Draft, verify, accept and commit, draft again; the one wait for the device.

        drawn: the last run was this reply's, so that its tree is there. The tree that is drawn in the end is nobody's
        loss where the reply is over or goes on in another way: it is scratch in pages that are the session's still.
        """
        if not drawn:
            self.replay_draft()
        self.replay_verify()
        self._host.copy_(self._report, non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        self.replay_draft()
        if self._copied is not None:
            self._copied.synchronize()
        count, last = self._host[:2].tolist()
        levels = self.levels + 1
        tree = unpacked(self._host[2 + levels :], self._proposer.real.source, causal=self._draft.shape.beams == 1)
        path = self._host[2 : 2 + count].tolist()
        return Outcome(tree, path, last, self._features[:count].clone(), self._logits)

    def replay_draft(self) -> None:
        """The first of the two steps."""
        self._draw.run()

    def replay_verify(self) -> None:
        """The second."""
        self._check.run()

    def _verify(self) -> None:
        target, state, tree = self._target, self._state, self._draft.tree
        frame, device, levels = self._frame, target.device, self.levels
        size = target.pool.page_tokens
        at = state.length + torch.arange(frame.nodes, device=device)
        slots = frame.tables[0, at // size] * size + at % size
        frame.tokens.copy_(tree.tokens[None])
        frame.positions.copy_((state.length + tree.depth)[None])
        frame.slots.copy_(slots[None])
        frame.ancestors.copy_(tree.ancestors[None])
        frame.lengths.copy_(state.length)
        logits, features = forward(target, frame, self._proposer.taps)
        assert features is not None
        chosen = target.ops.choose(logits, state.choice(tree.depth))
        path, count = accepted(tree, chosen, levels)
        place = torch.arange(levels + 1, device=device)
        end = path[count - 1]
        last = chosen[end]
        live = place < count
        kv, to = target.pool.kv, torch.where(live, slots[: levels + 1], self._sink)
        kv[:, :, to] = kv[:, :, slots[path]]
        self._hand_on(features[path], torch.where(place == count - 1, last, tree.tokens[path].roll(-1)), count, last)
        self._logits.copy_(logits[end])
        self._report.copy_(torch.cat([count, last, path, tree.packed()]))

    def _hand_on(self, features: Tensor, tokens: Tensor, count: Tensor, last: Tensor) -> None:
        """The state behind the path that was kept. features, tokens: of its nodes, and what followed each."""
        draft, levels = self._proposer.state, self.levels
        draft.length.add_(draft.count)
        draft.features[: levels + 1].copy_(features)
        draft.tokens[: levels + 1].copy_(tokens)
        draft.count.copy_(count)
        draft.root.copy_(last)
        self._features.copy_(features)
        self._state.length.add_(count)
        self._state.index.add_(count)
