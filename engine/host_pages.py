"""What pages hold, moved: within a pool, to host memory when caches give them up, and back.

On a CUDA device host memory is pinned and the copies run on a stream of their own, so that steps go on meanwhile; on a
CPU they are plain copies. Knows pages; knows no session and no budget.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CHUNK_PAGES = 16
"""Pages that are moved at once: what a copy needs on the device beside the pool is bounded by it."""


class PageMover:
    """Copies between one pool's pages, and between them and host memory.

    kv: [layers, 2, pages * page_tokens, kv_heads, head_dim]. bytes_held: by all ``HostPages`` of the pool.
    """

    def __init__(self, kv: Tensor, page_tokens: int) -> None:
        self._kv = kv
        self._page_tokens = page_tokens
        self._stream: torch.cuda.Stream | None = torch.cuda.Stream(kv.device) if kv.is_cuda else None  # type: ignore[no-untyped-call]
        self._coming_back: torch.cuda.Event | None = None
        self.bytes_held = 0

    def copy_pages(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """To other pages of the pool. None of them is among both. Runs are copied at once."""
        self.wait()
        size, start = self._page_tokens, 0
        for end in range(1, len(sources) + 1):
            if end < len(sources) and sources[end] == sources[end - 1] + 1 and targets[end] == targets[end - 1] + 1:
                continue
            source, target, count = sources[start] * size, targets[start] * size, (end - start) * size
            self._kv[:, :, target : target + count] = self._kv[:, :, source : source + count]
            start = end

    def copy_slots(self, sources: Tensor, targets: Tensor) -> None:
        """Single positions, int64 [n] each. What is written may be read as well: all is read first."""
        self._kv[:, :, targets] = self._kv[:, :, sources]

    def copy_out(self, pages: Sequence[int]) -> Tensor:
        """[layers, 2, len(pages) * page_tokens, kv_heads, head_dim] in host memory. The pages may be written again."""
        slots = self._slots(pages)
        if self._stream is None:
            return self._kv.index_select(2, slots)
        current = torch.cuda.current_stream(self._kv.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            staged = self._kv.index_select(2, slots)
            current.wait_event(self._stream.record_event())
            copy = torch.empty(staged.shape, dtype=staged.dtype, pin_memory=True)
            copy.copy_(staged, non_blocking=True)
        return copy

    def copy_back(self, copy: Tensor, pages: Sequence[int]) -> None:
        """Into the pages, of which there may be fewer than were copied. ``wait`` before anything reads them."""
        slots = self._slots(pages)
        copy = copy[:, :, : slots.numel()]
        if self._stream is None:
            self._kv.index_copy_(2, slots, copy)
            return
        slots.record_stream(self._stream)  # else the next chunk's would take their place before they are read
        with torch.cuda.stream(self._stream):
            staged = copy.to(self._kv.device, non_blocking=True)
            # Whoever had these pages before may still be reading them.
            self._stream.wait_stream(torch.cuda.current_stream(self._kv.device))
            self._kv.index_copy_(2, slots, staged)
            self._coming_back = self._stream.record_event()

    def forget(self, copy: Tensor) -> None:
        """Nobody will want the copy back."""

    def wait(self) -> None:
        """What is queued on the device from here on finds what was copied back."""
        if self._coming_back is not None:
            torch.cuda.current_stream(self._kv.device).wait_event(self._coming_back)
            self._coming_back = None

    def _slots(self, pages: Sequence[int]) -> Tensor:
        size = self._page_tokens
        slots = (torch.tensor(pages)[:, None] * size + torch.arange(size)).flatten()
        return slots.to(self._kv.device)


class HostPages:
    """Copies of some pages, in order; never written to, so that forks share them."""

    def __init__(self, mover: PageMover, pages: Sequence[int]) -> None:
        self._mover = mover
        self._chunks = [
            mover.copy_out(pages[start : start + CHUNK_PAGES]) for start in range(0, len(pages), CHUNK_PAGES)
        ]
        self._refs = 1
        mover.bytes_held += self._num_bytes

    @property
    def _num_bytes(self) -> int:
        return sum(chunk.nbytes for chunk in self._chunks)

    def copy_back(self, pages: Sequence[int]) -> None:
        """Copy the first ``len(pages)`` of them to these pages of the pool."""
        starts = range(0, len(pages), CHUNK_PAGES)
        for chunk, start in zip(self._chunks, starts, strict=False):
            self._mover.copy_back(chunk, pages[start : start + CHUNK_PAGES])

    def share(self) -> HostPages:
        self._refs += 1
        return self

    def release(self) -> None:
        """One holder fewer; without any the memory is given up."""
        self._refs -= 1
        if self._refs == 0:
            self._mover.bytes_held -= self._num_bytes
            while self._chunks:
                self._mover.forget(self._chunks.pop())
