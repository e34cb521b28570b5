"""The parts of the comparison on disk, each with the machine it was measured on: a run that was cut off goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import harness
from bench.decode import Timed
from bench.drafters.counts import Counted, Setting
from bench.drafters.times import Costs, Times
from training.files import whole


def counted_from(found: list[dict[str, Any]]) -> list[Counted]:
    return [Counted(**{**one, "setting": Setting(**one["setting"])}) for one in found]


def times_from(found: dict[str, Any]) -> Times:
    costs = {mode: Costs(**one) for mode, one in found["costs"].items()}
    return Times(costs, {mode: [Timed(**one) for one in runs] for mode, runs in found["runs"].items()})


class PartFiles:
    """One file a part in a directory. resume: whether a part that is there is taken instead of measured."""

    def __init__(self, directory: Path, *, resume: bool) -> None:
        self.directory, self.resume = directory, resume
        self.machines: dict[str, str] = {}

    def counted(self, name: str, measure: Callable[[], list[Counted]]) -> list[Counted]:
        return counted_from(self._had(name, lambda: [asdict(one) for one in measure()]))

    def times(self, size: str, measure: Callable[[], Times]) -> Times:
        return times_from(self._had(size, lambda: asdict(measure())))

    def _had(self, name: str, measure: Callable[[], Any]) -> Any:
        path = self.directory / f"{name}.json"
        if not (self.resume and path.exists()):
            found = {"found": measure(), "machine": harness.where(harness.machine())}
            self.directory.mkdir(parents=True, exist_ok=True)
            with whole(path) as part:
                part.write_text(json.dumps(found))
        # What was measured just now is read back as well, so that what a later run goes on with is no other thing.
        read = json.loads(path.read_text())
        self.machines[name] = read["machine"]
        return read["found"]
