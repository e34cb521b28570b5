"""Where a step's time goes: the kernels of a plain step and of a cycle, the dearest first."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from bench.gpu.machine import wait
from bench.gpu.stages import Bench, Table
from bench.gpu.steps import close, decoding, graph_engine, small_pair, static_step
from bench.gpu.targets import context_of, tree_of
from engine.engine import Work

STEPS, ROWS, NAME = 10, 14, 70


@torch.inference_mode()
def profile(bench: Bench) -> list[Table]:
    target, head = small_pair(bench)
    context, nodes = context_of(bench.sizes), tree_of(bench.sizes)
    step, given = static_step(target, context, 1)
    tables = [_profiled(bench, f"A plain step behind {context}", step.replay)]
    close(step, given)
    if bench.left < 0:
        return tables
    engine = graph_engine(target, head, nodes)
    session = decoding(engine, context, bench.sizes.prefill)
    title = f"A step of the engine behind {context}, a cycle of {nodes} nodes"
    tables.append(_profiled(bench, title, lambda: engine.step([Work(session)])))
    engine.close(session)
    engine.graphs.release()
    return tables


def _profiled(bench: Bench, title: str, work: Callable[[], object]) -> Table:
    on_device = bench.device.type == "cuda"
    for _ in range(3):
        work()
    wait(bench.device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_device else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(STEPS):
            work()
        wait(bench.device)
    found = []
    for event in profiler.key_averages():
        if (event.device_type != DeviceType.CPU) == on_device:  # what the host did to launch a kernel is not the kernel
            spent = event.self_device_time_total if on_device else event.self_cpu_time_total
            found.append((spent / STEPS, event.count / STEPS, event.key))
    found.sort(reverse=True)
    total = sum(spent for spent, _, _ in found) or 1.0
    rows = [[name[:NAME], count, spent, 100 * spent / total] for spent, count, name in found[:ROWS]]
    rest = sum(spent for spent, _, _ in found[ROWS:])
    rows += [["all others", "", rest, 100 * rest / total], ["together", "", total, 100.0]]
    return Table(title, ["kernel" if on_device else "operation of the CPU", "times", "us", "%"], rows)
