"""Drafts with Medusa heads. All levels of a tree come from the target's last state at once, whatever was guessed above
them, so one forward drafts a tree and nothing else is kept of a session. The tree is verified by the engine's own rule;
the paper's "typical acceptance" would change the text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.cache import KVCache
from engine.interfaces import Draft, Tap
from engine.proposers.medusa.choices import Node, best_first, fixed
from engine.proposers.medusa.heads import Heads
from engine.tree import DraftTree


class MedusaDraft:
    """A ``Draft``. state: [1, H], the target's at the last position, behind which the root was chosen; None at the
    start, and after a rewind until the engine has forwarded the token there again.
    """

    def __init__(self, length: int = 0, state: Tensor | None = None) -> None:
        self.length = length
        self.state = state

    def extend(self, features: Tensor) -> None:
        """features: [m, 1, H] of the next positions. The last is copied, or it would keep all of a prefill alive."""
        self.length += features.shape[0]
        self.state = features[-1].clone()

    def truncate(self, length: int) -> None:
        if length < self.length:
            self.length, self.state = length, None

    def caches(self) -> Sequence[KVCache]:
        return ()

    def fork(self) -> MedusaDraft:
        return MedusaDraft(self.length, self.state)

    def close(self) -> None:
        self.length, self.state = 0, None


class MedusaProposer:
    """A ``Proposer``. ``source``: its index in trees.

    choices: a fixed tree, of which the first nodes are drafted, as many as the budget holds; by default the most likely
    are. Raises ValueError where the choices are no tree, or ask for more heads or tokens than there are.
    """

    name = "medusa"
    taps: Sequence[Tap] = ("norm",)
    top_k = 0

    def __init__(self, heads: Heads, *, source: int = 0, choices: Sequence[Sequence[int]] | None = None) -> None:
        self.heads = heads
        self.noise_levels = len(heads) + 1  # the target wants one more than the heads, and it is made once for both
        self._source = source
        self._fixed = None if choices is None else fixed(choices)
        if self._fixed is not None:
            depth, width = _extent(self._fixed)
            if depth > len(heads) or width > heads.vocab_size:
                raise ValueError(f"choices of {depth} heads and {width} tokens; {len(heads)}, {heads.vocab_size} are")

    def start(self) -> MedusaDraft:
        return MedusaDraft()

    def observe(self, draft: Draft, tokens: Tensor, features: Tensor | None, top_ids: Tensor | None) -> None:
        assert isinstance(draft, MedusaDraft)
        assert features is not None
        draft.extend(features)

    def behind(self, draft: Draft) -> int:
        return 0

    def catch_up(self, draft: Draft) -> bool:
        return False

    def propose(
        self, drafts: Sequence[Draft], roots: Sequence[int], noise: Sequence[Tensor | None], budget: int
    ) -> list[DraftTree]:
        sessions = zip(drafts, roots, noise, strict=True)
        return [self._propose(draft, root, its_noise, budget) for draft, root, its_noise in sessions]

    def _propose(self, draft: Draft, root: int, noise: Tensor | None, budget: int) -> DraftTree:
        assert isinstance(draft, MedusaDraft)
        count = budget - 1
        if count < 1 or draft.state is None:
            return DraftTree.chain(torch.tensor([root]))
        if self._fixed is None:
            depth, width = min(count, len(self.heads)), min(count, self.heads.vocab_size)
        else:
            depth, width = _extent(self._fixed[:count])
        likely = self.heads.log_probs(draft.state, depth, noise).topk(width)
        log_probs, ids = likely.values.tolist(), likely.indices.tolist()
        nodes = best_first(log_probs, count) if self._fixed is None else self._fixed[:count]
        return _tree(root, nodes, ids, log_probs, self._source)


def _extent(nodes: Sequence[Node]) -> tuple[int, int]:
    """(heads, tokens of each) that the nodes are made of."""
    return 1 + max(node.level for node in nodes), 1 + max(node.rank for node in nodes)


def _tree(
    root: int, nodes: Sequence[Node], ids: Sequence[Sequence[int]], log_probs: Sequence[Sequence[float]], source: int
) -> DraftTree:
    """ids, log_probs: by level and rank."""
    tokens, parents, scores = [root], [-1], [0.0]
    for parent, level, rank in nodes:
        tokens.append(ids[level][rank])
        parents.append(parent)
        scores.append(scores[parent] + log_probs[level][rank])
    return DraftTree.of(tokens, parents, [math.exp(score) for score in scores], source)
