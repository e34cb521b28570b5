"""A target whose small windows run as static steps: single tokens, trees, and the few tokens of a turn's end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.graphs.capture import Captured, graph_memory
from engine.graphs.frame import MOST_NODES, Frame, sink_of
from engine.interfaces import Output, Tap, Window
from engine.kernels import PagedPlace
from engine.models.decoder import Decoder
from engine.wrapped import WrappedTarget

NODES = (1, 2, 4, 8, 16, 24, 32, 64)
"""Rows of a window in the static steps; a window takes the next larger."""


class StaticForward:
    """One forward of fixed shape. logits: [B * W, V]; features: [B * W, taps, d], or None without taps."""

    def __init__(self, target: Decoder, frame: Frame, taps: Sequence[Tap], memory: object) -> None:
        self.frame = frame
        self._target, self._taps = target, tuple(taps)
        rows, config = frame.windows * frame.nodes, target.config
        self.logits = torch.zeros(rows, config.vocab_size, dtype=target.dtype, device=target.device)
        self.features: Tensor | None = None
        if taps:
            self.features = torch.zeros(rows, len(taps), config.hidden_size, dtype=target.dtype, device=target.device)
        self._captured = Captured(self._work, target.device, memory)

    def run(self, windows: Sequence[Window]) -> list[Output]:
        self.frame.fill(windows)
        self._captured.run()
        return [self._output(row, window) for row, window in enumerate(windows)]

    def replay(self) -> None:
        """The same step again, as the frame describes it."""
        self._captured.run()

    def _work(self) -> None:
        logits, features = forward(self._target, self.frame, self._taps)
        self.logits.copy_(logits)
        if self.features is not None and features is not None:
            self.features.copy_(features)

    def _output(self, row: int, window: Window) -> Output:
        first, n = row * self.frame.nodes, len(window.tree)
        wanted = {"all": n, "last": 1, "none": 0}[window.logits]
        # Whoever keeps features keeps them past the next step; logits are read before it.
        features = None if self.features is None else self.features[first : first + n].clone()
        return Output(self.logits[first + n - wanted : first + n] if wanted else None, features)


def forward(target: Decoder, frame: Frame, taps: Sequence[Tap]) -> tuple[Tensor, Tensor | None]:
    """(logits [B * W, V], features [B * W, taps, d]) of what the frame describes."""
    place = PagedPlace(frame.rows, target.rotary, target.ops)
    x, tapped = target.trunk(frame.tokens.view(-1), place, taps)
    normed = tapped["norm"] if "norm" in tapped else target.final_norm(x)
    features = torch.stack([tapped[tap] for tap in taps], 1) if taps else None
    return target.logits(normed), features


class GraphTarget(WrappedTarget):
    """A ``Target``: ``decoder`` with static steps for up to ``most_windows`` windows of up to 64 nodes.

    taps: of the proposer; a forward that wants others runs eagerly. sink: where rows write that nobody reads; None: in
    a page of the pool that is taken for it. Steps are captured when ``prepare`` is called.
    """

    def __init__(
        self, decoder: Decoder, taps: Sequence[Tap], *, most_windows: int = 8, sink: int | None = None
    ) -> None:
        super().__init__(decoder)
        self.decoder = decoder
        self._taps = tuple(taps)
        self._memory = graph_memory(decoder.device)
        self.sink = sink_of(decoder.pool) if sink is None else sink
        # A kernel looks up all rows of a step, those past a window's tree too, which may begin where the context ends.
        self._pages = -(-(decoder.max_context_tokens + MOST_NODES) // decoder.pool.page_tokens)
        self._windows = [1 << power for power in range(most_windows.bit_length()) if 1 << power <= most_windows]
        self._steps: dict[tuple[int, int], StaticForward] = {}

    @torch.inference_mode()
    def prepare(self, nodes: Sequence[int] = NODES) -> None:
        """Capture every step, the largest first, so that the smaller ones find its memory."""
        for windows in reversed(self._windows):
            for size in sorted(nodes, reverse=True):
                self._step(windows, size)

    def forward(self, windows: Sequence[Window], taps: Sequence[Tap] = ()) -> list[Output]:
        most = max(len(window.tree) for window in windows)
        room = next((size for size in self._windows if size >= len(windows)), None)
        fits = most <= MOST_NODES and room is not None and tuple(taps) == self._taps
        if not fits or any(window.computed for window in windows):
            return self.decoder.forward(windows, taps)
        assert room is not None
        return self._step(room, next(size for size in NODES if size >= most)).run(windows)

    @property
    def num_steps(self) -> int:
        """Static steps that there are."""
        return len(self._steps)

    def release(self) -> None:
        """Forget the steps and give back the sink: another may wrap the same decoder."""
        self._steps.clear()
        self.decoder.pool.release(self.sink // self.decoder.pool.page_tokens)

    def _step(self, windows: int, nodes: int) -> StaticForward:
        if (windows, nodes) not in self._steps:
            pool = self.decoder.pool
            frame = Frame(windows, nodes, self._pages, self.sink, self.device, pool.page_tokens)
            self._steps[windows, nodes] = StaticForward(self.decoder, frame, self._taps, self._memory)
        return self._steps[windows, nodes]
