"""A grammar at work in one reply: which tokens may follow every node of a draft tree.

Every node has a matcher of its own, a copy of its parent's (two microseconds). One matcher that is rolled back would
do, but in llguidance 1.9.1 it may then give an answer that it remembers of another branch. In the text before a call
the same tokens may come everywhere, so there the matcher is left alone: its first answer stands until a token is taken
that could begin the mark of a call.
"""

from __future__ import annotations

from collections.abc import Sequence

import llguidance.numpy
import numpy as np
import torch
from llguidance import LLMatcher
from torch import Tensor

from engine.tree import FORCED, DraftTree


class GuidedGrammar:
    """A ``Grammar`` over llguidance's matcher.

    stop_tokens: end a reply where it may end. free: int32 [ceil(V / 32)], the bits that stand for as long as the reply
    is plain text; None where it is none. leaves: bool [V], tokens with which it may cease to be.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        vocab_size: int,
        stop_tokens: frozenset[int],
        device: torch.device,
        free: np.ndarray | None,
        leaves: np.ndarray,
    ) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._stop_tokens = stop_tokens
        self._device = device
        self._free = free
        self._leaves = leaves
        self._behind: list[int] = []
        self._words = (vocab_size + 31) // 32

    def consume(self, tokens: Sequence[int]) -> None:
        """The reply has these tokens more. Raises ValueError for one that may not come."""
        for token in tokens:
            if self._free is not None and self._leaves[token]:
                self._free = None
            self._behind.append(token)
        if self._free is None:
            self._follow()

    def mask(self, tree: DraftTree) -> Tensor:
        """bool [n, V], on the device. Behind a node that may not come itself everything is allowed: nobody gets there.

        Raises ValueError where nothing at all may follow the root.
        """
        bits = np.full((len(tree), self._words), -1, dtype=np.int32)
        self._walk(tree, bits)
        if not bits[0].any():
            raise ValueError(f"no token may come next: {self._matcher.get_error() or self._matcher.stop_reason()}")
        packed = torch.from_numpy(bits).to(self._device, non_blocking=True)
        shifts = torch.arange(32, dtype=torch.int32, device=self._device)
        unpacked = (packed[:, :, None] >> shifts) & 1
        return unpacked.reshape(len(tree), -1)[:, : self._vocab_size].to(torch.bool)

    def narrow(self, tree: DraftTree, budget: int, room: int) -> DraftTree:
        """The tree without what may not come, and with the tokens behind its root that must, within ``budget`` nodes
        and ``room`` levels.
        """
        keep = self._walk(tree, None)
        forced = self._matcher.compute_ff_tokens()[:room] if self._free is None else []
        kept = tree if len(keep) == len(tree) else tree.subtree(keep)
        return _with_chain(kept, forced, budget) if forced else kept

    def _follow(self) -> None:
        """Bring the matcher to the end of the reply."""
        behind, self._behind = self._behind, []
        for token in behind:
            if not self._matcher.consume_token(token):
                raise ValueError(f"token {token} may not come: {self._matcher.get_error()}")
        self._require_sound(self._matcher)

    @staticmethod
    def _require_sound(matcher: LLMatcher) -> None:
        """Raises ValueError where a matcher has given up: from then on it would only let replies end."""
        if matcher.is_error():
            raise ValueError(matcher.get_error())

    def _walk(self, tree: DraftTree, bits: np.ndarray | None) -> list[int]:
        """The nodes that may come, root first; fills the rows of ``bits`` for what may follow them."""
        if self._stays_free(tree):
            if bits is not None:
                bits[:] = self._free
            return list(range(len(tree)))
        self._follow()
        tokens = tree.tokens.tolist()
        children: list[list[int]] = [[] for _ in tokens]
        for node, parent in enumerate(tree.parents.tolist()[1:], 1):
            children[parent].append(node)
        kept: list[int] = []
        stack = [(0, self._matcher)]
        while stack:
            node, matcher = stack.pop()
            if node and tokens[node] in self._stop_tokens:
                kept += [node] if matcher.is_accepting() else []
                continue  # nothing follows it
            if node:
                if not matcher.validate_tokens([tokens[node]]):
                    continue
                matcher = matcher.deep_copy()
                if not matcher.consume_token(tokens[node]) or matcher.is_error():
                    continue  # what is only guessed must not end a reply
            kept.append(node)
            if bits is not None:
                llguidance.numpy.fill_next_token_bitmask(matcher, bits, node)
            stack += [(child, matcher) for child in children[node]]
        self._require_sound(self._matcher)
        return sorted(kept)

    def _stays_free(self, tree: DraftTree) -> bool:
        """Whether the reply is plain text behind every node."""
        return self._free is not None and not self._leaves[tree.tokens[1:].numpy()].any()


def _with_chain(tree: DraftTree, chain: Sequence[int], budget: int) -> DraftTree:
    """The tree with a chain of tokens from its root down that are certain; what scores least gives way to them."""
    tokens, parents = tree.tokens.tolist(), tree.parents.tolist()
    scores, sources = tree.score.tolist(), tree.source.tolist()
    at = 0
    for token in chain[: budget - 1]:
        found = next((node for node in range(1, len(tokens)) if parents[node] == at and tokens[node] == token), None)
        if found is None:
            found = len(tokens)
            tokens.append(token)
            parents.append(at)
            scores.append(1.0)
            sources.append(FORCED)
        scores[found] = 1.0
        at = found
    return DraftTree.of(tokens, parents, scores, sources).best(budget)
