"""The device: what it is, how it is timed, how fast it copies."""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch


def facts(device: torch.device) -> dict[str, Any]:
    """What the figures are taken on."""
    found: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version(), "device": str(device)}
    for name in ("triton", "transformers"):
        try:
            found[name] = __import__(name).__version__
        except ImportError:
            found[name] = "not there"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "name": properties.name,
            "memory_gb": properties.total_memory / 1e9,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "clocks_mhz": _clocks(),
        }
    return found


def _clocks() -> str:
    """Of the multiprocessors and of the memory, as they are now."""
    command = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,power.draw", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"not known ({type(error).__name__})"


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def median_ms(work: Callable[[], object], device: torch.device, *, seconds: float = 0.5, most: int = 200) -> float:
    """Median milliseconds of ``work`` on the device, repeated for about so many seconds after two runs to warm up.

    A GPU is timed by events around each run, so what is queued ahead hides what the host does.
    """
    for _ in range(2):
        work()
    wait(device)
    if device.type != "cuda":
        return host_ms(work, device, seconds=seconds, most=most)
    begun = time.perf_counter()
    pairs = []
    while len(pairs) < most and (time.perf_counter() - begun < seconds or len(pairs) < 3):
        pair = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        pair[0].record()
        work()
        pair[1].record()
        pairs.append(pair)
        if len(pairs) % 20 == 0:
            torch.cuda.synchronize()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in pairs)


def host_ms(work: Callable[[], object], device: torch.device, *, seconds: float = 0.5, most: int = 200) -> float:
    """Median milliseconds by the host's clock, waiting for the device each time: what a caller waits."""
    work()
    wait(device)
    begun, taken = time.perf_counter(), []
    while len(taken) < most and (time.perf_counter() - begun < seconds or len(taken) < 3):
        started = time.perf_counter()
        work()
        wait(device)
        taken.append(1e3 * (time.perf_counter() - started))
    return statistics.median(taken)


def copy_gb_per_s(device: torch.device, num_bytes: int) -> float:
    """Device to device, bytes read and bytes written both counted: the limit that steps are held against."""
    source = torch.empty(num_bytes // 2, dtype=torch.bfloat16, device=device).normal_()
    target = torch.empty_like(source)
    return 2 * num_bytes / median_ms(lambda: target.copy_(source), device) / 1e6


def link_gb_per_s(device: torch.device, num_bytes: int) -> tuple[float, float]:
    """(to the host, to the device), from and to pinned memory."""
    here = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    there = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    down = median_ms(lambda: here.copy_(there, non_blocking=True), device, most=20)
    up = median_ms(lambda: there.copy_(here, non_blocking=True), device, most=20)
    return num_bytes / down / 1e6, num_bytes / up / 1e6
