"""What a stage is, what it hands back, and how stages are run: each in its time box, none harming the next."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.gpu.sizes import Sizes
from bench.harness import table

OVERTIME_S = 30.0
"""How long a stage may run on when the whole run should have ended."""


class NotRun(Exception):
    """A stage has no place here; the message says why."""


class DeviceLost(Exception):
    """The device takes no more work from this process."""


def in_words(error: Exception) -> str:
    """For a cell of a table."""
    return f"{type(error).__name__}: {str(error)[:80]}"


@dataclass
class Table:
    """One printed table."""

    title: str
    header: Sequence[str]
    rows: list[list[Any]] = field(default_factory=list)

    def __str__(self) -> str:
        return f"### {self.title}\n\n{table(self.header, self.rows)}\n"


@dataclass
class Bench:
    """What stages share. kernels: what computes a step beside its products; ``plain`` once the kernels have failed.

    patience: what time boxes are multiplied by. copy_gb_s: the measured copy bandwidth, which steps are held against; 0
    while it is not known. deadline: of the running stage. ends: when the whole run does; both by the monotonic clock.
    """

    device: torch.device
    sizes: Sizes
    model: Path
    kernels: str
    patience: float = 1.0
    copy_gb_s: float = 0.0
    deadline: float = 0.0
    ends: float = math.inf
    figures: dict[str, Any] = field(default_factory=dict)
    """Of stages before, by name: a stage may build on another's."""
    _held: tuple[object, Any] | None = None

    @property
    def left(self) -> float:
        """Seconds of the running stage's time box; below zero it is over."""
        return self.deadline - time.monotonic()

    def held(self, key: object, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, kept for the stages behind. One thing at a time: weights fill the card."""
        if self._held is None or self._held[0] != key:
            self.drop()
            self._held = (key, make())
        return self._held[1]

    def drop(self) -> None:
        self._held = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def needs_products(self) -> None:
        """Raises NotRun where ``check`` found products with weights in eight bits to be wrong: no plain ones would run
        in their place.
        """
        if self.figures.get("products_correct") is False:
            raise NotRun("products with weights in eight bits are wrong on this device, as check has found")

    def needs_memory(self, num_bytes: float) -> None:
        """Raises NotRun where the device has less; on a CPU whatever is asked fits."""
        if self.device.type == "cuda":
            there = torch.cuda.get_device_properties(self.device).total_memory
            if num_bytes > 0.97 * there:
                raise NotRun(f"needs {num_bytes / 1e9:.0f} GB, the device has {there / 1e9:.0f}")


@dataclass(frozen=True)
class Stage:
    """seconds: its time box, which its loops look at. run: gives its tables, and may leave figures in the bench.

    A table may be given before it has its rows, and be filled until the next one is asked for: what it has by then is
    kept, however the stage ends.
    """

    name: str
    seconds: float
    run: Callable[[Bench], Iterable[Table]]


@dataclass
class Record:
    """Everything that came of a run, written again with every table and after every stage."""

    path: Path
    data: dict[str, Any]
    figures: dict[str, Any] = field(default_factory=dict)
    """Of all stages so far."""

    def add(self, name: str, entry: dict[str, Any]) -> None:
        self.data["stages"][name] = entry
        self._write()

    def add_targets(self, targets: Table) -> None:
        self.data["targets"] = [dict(zip(targets.header, row, strict=True)) for row in targets.rows]
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.data | {"figures": dict(self.figures)}, indent=1, default=str)
        beside = self.path.with_name(self.path.name + ".part")
        beside.write_text(text + "\n")
        beside.replace(self.path)  # whenever the run is cut off, there is a whole file


class _Running:
    """A stage under way. What it has given is printed once it is whole, and stands in the record before that."""

    def __init__(self, stage: Stage, record: Record) -> None:
        self.entry: dict[str, Any] = {"state": "running", "tables": []}
        self._name, self._record = stage.name, record
        self._open: Table | None = None

    def give(self, part: Table) -> None:
        """A table whose rows may come later: until the next one, or the stage's end."""
        self.close()
        self._open = part
        self.entry["tables"].append({"title": part.title, "header": part.header, "rows": part.rows})
        self.write()

    def close(self) -> None:
        """Print what is whole now, or all that there will be."""
        if self._open is not None:
            print(self._open, flush=True)
            self._open = None

    def write(self) -> None:
        self._record.add(self._name, self.entry)


def run_stage(bench: Bench, stage: Stage, record: Record, overdue: Callable[[str], None] | None = None) -> str:
    """Run one stage, print and record it. Returns "done", "failed" or "not run"; "done in part" where only the rest of
    it was not run.

    overdue: called, on a thread of its own, where the stage does not end though its time box is long over; it must not
    return. Raises DeviceLost where the device takes no more work afterwards.
    """
    box = stage.seconds * bench.patience
    print(f"\n## {stage.name} (at most about {box:.0f} s)\n", flush=True)
    started = time.monotonic()
    bench.deadline = started + box
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    running = _Running(stage, record)
    with _watched(bench, running, stage, overdue):
        entry = _given(running, stage.run, bench)
    entry |= {"seconds": time.monotonic() - started, "kernels": bench.kernels}
    running.write()
    print(f"({entry['state']} in {entry['seconds']:.1f} s)", flush=True)
    if bench.device.type == "cuda":  # a part that failed is a row of a stage that is done
        try:
            torch.cuda.synchronize()
            entry["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
            if entry["state"] == "failed":
                bench.drop()
        except Exception as error:
            raise DeviceLost(str(error)) from error
        running.write()
    return str(entry["state"])


def _given(running: _Running, run: Callable[[Bench], Iterable[Table]], bench: Bench) -> dict[str, Any]:
    """What the stage left in its entry, however it ended."""
    entry = running.entry
    try:
        for part in run(bench):
            running.give(part)
        entry["state"] = "done"
    except NotRun as reason:
        running.close()
        print(f"not run: {reason}", flush=True)
        entry |= {"state": "done in part" if entry["tables"] else "not run", "reason": str(reason)}
    except Exception:
        running.close()
        trace = traceback.format_exc()
        print(f"FAILED\n{trace[-4000:]}", flush=True)
        entry |= {"state": "failed", "traceback": trace}
    running.close()
    return entry


@contextlib.contextmanager
def _watched(bench: Bench, running: _Running, stage: Stage, overdue: Callable[[str], None] | None) -> Iterator[None]:
    """A stage that hangs must not take the lease with it, nor what it has measured.

    Where even a thread of this process gets no turn, the process says where it stands, and ends.
    """
    box = stage.seconds * bench.patience
    patience = min(2 * box + 30, max(bench.ends - time.monotonic(), 0.0) + OVERTIME_S)
    if not math.isfinite(patience):
        yield
        return

    def give_up() -> None:
        faulthandler.dump_traceback(file=sys.__stderr__ or 2)
        running.entry["state"] = "did not end"
        running.close()
        running.write()
        print(f"({stage.name} has not ended in {patience:.0f} s)", flush=True)
        if overdue is not None:
            overdue(stage.name)
        os._exit(1)

    timer = threading.Timer(patience, give_up)
    timer.daemon = True
    timer.start()
    faulthandler.dump_traceback_later(patience + 5, exit=True, file=sys.__stderr__ or 2)
    try:
        yield
    finally:
        timer.cancel()
        faulthandler.cancel_dump_traceback_later()
