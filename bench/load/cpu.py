"""CPU time of this process and of those below it: whichever of them is at its limit."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class Shares:
    """own: of this process, of one core. others: of the processes that it has started, and of those that these have, by
    the module that they run; none of them where the system does not tell.
    """

    own: float
    others: dict[str, float]


@dataclass
class Meter:
    """Counts from when it was made."""

    _began: float = field(default_factory=time.perf_counter)
    _own: float = field(default_factory=time.process_time)
    _others: dict[int, float] = field(default_factory=lambda: {pid: used for pid, (_, used) in _below().items()})

    def shares(self) -> Shares:
        """Until now. A process that has ended meanwhile is missing."""
        seconds = time.perf_counter() - self._began
        own = (time.process_time() - self._own) / seconds
        others: defaultdict[str, float] = defaultdict(float)
        for pid, (name, used) in sorted(_below().items()):
            others[name] += (used - self._others.get(pid, 0.0)) / seconds
        return Shares(own, dict(others))


def _below() -> dict[int, tuple[str, float]]:
    """By process below this one: (what it runs, seconds of CPU that it has used)."""
    parents: dict[int, int] = {}
    used: dict[int, float] = {}
    for path in PROC.glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()  # a name may hold anything, spaces too
        except OSError:
            continue  # gone meanwhile
        pid = int(path.parent.name)
        parents[pid] = int(fields[1])
        used[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return {pid: (_name(pid), used[pid]) for pid in parents if _is_below(pid, parents)}


def _is_below(pid: int, parents: Mapping[int, int]) -> bool:
    me = os.getpid()
    while (pid := parents.get(pid, 0)) > 1:
        if pid == me:
            return True
    return False


def _name(pid: int) -> str:
    """The module that a Python process runs, or else its program."""
    try:
        words = (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "?"
    return words[words.index("-m") + 1] if "-m" in words[:-1] else Path(words[0]).name
