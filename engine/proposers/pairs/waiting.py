"""Features of the target that wait for their next tokens, or for their drafter's turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

RAW_MOST = 128
"""States as they were tapped, above which they are projected: of several layers, they are several times as large."""
PROMPT_RAW = 1024
"""The same, of a prompt that is being read: its first token waits for the projection."""
LATEST = 32
"""Of them, the latest that stay as they are: they are read soon, together with those of other sessions."""
BLOCK = 256
"""Most positions that are projected with what a reply has gained: others wait for the same step."""


class Waiting:
    """The features of the positions from ``start`` on, in order: [m, H] where they were projected, which are the
    oldest, else [m, taps, d].
    """

    def __init__(self) -> None:
        self.start = 0
        self.num = 0
        self.num_raw = 0
        self._pieces: list[Tensor] = []

    @property
    def stop(self) -> int:
        return self.start + self.num

    def extend(self, start: int, features: Tensor) -> None:
        """Those of the positions from ``start`` on, where the others end if there are any. Keeps a reference."""
        if not self.num:
            self.start = start
        self._pieces.append(features)
        self.num += features.shape[0]
        self.num_raw += features.shape[0]

    def rows(self, start: int, stop: int) -> list[Tensor]:
        """Those of such positions, without a copy."""
        return rows_of(self._pieces, start - self.start, stop - self.start)

    def is_raw(self, start: int) -> bool:
        """Whether nothing from that position on was projected."""
        return start >= self.stop - self.num_raw

    def keep(self, start: int, stop: int) -> None:
        """Let go of all before ``start`` and from ``stop`` on."""
        raw_from = self.stop - self.num_raw
        self._pieces = [_owned(piece) for piece in self.rows(start, stop)]
        self.start, self.num = start, max(0, stop - start)
        self.num_raw = max(0, stop - max(start, raw_from))

    def project(self, fuse: Callable[[Tensor], Tensor]) -> None:
        """Have the oldest states that are left projected, if there are many: [m, taps, d] to [m, H]."""
        if self.num_raw >= RAW_MOST:
            self._project(min(BLOCK, self.num_raw - LATEST), fuse)

    def project_surplus(self, fuse: Callable[[Tensor], Tensor]) -> None:
        """The same, while a prompt is read: no more than what is above ``PROMPT_RAW``."""
        if self.num_raw > PROMPT_RAW:
            self._project(self.num_raw - PROMPT_RAW, fuse)

    def _project(self, count: int, fuse: Callable[[Tensor], Tensor]) -> None:
        first = self.stop - self.num_raw
        hidden = fuse(torch.cat(self.rows(first, first + count)))
        rest = [_owned(piece) for piece in self.rows(first + count, self.stop)]
        self._pieces = [*self.rows(self.start, first), hidden, *rest]
        self.num_raw -= count

    def fork(self) -> Waiting:
        child = Waiting()
        child.start, child.num, child.num_raw, child._pieces = self.start, self.num, self.num_raw, self._pieces.copy()
        return child


def rows_of(pieces: Sequence[Tensor], start: int, stop: int) -> list[Tensor]:
    """Rows ``start`` to ``stop`` of all the pieces' rows, without a copy."""
    found: list[Tensor] = []
    for piece in pieces:
        if stop <= max(0, start):
            break
        if start < piece.shape[0]:
            found.append(piece[max(0, start) : stop])
        start, stop = start - piece.shape[0], stop - piece.shape[0]
    return found


def _owned(piece: Tensor) -> Tensor:
    """The piece; a copy where it would keep twice as much memory alive, or more."""
    return piece.clone() if piece.untyped_storage().nbytes() >= 2 * piece.nbytes else piece
