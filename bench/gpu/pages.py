"""A call's pages to host memory and back, against what the link carries."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import torch

from bench.gpu.machine import wait
from bench.gpu.stages import Bench, Table
from bench.gpu.steps import filled, led_by, small_pair
from bench.gpu.targets import context_of

REPEATS = 6


@torch.inference_mode()
def hibernation(bench: Bench) -> Iterator[Table]:
    """Whole caches, as the engine moves them: in chunks, on a stream of their own, to pinned memory and back."""
    target = small_pair(bench)[0]
    pool = target.pool
    header = ["tokens", "GB", "sleep: ms of the loop", "ms in all", "GB/s", "% of the link"]
    header += ["wake: ms of the loop", "ms in all", "GB/s", "% of the link"]
    yield (table := Table("Hibernation, 8B", header))
    down_limit, up_limit = (bench.figures.get(f"link_{way}_gb_s", float("nan")) for way in ("down", "up"))

    def seconds(work: Callable[[], None]) -> tuple[float, float]:
        """(until the loop goes on, until the copy is there)."""
        wait(bench.device)
        started = time.perf_counter()
        work()
        returned = time.perf_counter() - started
        wait(bench.device)
        return returned, time.perf_counter() - started

    for context in led_by(context_of(bench.sizes), bench.sizes.contexts):
        if bench.left < 0:
            break
        cache = filled(target, context)
        num_bytes = cache.movable_pages * pool.bytes_per_page
        # The first takes the pinned memory that the others find.
        taken = [(*seconds(cache.offload), *seconds(cache.restore)) for _ in range(REPEATS)]
        cache.close()
        host_down, down, host_up, up = (statistics.median(column) for column in zip(*taken, strict=True))
        rates = (num_bytes / down / 1e9, num_bytes / up / 1e9)
        bench.figures |= {f"hibernate_gb_s {context}": rates[0], f"wake_gb_s {context}": rates[1]}
        sleep = [1e3 * host_down, 1e3 * down, rates[0], 100 * rates[0] / down_limit]
        wake = [1e3 * host_up, 1e3 * up, rates[1], 100 * rates[1] / up_limit]
        table.rows.append([context, num_bytes / 1e9, *sleep, *wake])
