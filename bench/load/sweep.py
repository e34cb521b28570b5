"""Contenders under growing load, one run after the other, each with an engine of its own.

Every run is a file as soon as it is over, so that a sweep that was cut off goes on where it was.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench import harness
from bench.kept import KeptError
from bench.load import local, remote, scripts
from bench.load.accounts import Run, figures
from bench.load.caller import ALONE, Manner
from bench.load.contenders import CONTENDERS, environment
from bench.load.cpu import Meter, Shares
from bench.load.lines import Driver, StartDriver
from bench.load.population import DRAIN_S, Population
from evals.calls import RecordedCall
from training.files import whole

DRIVERS: Mapping[str, StartDriver] = {"records": local.start, "grpc": remote.start}
FEWEST_ALONE, ALONE_TURNS = 12, 60
"""Turns of the calls that are played alone: so many, or as many as fit into the time of a window, if it is at least so
few.
"""
START_S = 10.0
"""About what an engine's start takes: its model is loaded and its steps are measured."""


@dataclass(frozen=True)
class Load:
    """calls: callers at a time, 0 for calls one after the other, each turn right behind the one before. rate: calls a
    second that arrive, where ``calls`` is None.
    """

    calls: int | None = None
    rate: float | None = None

    @property
    def alone(self) -> bool:
        return self.calls == 0

    def __str__(self) -> str:
        if self.rate is not None:
            return f"{60 * self.rate:g} calls a minute"
        return "alone" if self.alone else f"{self.calls} calls"


@dataclass(frozen=True)
class Setting:
    """What all runs of a sweep have in common. seconds: of a run's window, behind the warm-up."""

    model: Path
    dtype: str
    seconds: float
    warm_up_s: float
    manner: Manner
    seed: int = 0

    def environment(self, contender: str) -> dict[str, str]:
        """Of the contender's service."""
        rate = self.manner.rate * self.manner.speed
        return environment(CONTENDERS[contender], self.model, self.dtype, rate)

    def described(self) -> dict[str, object]:
        """As it is kept beside the figures: what was measured otherwise must not be mixed with it."""
        manner = {"speed": self.manner.speed, "rate": self.manner.rate, "sends": sorted(self.manner.sends)}
        return {
            "model": str(self.model),
            "dtype": self.dtype,
            "seconds": self.seconds,
            "warm_up_s": self.warm_up_s,
            "seed": self.seed,
            **manner,
        }


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    driver: str
    contender: str
    load: Load
    repeat: int

    @property
    def file(self) -> str:
        name = f"{self.driver} {self.contender} {self.load} {self.repeat}"
        return re.sub(r"[^a-z0-9]+", "-", name.lower()) + ".json"

    def seconds(self, setting: Setting) -> float:
        """About what it takes."""
        return START_S + setting.seconds + (0.0 if self.load.alone else setting.warm_up_s + DRAIN_S / 4)


def points(drivers: Iterable[str], contenders: Iterable[str], loads: Iterable[Load], repeats: int) -> Iterator[Point]:
    """Every contender under every load, in an order that lets none profit from the hour, contender or load: loads are
    drawn anew for each repeat, and contenders for each load. Calls alone come first and last, for the rest is judged by
    them, and machines change their pace.
    """
    rng = random.Random(0)
    names, drivers, loads = list(contenders), list(drivers), list(loads)
    order = [(repeat, load) for repeat in range(repeats) for load in rng.sample(loads, len(loads))]
    for repeat, load in [(0, Load(calls=0)), *order, (1, Load(calls=0))]:
        for name in rng.sample(names, len(names)):
            for driver in drivers:
                yield Point(driver, name, load, repeat)


class Kept:
    """Runs by the point that they are of, each a file of one folder as soon as it is over.

    resume: those that are there already are taken, and are not made again. Raises KeptError where one of them is of
    another setting, and where there are any that are not to be taken: runs of two sweeps must not be mixed.
    """

    def __init__(self, files: Path, setting: Setting, calls: list[RecordedCall], resume: bool) -> None:
        self.setting = setting
        self._files = files
        self._calls = calls
        there = sorted(files.glob("*.json"))
        if there and not resume:
            raise KeptError(f"{files} holds {len(there)} runs: --resume goes on with them; or give another --runs")
        self._runs = {path.name: read(path, setting) for path in there}

    @property
    def runs(self) -> list[Run]:
        return list(self._runs.values())

    def run(self, point: Point) -> Run:
        """The run of a point, made now if it is not there."""
        if point.file not in self._runs:
            began = time.monotonic()
            run = asyncio.run(measure(point, self.setting, self._calls))
            print(f"{point.driver}, {point.contender}, {point.load}: {time.monotonic() - began:.0f} s", flush=True)
            self._files.mkdir(parents=True, exist_ok=True)
            path = self._files / point.file
            with whole(path) as part:
                part.write_text(json.dumps({"setting": self.setting.described(), "run": dataclasses.asdict(run)}))
            self._runs[point.file] = read(path, self.setting)
        return self._runs[point.file]


def sweep(
    all_points: list[Point], setting: Setting, calls: list[RecordedCall], files: Path, resume: bool
) -> Iterator[list[Run]]:
    """All runs so far, after each. Raises KeptError."""
    kept = Kept(files, setting, calls, resume)
    done: list[Run] = []
    left = sum(point.seconds(setting) for point in all_points)
    print(f"{len(all_points)} runs, about {left / 60:.0f} minutes in all", flush=True)
    for point in all_points:
        done.append(kept.run(point))
        yield done


def read(path: Path, setting: Setting) -> Run:
    """Raises KeptError where the run is of another setting."""
    found = json.loads(path.read_text())
    if found["setting"] != json.loads(json.dumps(setting.described())):
        raise KeptError(f"{path} was measured under {found['setting']}; give another --runs directory")
    return Run.of(found["run"])


async def measure(point: Point, setting: Setting, calls: list[RecordedCall]) -> Run:
    """Start the contender, load it, and end it."""
    settings = setting.environment(point.contender)
    async with DRIVERS[point.driver](settings) as driver:
        if point.load.alone:
            return await alone(driver, point, setting, calls)
        return await loaded(driver, point, setting, calls)


async def loaded(driver: Driver, point: Point, setting: Setting, calls: list[RecordedCall]) -> Run:
    """Callers in real time."""
    load = point.load
    population = Population(driver, calls, setting.manner, seed=setting.seed * 100 + point.repeat)
    now = time.perf_counter()
    if load.calls is not None:
        population.fixed(load.calls, now, setting.warm_up_s)
    else:
        assert load.rate is not None
        population.poisson(load.rate, now, setting.warm_up_s)
    window = await population.measure(now + setting.warm_up_s, setting.seconds)
    began, ended = window.began, window.ended
    return _run(point, population, began, ended, window.cpu)


async def alone(driver: Driver, point: Point, setting: Setting, calls: list[RecordedCall]) -> Run:
    """Calls one after the other, each turn right behind the one before: what the service can do for one caller. The
    first call warms up. First turns are left out: they come in the instant in which the call is opened, and wait for
    its instructions.
    """
    manner = dataclasses.replace(ALONE, rate=setting.manner.rate, give_up_s=setting.manner.give_up_s)
    population = Population(driver, calls, manner, seed=setting.seed)
    began, meter, number = time.perf_counter(), Meter(), 0
    while not _enough(population, began, setting.seconds):
        await population.call(scripts.script(calls, number), time.perf_counter())
        if number == 0:
            began, meter = time.perf_counter(), Meter()
        number += 1
    ended = time.perf_counter()
    population.turns = [turn for turn in population.turns if turn.number]
    return _run(point, population, began, ended, meter.shares())


def _enough(population: Population, began: float, seconds: float) -> bool:
    now = time.perf_counter()
    turns = sum(turn.number > 0 for turn in population.within(began, now))
    return turns >= ALONE_TURNS or (turns >= FEWEST_ALONE and now >= began + seconds)


def _run(point: Point, population: Population, began: float, ended: float, cpu: Shares) -> Run:
    return Run(
        contender=point.contender,
        driver=point.driver,
        calls=point.load.calls,
        rate=point.load.rate,
        repeat=point.repeat,
        seconds=ended - began,
        mean_calls=population.mean_calls(began, ended),
        cpu_share=cpu.own,
        refused=sum(moment < ended for moment in population.refused),
        errors=population.errors,
        turns=[figures(turn, began, ended) for turn in population.within(began, ended)],
        machine=harness.where(harness.machine()),
        others_cpu=cpu.others,
    )
