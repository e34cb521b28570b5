"""The whole comparison, in parts of bounded length: what ``python -m bench.load`` does where nothing else is asked.

baseline  which fixed tree is the best baseline: what each carries, over records, in shorter windows
alone     one call at a time: five rounds of ours and plain decoding, in turns, both ways to the engine; what drafting
          costs or brings at every other load is ``bench.batching``'s to say
knees     how many calls each contender carries: loads doubled until it fails, then halved between; over gRPC from where
          the search over records has ended
arrivals  calls that arrive at random over gRPC, as many as the knees stand for
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.load.contenders import FCFS_PLAIN, OURS, PLAIN, TREES
from bench.load.figures import Sweep, meets
from bench.load.population import mean_call_s
from bench.load.search import AGAIN, FINE, Search
from bench.load.sweep import Kept, Load, Point, Setting
from evals.calls import RecordedCall

BASELINE, ALONE, KNEES, ARRIVALS = PARTS = ("baseline", "alone", "knees", "arrivals")
NEEDS = {KNEES: {BASELINE}, ARRIVALS: {BASELINE, KNEES}}
"""Parts whose results a part goes by."""
COMPARED = 4
"""Ours, the best fixed tree, and plain decoding by deadline and in the order of asking."""
ROUNDS = 5
"""Of calls alone."""
SHORTER = 0.5
"""A window of the search among trees, of one that is reported."""


def in_order(parts: Sequence[str]) -> list[str]:
    """The parts and those that they need."""
    wanted = set(parts).union(*(NEEDS.get(part, set()) for part in parts))
    return [part for part in PARTS if part in wanted]


class Plan:
    """drivers: the last one takes the arrivals. resume: runs that ``files`` holds are taken. first: calls that the
    searches begin with. Raises KeptError.
    """

    def __init__(
        self,
        drivers: Sequence[str],
        setting: Setting,
        calls: list[RecordedCall],
        files: Path,
        resume: bool,
        first: int = FINE.first,
    ) -> None:
        self.drivers = list(drivers)
        self.kept = Kept(files, setting, calls, resume)
        short = dataclasses.replace(setting, seconds=SHORTER * setting.seconds)
        self.tried_trees = Kept(files / "trees", short, calls, resume)
        self._fine = FINE.beginning(first)
        self._call_s = mean_call_s(calls, setting.manner)
        self._rng = random.Random(0)

    def describe(self, parts: Sequence[str]) -> str:
        """What it will take at most, part by part, if none of the runs are there."""
        lines, total = [], 0.0
        for part in parts:
            runs, seconds = self._most(part)
            lines.append(f"{part}: at most {runs} runs, {seconds / 60:.0f} minutes")
            total += seconds
        return "\n".join([*lines, f"in all at most {total / 60:.0f} minutes"])

    def _most(self, part: str) -> tuple[int, float]:
        """(runs, seconds)."""
        setting, short = self.kept.setting, self.tried_trees.setting
        alone, loaded = (Point("", "", Load(calls=calls), 0) for calls in (0, 1))
        ways = len(self.drivers) * COMPARED
        searched = COMPARED * (self._fine.most_runs + AGAIN.most_runs * (len(self.drivers) - 1))
        found = {
            BASELINE: [(len(TREES), alone, short), (len(TREES) * self._fine.most_runs, loaded, short)],
            ALONE: [(len(self.drivers) * 2 * ROUNDS, alone, setting)],
            KNEES: [(ways, alone, setting), (searched, loaded, setting)],
            ARRIVALS: [(COMPARED * COMPARED, loaded, setting)],
        }[part]
        return sum(runs for runs, _, _ in found), sum(runs * point.seconds(given) for runs, point, given in found)

    def carry_out(self, part: str) -> None:
        {BASELINE: self._trees, ALONE: self._alone, KNEES: self._knees, ARRIVALS: self._arrivals}[part]()

    @property
    def best_tree(self) -> str:
        """The contender with a fixed tree that carries most; of those that carry as much, the one with the smallest p95
        under that load.
        """
        sweep = Sweep(self.tried_trees.runs)

        def rank(name: str) -> tuple[float, float]:
            carried = sweep.knee(name) or 0
            return carried, -sweep.by[name][carried].first_clause.p95

        return max(sweep.contenders, key=rank)

    @property
    def contenders(self) -> list[str]:
        return [OURS, self.best_tree, FCFS_PLAIN, PLAIN]

    def _trees(self) -> None:
        """As finely as the knees: of trees that doubling alone cannot tell apart one may carry nearly twice as many."""
        _search(self.tried_trees, self.drivers[0], dict.fromkeys(TREES.values(), self._fine), self._rng)
        print(f"best fixed tree: {self.best_tree}", flush=True)

    def _alone(self) -> None:
        for number in range(ROUNDS):
            for driver in self.drivers:
                for name in self._rng.sample([OURS, PLAIN], 2):
                    self.kept.run(Point(driver, name, Load(calls=0), number))

    def _knees(self) -> None:
        for driver in self.drivers:
            _search(self.kept, driver, self._searches(driver), self._rng)

    def _searches(self, driver: str) -> dict[str, Search]:
        """By contender, how its knee is looked for."""
        if driver == self.drivers[0]:
            return dict.fromkeys(self.contenders, self._fine)
        done = _of(self.kept, self.drivers[0], arrivals=False)
        return {name: dataclasses.replace(AGAIN, first=int(done.knee(name) or 1)) for name in self.contenders}

    def _arrivals(self) -> None:
        """Rates that keep, in the long run, as many calls as a contender carries, from the smallest up; who fails at
        one is not asked for more.
        """
        driver, going = self.drivers[-1], list(self.contenders)
        fixed = _of(self.kept, driver, arrivals=False)
        for carried in sorted({found for name in going if (found := fixed.knee(name))}):
            rate = round(60 * carried / self._call_s, 1) / 60
            for name in self._rng.sample(going, len(going)):
                self.kept.run(Point(driver, name, Load(rate=rate), 0))
            sweep = _of(self.kept, driver, arrivals=True)
            going = [name for name in going if all(meets(one, sweep.solo_ms) for one in sweep.loads(name).values())]


def _of(kept: Kept, driver: str, *, arrivals: bool) -> Sweep:
    """The calls alone of a driver with those by number, or with those that arrive."""
    runs = [run for run in kept.runs if run.driver == driver]
    return Sweep([run for run in runs if run.calls == 0 or (run.calls is None) == arrivals])


def _search(kept: Kept, driver: str, searches: Mapping[str, Search], rng: random.Random) -> None:
    """How many calls each contender carries; they take turns, in an order drawn anew, so that none profits from the
    hour.
    """
    going = list(searches)
    for name in rng.sample(going, len(going)):
        kept.run(Point(driver, name, Load(calls=0), 0))
    while going:
        for name in rng.sample(going, len(going)):
            calls = searches[name].next(_tried(kept, driver, name))
            if calls is None:
                going.remove(name)
            else:
                kept.run(Point(driver, name, Load(calls=calls), 0))


def _tried(kept: Kept, driver: str, contender: str) -> dict[int, bool]:
    sweep = _of(kept, driver, arrivals=False)
    return {int(load): meets(found, sweep.solo_ms) for load, found in sweep.loads(contender).items()}
