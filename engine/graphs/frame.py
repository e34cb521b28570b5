"""The fixed tensors that a static forward reads, and how the host fills them: one copy for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.cache import PagePool
from engine.interfaces import Window
from engine.kernels import Rows
from engine.kernels.rows import WORD, pack_bits
from engine.page_table import PageTable

MOST_NODES = WORD
"""Of a window in a frame: who sees whom is one word for each node."""


def sink_of(pool: PagePool) -> int:
    """The first slot of a page of nobody's, where rows write that nobody reads. It is never given back."""
    return pool.allocate(None) * pool.page_tokens


class Frame:
    """B windows of W rows. Rows past a window's tree, and windows past the last, write to the sink.

    tokens, positions, slots, ancestors: int64 [B, W]. lengths: int64 [B]. tables: int64 [B, P]. ``rows`` is made of
    them and stays the same object.
    """

    def __init__(self, windows: int, nodes: int, pages: int, sink: int, device: torch.device, page_tokens: int) -> None:
        if not 1 <= nodes <= MOST_NODES:
            raise ValueError(f"a frame has 1 to {MOST_NODES} rows for each window, not {nodes}")
        self.windows, self.nodes, self.pages = windows, nodes, pages
        self.sink = sink
        shapes = [(windows, nodes)] * 4 + [(windows,), (windows, pages)]
        sizes = [torch.Size(shape).numel() for shape in shapes]
        self._host = torch.zeros(sum(sizes), dtype=torch.int64, pin_memory=device.type == "cuda")
        self._device = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
        here = [part.view(shape) for part, shape in zip(torch.split(self._host, sizes), shapes, strict=True)]
        there = [part.view(shape) for part, shape in zip(torch.split(self._device, sizes), shapes, strict=True)]
        self._host_parts = here
        self._copied = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.tokens, self.positions, self.slots, self.ancestors, self.lengths, self.tables = there
        for parts in (here, there):
            parts[2].fill_(sink)
            parts[3].fill_(1)
            parts[5].fill_(sink // page_tokens)
        self.rows = Rows(
            positions=self.positions.view(-1),
            slots=self.slots.view(-1),
            tables=self.tables,
            lengths=self.lengths,
            computed=torch.zeros(windows, dtype=torch.int64, device=device),
            starts=torch.arange(windows + 1, device=device) * nodes,
            ancestors=self.ancestors.view(-1, 1),
            max_rows=nodes,
            page_tokens=page_tokens,
        )

    def fill(self, windows: Sequence[Window]) -> None:
        """Describe these windows; their caches have reserved them. The copy is queued, not waited for."""
        if self._copied is not None:
            self._copied.synchronize()  # what is described next must not overtake what was described last
        tokens, positions, slots, ancestors, lengths, tables = self._host_parts
        slots.fill_(self.sink)
        lengths.zero_()
        ancestors.fill_(1)  # so that rows of nobody's see one key, and are numbers
        for row, window in enumerate(windows):
            n, length = len(window.tree), window.cache.length
            tokens[row, :n] = window.tree.tokens
            positions[row, :n] = window.tree.depth + length
            slots[row, :n] = window.cache.slots(length, length + n)
            ancestors[row, :n] = pack_bits(window.tree.mask)[:, 0]
            lengths[row] = length
            fill_table(tables[row], window.cache)
        self._device.copy_(self._host, non_blocking=True)
        if self._copied is not None:
            self._copied.record()


def fill_table(row: Tensor, cache: PageTable) -> None:
    pages = cache.pages
    row[: len(pages)] = torch.tensor(pages)
