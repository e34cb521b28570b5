"""A call's pages to host memory and back, against what the link carries."""

from __future__ import annotations

import time

import torch

from bench.gpu.machine import wait
from bench.gpu.stages import Bench, Table
from bench.gpu.steps import filled, small_pair


@torch.inference_mode()
def hibernation(bench: Bench) -> list[Table]:
    """Whole caches, gathered from shuffled pages on a stream of their own, to pinned memory and back."""
    target, rows = small_pair(bench)[0], []
    down_limit, up_limit = (bench.figures.get(f"link_{way}_gb_s", float("nan")) for way in ("down", "up"))
    aside = torch.cuda.Stream() if bench.device.type == "cuda" else None
    for context in bench.sizes.contexts:
        cache = filled(target, context)
        slots = cache.slots(0, context).to(bench.device)
        kv = target.pool.kv
        shape = (*kv.shape[:2], context, *kv.shape[3:])
        here = torch.empty(shape, dtype=kv.dtype, pin_memory=aside is not None)
        num_bytes = here.numel() * here.element_size()

        def down(slots: torch.Tensor = slots, here: torch.Tensor = here) -> None:
            here.copy_(target.pool.kv.index_select(2, slots), non_blocking=True)

        def up(slots: torch.Tensor = slots, here: torch.Tensor = here) -> None:
            target.pool.kv.index_copy_(2, slots, here.to(bench.device, non_blocking=True))

        seconds = []
        for work in (down, up):
            taken = []
            for _ in range(6):
                wait(bench.device)
                started = time.perf_counter()
                with torch.cuda.stream(aside):
                    work()
                wait(bench.device)
                taken.append(time.perf_counter() - started)
            seconds.append(sorted(taken)[len(taken) // 2])
        rates = [num_bytes / each / 1e9 for each in seconds]
        sleep = [1e3 * seconds[0], rates[0], 100 * rates[0] / down_limit]
        rows.append([context, num_bytes / 1e9, *sleep, 1e3 * seconds[1], rates[1], 100 * rates[1] / up_limit])
        cache.close()
    header = ["tokens", "GB", "ms to sleep", "GB/s", "% of the link", "ms to wake", "GB/s", "% of the link"]
    return [Table("Hibernation, 8B", header, rows)]
