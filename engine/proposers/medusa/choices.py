"""Which nodes a tree has whose levels are guessed independently: a path is as likely as the product of what the heads
say of its tokens. Knows ranks and scores, no model.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple


class Node(NamedTuple):
    """A node before its token is known. Nodes are numbered from 1 in their order; 0 is the root.

    parent: its number. level: the head that guesses the node. rank: 0 for that head's most likely token.
    """

    parent: int
    level: int
    rank: int


def best_first(log_probs: Sequence[Sequence[float]], count: int) -> list[Node]:
    """The ``count`` most likely nodes, most likely first.

    log_probs: of each level's tokens, most likely first. A node's next sibling and its first child are no more likely
    than itself, so only those of nodes already taken are ever waiting.
    """
    nodes: list[Node] = []
    waiting: list[tuple[float, int, float, Node]] = []  # (-score, order found, the parent's score, node)
    found = 0

    def offer(above: float, node: Node) -> None:
        nonlocal found
        if node.level < len(log_probs) and node.rank < len(log_probs[node.level]):
            heapq.heappush(waiting, (-above - log_probs[node.level][node.rank], found, above, node))
            found += 1

    offer(0.0, Node(0, 0, 0))
    while waiting and len(nodes) < count:
        cost, _, above, node = heapq.heappop(waiting)
        nodes.append(node)
        offer(above, Node(node.parent, node.level, node.rank + 1))
        offer(-cost, Node(len(nodes), node.level + 1, 0))
    return nodes


def fixed(choices: Sequence[Sequence[int]]) -> list[Node]:
    """The nodes of a published tree (``medusa_choices``): each is a path of ranks, behind its parent in the list.

    Raises ValueError for a list that is no tree.
    """
    numbers: dict[tuple[int, ...], int] = {(): 0}
    nodes: list[Node] = []
    for choice in map(tuple, choices):
        if choice in numbers or choice[:-1] not in numbers or choice[-1] < 0:
            raise ValueError(f"choice {choice} has no place in the tree: a parent comes before its children, once")
        nodes.append(Node(numbers[choice[:-1]], len(choice) - 1, choice[-1]))
        numbers[choice] = len(nodes)
    if not nodes:
        raise ValueError("a tree without choices drafts nothing")
    return nodes
