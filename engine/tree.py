"""Draft trees: the shape in which every proposer hands over what it guesses.

Owns the tree's structure and the one acceptance rule. Knows no model, no sampler and no session.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

FORCED = -2
"""Source of a node whose token had to come."""


@dataclass(frozen=True, eq=False)
class DraftTree:
    """Tokens guessed after the last chosen token, as a tree in topological order.

    Node 0 is the root: the last chosen token, which is not in the cache yet. ``parents[i] < i`` for every other
    node, and siblings differ, so at most one child of a node can be what the target chooses there.
    All tensors live on the CPU; a forward copies what it needs to its device.

    tokens:  int64 [n], in the target's vocabulary.
    parents: int64 [n]; -1 at the root.
    score:   float32 [n], calibrated probability that the node is accepted (1 at the root).
    source:  int64 [n], index of the proposer that drafted the node (-1 at the root); FORCED where none had to.
    """

    tokens: Tensor
    parents: Tensor
    score: Tensor
    source: Tensor
    causal: bool = field(default=False)
    """True when every node's parent is the node before it: a chain needs no [n, n] mask."""

    @staticmethod
    def chain(tokens: Tensor, score: Tensor | None = None, source: int = -1) -> DraftTree:
        """The tree whose nodes follow each other; prefill is a chain and plain decoding a chain of one."""
        n = tokens.numel()
        return DraftTree(
            tokens=tokens,
            parents=_CHAIN_PARENTS[:n] if n <= _CHAIN_PARENTS.numel() else torch.arange(-1, n - 1),
            score=torch.ones(n) if score is None else score,
            source=_NO_SOURCE[:n] if source == -1 and n <= _NO_SOURCE.numel() else torch.full((n,), source),
            causal=True,
        )

    @staticmethod
    def of(
        tokens: Sequence[int], parents: Sequence[int], scores: Sequence[float], source: int | Sequence[int]
    ) -> DraftTree:
        """The tree of a search in plain lists, root first. source: of every node but the root, or one for each."""
        sources = [-1] + [source] * (len(tokens) - 1) if isinstance(source, int) else list(source)
        return DraftTree(
            tokens=torch.tensor(tokens),
            parents=torch.tensor(parents),
            score=torch.tensor(scores),
            source=torch.tensor(sources),
            causal=all(parent == node - 1 for node, parent in enumerate(parents)),
        )

    def subtree(self, nodes: Iterable[int]) -> DraftTree:
        """The root and ``nodes``; the parent of each must be among them."""
        index = sorted({0, *nodes})
        position = {node: i for i, node in enumerate(index)}
        parents, rows = self.parents.tolist(), torch.tensor(index)
        kept = [-1] + [position[parents[node]] for node in index[1:]]
        causal = all(parent == node - 1 for node, parent in enumerate(kept))
        return DraftTree(self.tokens[rows], torch.tensor(kept), self.score[rows], self.source[rows], causal)

    def best(self, budget: int) -> DraftTree:
        """The root and the ``budget - 1`` nodes of the highest scores. No node may score above its parent; ties go to
        the earlier, so none is kept without its parent.
        """
        if len(self) <= budget:
            return self
        score = self.score.tolist()
        return self.subtree(sorted(range(1, len(self)), key=lambda node: -score[node])[: max(0, budget - 1)])

    def __len__(self) -> int:
        return self.tokens.numel()

    @cached_property
    def mask(self) -> Tensor:
        """bool [n, n]: ``mask[i, j]`` where j is i itself or one of its ancestors."""
        n = len(self)
        if self.causal:
            return torch.ones(n, n, dtype=torch.bool).tril_()
        rows = [[False] * n for _ in range(n)]
        for node, parent in enumerate(self.parents.tolist()):
            if parent >= 0:
                rows[node] = rows[parent].copy()
            rows[node][node] = True
        return torch.tensor(rows)

    @cached_property
    def depth(self) -> Tensor:
        """int64 [n]: distance from the root, so node i stands at position ``cache.length + depth[i]``."""
        if self.causal:
            return torch.arange(len(self))
        return self.mask.sum(1) - 1

    def check(self) -> None:
        """Raise ValueError unless the tree is well formed (used by tests and by proposers under development)."""
        n = len(self)
        if n == 0 or int(self.parents[0]) != -1:
            raise ValueError("a draft tree has a root, node 0, with parent -1")
        if any(not 0 <= int(self.parents[i]) < i for i in range(1, n)):
            raise ValueError("parents must come before their children")
        edges = {(int(p), int(t)) for p, t in zip(self.parents[1:], self.tokens[1:], strict=True)}
        if len(edges) != n - 1:
            raise ValueError("siblings must be distinct")


_CHAIN_PARENTS = torch.arange(-1, 4095)
_NO_SOURCE = torch.full((4096,), -1)


def accept(tree: DraftTree, chosen: Tensor) -> list[int]:
    """The nodes to keep, from the root down, given what the target chose after every node.

    chosen: int64 [n] on the CPU; ``chosen[i]`` is the target's own choice after node i.
    Returns node indices, root first. The text gains the tokens of ``path[1:]`` and then ``chosen[path[-1]]``:
    all of them are the target's choices, so the rule is lossless for any tree whose siblings are distinct.
    """
    if len(tree) == 1:
        return [0]
    tokens, parents, wanted = tree.tokens.tolist(), tree.parents.tolist(), chosen.tolist()
    path = [0]
    for node in range(1, len(tokens)):
        if parents[node] == path[-1] and tokens[node] == wanted[path[-1]]:
            path.append(node)
    return path
