"""Grows a tree by EAGLE-2's dynamic rule (Li et al. 2024, arXiv 2406.16858), whatever says what follows a node.

Level by level the most likely ``beams`` nodes are expanded, and at the end the ``budget - 1`` best of all candidates
are kept by cumulative probability. A node is never more likely than its parent, so what is kept is one tree. Where
noise is added to the logits the scores are no probabilities, but that still holds. Knows no model and no cache.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from engine.tree import DraftTree

NOISE_LEVELS = 8
"""Rows of a turn's noise that a search wants: one for each of its levels, and the one that the target needs behind the
last, so that the noise is made once for both. A chain may be deeper; from there on it is searched without noise.
"""


@dataclass(frozen=True)
class Shape:
    """How a tree is searched: ``depth`` levels of ``beams`` nodes, each with ``beams`` children."""

    depth: int
    beams: int


def shape_for(budget: int, *, chain: bool = False) -> Shape:
    """The search for a tree of ``budget`` nodes: deep enough to use them, wide enough to find them; or for a chain."""
    if chain:
        return Shape(budget - 1, 1)
    for nodes, shape in ((8, Shape(4, 2)), (16, Shape(5, 4)), (24, Shape(6, 4)), (32, Shape(6, 6))):
        if budget <= nodes:
            return Shape(min(shape.depth, budget - 1), shape.beams)
    return Shape(7, 10)


def noise_at(noise: Tensor | None, level: int) -> Tensor | None:
    """Of noise [levels, V], what the logits behind nodes of depth ``level`` gain; None past the levels given."""
    return noise[level] if noise is not None and level < noise.shape[0] else None


class Expand(Protocol):
    """Reads a level of nodes: ``level`` is their depth, from 1 on."""

    def __call__(self, level: int, ids: Tensor, rows: Tensor) -> Tensor:
        """Log-probabilities [beams, W] of what follows each of the nodes, which are given as in a ``Level``."""
        ...


@dataclass(frozen=True, eq=False)
class Candidates:
    """Everything that a search has found, numbered in the order found, so parents come before their children.

    score: float [c], cumulative log-probability. ids: int64 [c], in the vocabulary of the log-probabilities.
    parents: int64 [c], -1 under the root. chain: each is the child of the one before it.
    """

    score: Tensor
    ids: Tensor
    parents: Tensor
    chain: bool

    def tree(self, root: int, budget: int, source: int, to_target: Tensor | None = None) -> DraftTree:
        """The best ``budget - 1`` behind the root. Ties go to the earlier, so no child is kept without its parent.

        to_target: int64 [W], the target's id of each id; None where they are the same.
        """
        order = self.score.sort(descending=True, stable=True).indices[: budget - 1]
        kept = order.sort().values
        ids = self.ids[kept]
        tokens = (ids if to_target is None else to_target[ids]).cpu()
        score, found_parents, kept = self.score[kept].exp().cpu(), self.parents[kept].cpu(), kept.cpu()
        n = kept.numel() + 1
        position = torch.zeros(self.score.numel() + 1, dtype=torch.long)  # of candidate i at i + 1, of the root at 0
        position[kept + 1] = torch.arange(1, n)
        sources = torch.full((n,), source)
        sources[0] = -1
        return DraftTree(
            tokens=torch.cat([torch.tensor([root]), tokens]),
            parents=torch.cat([torch.tensor([-1]), position[found_parents + 1]]),
            score=torch.cat([torch.ones(1), score]),
            source=sources,
            causal=self.chain,
        )


class Level(NamedTuple):
    """Nodes that a search wants read: ``level`` is their depth, from 1 on.

    ids: int64 [beams], the nodes' tokens. rows: int64 [beams], which node of the level before is the parent of each;
    all 0 at level 1, under the root.
    """

    level: int
    ids: Tensor
    rows: Tensor


def grow(first: Tensor, expand: Expand, shape: Shape) -> Candidates:
    """Search ``shape.depth`` levels. first: log-probabilities [W] of what follows the root.

    Reads nothing back from the device. The last level's nodes are candidates, but are never expanded.
    """
    return grow_together([first], lambda levels: [expand(*levels[0])], shape)[0]


def grow_together(
    first: Sequence[Tensor], expand: Callable[[Sequence[Level]], Sequence[Tensor]], shape: Shape
) -> list[Candidates]:
    """``grow`` of several roots, whose levels are read together. expand: log-probabilities [beams, W] for each."""
    searches = [_growing(log_probs, shape) for log_probs in first]
    found: list[Candidates] = []
    levels: list[Level] = []
    for search in searches:
        try:
            levels.append(next(search))
        except StopIteration as done:
            found.append(done.value)
    while levels:
        for search, log_probs in zip(searches, expand(levels), strict=True):
            try:
                levels.append(search.send(log_probs))
            except StopIteration as done:
                found.append(done.value)
        del levels[: len(searches)]
    return found


def _growing(first: Tensor, shape: Shape) -> Generator[Level, Tensor, Candidates]:
    """Yields each level to be read, and is sent the log-probabilities behind its nodes."""
    beams = shape.beams
    score, ids = first.topk(beams)
    rows = torch.zeros(beams, dtype=torch.long, device=first.device)
    numbers = torch.arange(beams, device=first.device)  # the candidate numbers of the level in progress
    scores, found, parents = [score], [ids], [torch.full_like(numbers, -1)]
    count = beams
    for level in range(1, shape.depth):
        child_score, child_ids = (yield Level(level, ids, rows)).topk(beams)
        child_score = child_score + score[:, None]
        scores.append(child_score.flatten())
        found.append(child_ids.flatten())
        parents.append(numbers.repeat_interleave(beams))
        score, best = child_score.flatten().topk(beams)
        ids = child_ids.flatten()[best]
        rows, numbers = best // beams, best + count
        count += beams * beams
    return Candidates(torch.cat(scores), torch.cat(found), torch.cat(parents), chain=beams == 1)
