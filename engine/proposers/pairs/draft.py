"""One session's state of a pair head: keys of the pairs drafted over so far, features that wait for their next token.

Pair i joins the target's feature at position i with the token at position i + 1, and lives at key index i (less
``base``). While the target's cache holds positions up to c - 1 and the root stands at c, the pairs up to c - 1 can be
made, the last of them with the root.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.cache import KVCache
from engine.proposers.pairs.waiting import Waiting

MAX_WAITING = 3072
"""Features that may wait, nearly all of them projected; past that the first pairs of a prompt are made, and a draft
that is off restarts with a window of the latest half.
"""
PROMPT_TOKENS = 32
"""Tokens committed at once that are read rather than said."""


class PairDraft:
    """A ``Draft``. ``base``: position of the first pair in the cache (0 until the draft had to restart)."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.base = 0
        self._tokens: list[int] = []  # at positions base and on
        self.waiting = Waiting()
        self.root_pair: tuple[int, Tensor] | None = None
        """(root, output [1, H]) of the last pair in the cache, while that pair was made with a root."""

    @property
    def length(self) -> int:
        return self.base + len(self._tokens)

    @property
    def num_pairs(self) -> int:
        """Positions whose pairs need no more work: those in the cache and those before the window."""
        return self.base + self.cache.length

    def extend(self, tokens: Tensor, features: Tensor) -> None:
        """Positions ``length`` and on were committed. Keeps references, computes nothing."""
        if self.root_pair is not None and self.root_pair[0] != int(tokens[0]):
            self.redo_root()
        self.root_pair = None
        self.waiting.extend(self.length, features)
        self._tokens += tokens.tolist()

    @property
    def overdue(self) -> bool:
        """Whether more features wait than may."""
        return self.waiting.num > MAX_WAITING and self.length - self.num_pairs > MAX_WAITING

    @property
    def prompt_surplus(self) -> int:
        """Features of a prompt above those that may wait if its last piece is to fit as well."""
        return self.waiting.num - (MAX_WAITING - PROMPT_TOKENS)

    def num_ready(self, root: int | None) -> int:
        """Pairs that can be made now. root: token at position ``length``, or None while it is not chosen."""
        return max(0, (self.length if root is not None else self.length - 1) - self.num_pairs)

    def take(self, root: int | None) -> tuple[list[Tensor], Tensor]:
        """(features, as ``Waiting.rows``, tokens [m]) of the ``num_ready`` pairs, for the caller to make before all
        else.
        """
        start = self.num_pairs
        stop = start + self.num_ready(root)
        known = [*self._tokens[start - self.base + 1 :], *(() if root is None else (root,))]
        wanted = self.waiting.rows(start, stop)
        # The last feature stays: its pair is made again when another root takes the place of this one.
        self.waiting.keep(self.length - 1, self.length)
        return wanted, torch.tensor(known[: stop - start])

    def take_part(self, count: int) -> tuple[list[Tensor], Tensor]:
        """As ``take``, of the next ``count`` pairs whose tokens are known; the others wait on."""
        start, first = self.num_pairs, self.num_pairs - self.base + 1
        wanted = self.waiting.rows(start, start + count)
        self.waiting.keep(start + count, self.length)
        return wanted, torch.tensor(self._tokens[first : first + count])

    def redo_root(self) -> None:
        """The last pair was made with a root that was not kept: forget it, its feature is still there."""
        self.root_pair = None
        self.cache.truncate(self.cache.length - 1)

    def truncate(self, length: int) -> None:
        if length >= self.length:
            return
        self.root_pair = None
        if length <= self.base:
            self.base = length
            self._tokens.clear()
            self.cache.truncate(0)
        else:
            del self._tokens[length - self.base :]
            self.cache.truncate(min(self.cache.length, length - self.base))
        self.waiting.keep(min(self.waiting.start, length), length)

    def caches(self) -> Sequence[KVCache]:
        return (self.cache,)

    def fork(self) -> PairDraft:
        child = PairDraft(self.cache.fork())
        child.base = self.base
        child._tokens = self._tokens.copy()
        child.waiting = self.waiting.fork()
        child.root_pair = self.root_pair
        return child

    def close(self) -> None:
        self.cache.close()
        self._tokens.clear()
        self.waiting = Waiting()
        self.base = 0
        self.root_pair = None

    def start_over(self) -> None:
        """Give up all that is known: pairs that were taken could not be made."""
        self._restart(0)

    def restart(self) -> None:
        """Start over with a window: the pairs before it are given up, and their keys with them."""
        self._restart(MAX_WAITING // 2)

    def _restart(self, keep: int) -> None:
        first = self.length - keep
        self.waiting.keep(first, self.length)
        self._tokens = self._tokens[first - self.base :]
        self.base = first
        self.cache.truncate(0)
        self.root_pair = None
