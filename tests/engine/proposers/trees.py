"""What a drafted tree must be, where every node that could stand in it is known."""

from __future__ import annotations

import pytest

from engine.tree import DraftTree

Paths = dict[tuple[int, ...], float]
"""Nodes by the tokens that lead to them from the root, and the score of each."""


def paths(tree: DraftTree) -> Paths:
    found: list[tuple[int, ...]] = [()]
    for token, parent in zip(tree.tokens.tolist()[1:], tree.parents.tolist()[1:], strict=True):
        found.append((*found[parent], token))
    return dict(zip(found[1:], tree.score.tolist()[1:], strict=True))


def check_best(tree: DraftTree, root: int, wanted: Paths, budget: int, source: int) -> None:
    """The tree is the ``budget - 1`` most probable of the wanted nodes behind the root. Which of two that are alike is
    kept is left open, for scores are rounded.
    """
    tree.check()
    assert int(tree.tokens[0]) == root and float(tree.score[0]) == 1.0
    assert tree.source.tolist() == [-1] + [source] * (len(tree) - 1)
    assert tree.causal == all(parent == node - 1 for node, parent in enumerate(tree.parents.tolist()))
    got = paths(tree)
    assert len(got) == len(tree) - 1 == min(budget - 1, len(wanted))
    assert got == pytest.approx({path: wanted.get(path) for path in got}, rel=1e-5)
    left_out = [score for path, score in wanted.items() if path not in got]
    assert not left_out or not got or max(left_out) <= min(got.values()) * (1 + 1e-5)
