"""Work over fixed tensors: captured as a CUDA graph where there is a GPU, run as it is elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

WARM_UPS = 2
"""Runs before a capture, in which libraries choose their kernels and allocate what they keep."""


class Captured:
    """``work`` reads and writes tensors that outlive it, makes no decision on the host and copies nothing to it.

    Whoever owns the tensors owns this: a graph knows their addresses and keeps none of them.
    memory: of the graphs that share it (``torch.cuda.graph_pool_handle``). None of them may run beside another.
    """

    def __init__(self, work: Callable[[], None], device: torch.device, memory: Any = None) -> None:
        # Of a graph the work is not kept: it belongs to the owner, and a step that holds itself in a circle would hold
        # its graph's memory until Python next looks for circles.
        self.run: Callable[[], None] = _capture(work, device, memory).replay if device.type == "cuda" else work


@functools.cache
def _aside(device: torch.device) -> torch.cuda.Stream:
    """Where work warms up before it is captured. One for all: libraries keep memory for every stream that they meet."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _capture(work: Callable[[], None], device: torch.device, memory: Any) -> torch.cuda.CUDAGraph:
    aside = _aside(device)
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # Other threads may speak to the driver meanwhile: a grammar's compiler, NCCL's watchdog.
    with torch.cuda.graph(graph, pool=memory, capture_error_mode="thread_local"):
        work()
    return graph


def graph_memory(device: torch.device) -> Any:
    """What graphs that never run at the same time share; None without a GPU."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


def held_bytes(device: torch.device) -> int:
    """What torch holds on a GPU, that of graphs included; 0 elsewhere."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0
