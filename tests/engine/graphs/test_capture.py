"""What a captured step holds on to. The graph itself is a stand-in: only a GPU makes real ones."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.graphs import capture
from engine.graphs.capture import Captured


class Graph:
    """As ``torch.cuda.CUDAGraph``, it knows what it does and not who made it."""

    replays = 0

    def replay(self) -> None:
        self.replays += 1


class Step:
    """As static forwards and cycles are: what it captures is work of its own."""

    def __init__(self) -> None:
        self.captured = Captured(self.work, torch.device("cuda"))

    def work(self) -> None:
        raise AssertionError("a captured step is replayed, never run")


def test_a_captured_step_is_gone_with_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """And its graph's memory with it: a circle would wait for a collection, which an engine process rarely makes."""
    graph = Graph()

    def captured(work: Callable[[], None], device: torch.device, memory: Any) -> Graph:
        return graph

    monkeypatch.setattr(capture, "_capture", captured)
    step = Step()
    step.captured.run()
    assert graph.replays == 1
    gone = weakref.ref(step)
    gc.disable()
    try:
        del step
        assert gone() is None
    finally:
        gc.enable()
