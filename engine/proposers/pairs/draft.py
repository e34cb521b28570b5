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

MAX_WAITING = 1024
"""Features that may wait; past that the first pairs of a prompt are made, and a draft that is off restarts with a
window of the latest half.
"""
PROMPT_TOKENS = 32
"""Tokens committed at once that are read rather than said."""


class PairDraft:
    """A ``Draft``. ``base``: position of the first pair in the cache (0 until the draft had to restart)."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.base = 0
        self._tokens: list[int] = []  # at positions base and on
        self._waiting: list[Tensor] = []  # features [m, taps, d] of positions _waiting_from and on
        self._waiting_from = 0
        self._num_waiting = 0
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
        if not self._waiting:
            self._waiting_from = self.length
        self._tokens += tokens.tolist()
        self._waiting.append(features)
        self._num_waiting += features.shape[0]

    @property
    def overdue(self) -> bool:
        """Whether more features wait than may."""
        return self._num_waiting > MAX_WAITING and self.length - self.num_pairs > MAX_WAITING

    @property
    def prompt_surplus(self) -> int:
        """Features of a prompt above those that may wait if its last piece is to fit as well."""
        return self._num_waiting - (MAX_WAITING - PROMPT_TOKENS)

    def num_ready(self, root: int | None) -> int:
        """Pairs that can be made now. root: token at position ``length``, or None while it is not chosen."""
        return max(0, (self.length if root is not None else self.length - 1) - self.num_pairs)

    def take(self, root: int | None) -> tuple[Tensor, Tensor]:
        """(features [m, taps, d], tokens [m]) of the ``num_ready`` pairs, for the caller to make before all else."""
        start = self.num_pairs
        stop = start + self.num_ready(root)
        known = [*self._tokens[start - self.base + 1 :], *(() if root is None else (root,))]
        features = self._waiting[0] if len(self._waiting) == 1 else torch.cat(self._waiting)
        wanted = features[start - self._waiting_from : stop - self._waiting_from]
        # The last feature stays: its pair is made again when another root takes the place of this one.
        # It is copied, or else it would keep the features of the whole prefill alive.
        self._waiting, self._waiting_from, self._num_waiting = [features[-1:].clone()], self.length - 1, 1
        return wanted, torch.tensor(known[: stop - start])

    def take_part(self, count: int) -> tuple[Tensor, Tensor]:
        """As ``take``, of the next ``count`` pairs whose tokens are known; the others wait on."""
        start = self.num_pairs
        at, first = start - self._waiting_from, start - self.base + 1
        taken: list[Tensor] = []
        wanted = at + count
        while wanted:  # what waits on is not copied: of a long prompt a part is taken in every step
            features = self._waiting.pop(0)
            if features.shape[0] > wanted:
                self._waiting.insert(0, features[wanted:])
            taken.append(features[:wanted])
            wanted -= taken[-1].shape[0]
        self._waiting_from += at + count
        self._num_waiting -= at + count
        return torch.cat(taken)[at:], torch.tensor(self._tokens[first : first + count])

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
        self._cut_waiting(length)

    def caches(self) -> Sequence[KVCache]:
        return (self.cache,)

    def fork(self) -> PairDraft:
        child = PairDraft(self.cache.fork())
        child.base = self.base
        child._tokens = self._tokens.copy()
        child._waiting = self._waiting.copy()
        child._waiting_from, child._num_waiting = self._waiting_from, self._num_waiting
        child.root_pair = self.root_pair
        return child

    def close(self) -> None:
        self.cache.close()
        self._tokens.clear()
        self._waiting.clear()
        self.base = self._waiting_from = self._num_waiting = 0
        self.root_pair = None

    def _cut_waiting(self, length: int) -> None:
        keep = length - self._waiting_from
        if keep <= 0:
            self._waiting, self._waiting_from, self._num_waiting = [], length, 0
            return
        features = torch.cat(self._waiting)[:keep].clone()
        self._waiting, self._num_waiting = [features], keep

    def start_over(self) -> None:
        """Give up all that is known: pairs that were taken could not be made."""
        self._restart(0)

    def restart(self) -> None:
        """Start over with a window: the pairs before it are given up, and their keys with them."""
        self._restart(MAX_WAITING // 2)

    def _restart(self, keep: int) -> None:
        first = self.length - keep
        features = torch.cat(self._waiting)[first - self._waiting_from :].clone()
        self._tokens = self._tokens[first - self.base :]
        self.base, self._waiting_from, self._num_waiting = first, first, keep
        self._waiting = [features]
        self.cache.truncate(0)
        self.root_pair = None
