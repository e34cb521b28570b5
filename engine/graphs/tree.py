"""Trees that never leave the device: the best nodes of a search, who descends from whom, and what is accepted.

All shapes are fixed by the search and the budget. Nothing here waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.proposers.search import Candidates, Shape
from engine.tree import DraftTree


@dataclass(frozen=True, eq=False)
class DeviceTree:
    """As ``engine.tree.DraftTree``, on the device: int64 [n] each, score float32 [n].

    ancestors: bit j where node j is the node itself or above it; n is at most 64.
    """

    tokens: Tensor
    parents: Tensor
    depth: Tensor
    ancestors: Tensor
    score: Tensor

    @staticmethod
    def zeros(nodes: int, device: torch.device) -> DeviceTree:
        tokens, parents, depth, ancestors = torch.zeros(4, nodes, dtype=torch.long, device=device)
        return DeviceTree(tokens, parents, depth, ancestors, torch.zeros(nodes, device=device))

    def __len__(self) -> int:
        return self.tokens.numel()

    def copy_(self, other: DeviceTree) -> None:
        """Take over another tree of the same size."""
        for name in ("tokens", "parents", "depth", "ancestors", "score"):
            getattr(self, name).copy_(getattr(other, name))

    def packed(self) -> Tensor:
        """int64 [3 * n], for one copy to the host: see ``unpacked``."""
        return torch.cat([self.tokens, self.parents, self.score.view(torch.int32).long()])

    def to_host(self, source: int, *, causal: bool) -> DraftTree:
        return unpacked(self.packed().cpu(), source, causal=causal)


def unpacked(packed: Tensor, source: int, *, causal: bool) -> DraftTree:
    """The tree on the host. packed: as ``DeviceTree.packed``, on the CPU. source: of every node but the root."""
    tokens, parents, score = packed.view(3, -1)
    sources = torch.full_like(tokens, source)
    sources[0] = -1
    return DraftTree(tokens.clone(), parents.clone(), score.int().view(torch.float32), sources, causal)


def tree_of(found: Candidates, root: Tensor, budget: int, to_target: Tensor, shape: Shape) -> DeviceTree:
    """As ``Candidates.tree``. root: int64 [1]. Has ``budget`` nodes, or all that were found and the root."""
    device = root.device
    order = found.score.sort(descending=True, stable=True).indices[: budget - 1]
    kept = order.sort().values
    n = kept.numel() + 1
    position = torch.zeros(found.score.numel() + 1, dtype=torch.long, device=device)  # of candidate i at i + 1
    position.scatter_(0, kept + 1, torch.arange(1, n, device=device))
    none = torch.full((1,), -1, device=device)
    parents = torch.cat([none, position[found.parents[kept] + 1]])
    depth, ancestors = descent(parents, shape.depth)
    return DeviceTree(
        tokens=torch.cat([root, to_target[found.ids[kept]]]),
        parents=parents,
        depth=depth,
        ancestors=ancestors,
        score=torch.cat([torch.ones(1, device=device), found.score[kept].exp().float()]),
    )


def descent(parents: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """(depth, ancestors), each int64 [n], of a tree no deeper than ``levels``."""
    above = parents.clamp_min(0)
    own = torch.ones_like(parents) << torch.arange(parents.numel(), device=parents.device)
    rooted = parents < 0
    depth, ancestors = torch.zeros_like(parents), own
    for _ in range(levels):
        depth = torch.where(rooted, 0, depth[above] + 1)
        ancestors = torch.where(rooted, own, own | ancestors[above])
    return depth, ancestors


def accepted(tree: DeviceTree, chosen: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """``engine.tree.accept`` on the device: (path int64 [levels + 1], how many of its nodes there are int64 [1]).

    chosen: int64 [n]. A node is kept where it and all above it are what the target chose: a word without holes. What
    stands in the path behind its last node is any node.
    """
    n, device = len(tree), chosen.device
    node = torch.arange(n, device=device)
    right = (tree.tokens == chosen[tree.parents.clamp_min(0)]) | (tree.parents < 0)
    word = (right.long() << node).sum()  # distinct powers of two; the 64th wraps into the sign, as it should
    kept = (tree.ancestors & ~word) == 0
    path = torch.zeros(levels + 2, dtype=torch.long, device=device)
    path.scatter_(0, torch.where(kept, tree.depth, levels + 1), node)
    return path[: levels + 1], kept.sum().view(1)
