"""What a stage is, what it hands back, and how stages are run: each in its time box, none harming the next."""

from __future__ import annotations

import faulthandler
import gc
import json
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.gpu.sizes import Sizes
from bench.harness import table

OVERTIME_S = 45.0
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
    """seconds: its time box, which its loops look at. run: gives its tables, and may leave figures in the bench. Those
    that were given before it failed are kept.
    """

    name: str
    seconds: float
    run: Callable[[Bench], Iterable[Table]]


@dataclass
class Record:
    """Everything that came of a run, written again after every stage."""

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
        self.path.write_text(json.dumps(self.data | {"figures": self.figures}, indent=1, default=str) + "\n")


def run_stage(bench: Bench, stage: Stage, record: Record) -> str:
    """Run one stage, print and record it. Returns "done", "failed" or "not run"; "done in part" where only the rest of
    it was not run.

    Raises DeviceLost where the device takes no more work afterwards.
    """
    box = stage.seconds * bench.patience
    print(f"\n## {stage.name} (at most about {box:.0f} s)\n", flush=True)
    started = time.monotonic()
    bench.deadline = started + box
    # A kernel that hangs must not take the whole lease: then the process says where it stands, and ends.
    patience = min(4 * box + 60, max(bench.ends - started, 0.0) + OVERTIME_S)
    if math.isfinite(patience):
        faulthandler.dump_traceback_later(patience, exit=True, file=sys.__stderr__)
    entry: dict[str, Any] = {"state": "done", "tables": []}
    try:
        for part in stage.run(bench):
            print(part, flush=True)
            entry["tables"].append({"title": part.title, "header": part.header, "rows": part.rows})
    except NotRun as reason:
        print(f"not run: {reason}", flush=True)
        entry |= {"state": "done in part" if entry["tables"] else "not run", "reason": str(reason)}
    except Exception:
        trace = traceback.format_exc()
        print(f"FAILED\n{trace[-4000:]}", flush=True)
        entry |= {"state": "failed", "traceback": trace}
    finally:
        faulthandler.cancel_dump_traceback_later()
    entry |= {"seconds": time.monotonic() - started, "kernels": bench.kernels}
    if bench.device.type == "cuda":
        entry["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    record.add(stage.name, entry)
    print(f"({entry['state']} in {entry['seconds']:.1f} s)", flush=True)
    if bench.device.type == "cuda":  # a part that failed is a row of a stage that is done
        try:
            torch.cuda.synchronize()
            if entry["state"] == "failed":
                bench.drop()
        except Exception as error:
            raise DeviceLost(str(error)) from error
    return str(entry["state"])
