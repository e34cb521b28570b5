"""What a service's processes have in memory, and what its engine has counted."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from urllib.request import urlopen

COUNTERS = ("hibernated", "dropped", "woken_from_host", "woken_from_log")


def resident_mib(pid: int) -> float:
    """What a process has in memory (proportional set size)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1024


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def service_and_engine() -> tuple[int, int]:
    """Of the one service that this process has started."""
    (service,) = children(os.getpid())
    (engine,) = children(service)
    return service, engine


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def counters(port: int) -> dict[str, int]:
    """How often sessions moved and came back, as the service's metrics have it."""
    text = await asyncio.to_thread(lambda: urlopen(f"http://127.0.0.1:{port}/metrics").read().decode())
    found = dict.fromkeys(COUNTERS, 0)
    for line in text.splitlines():
        for name in COUNTERS:
            if line.startswith(f"firstword_engine_sessions_{name}_total"):
                found[name] += int(float(line.split()[-1]))
    return found
