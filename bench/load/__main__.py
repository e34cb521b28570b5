"""Many callers at once: what each contender carries.

    python -m bench.load [--part NAME ...] [--resume]           the whole comparison, or parts of it: bench/load/plan.py
    python -m bench.load --calls N ... [--contenders NAME ...]  given numbers of calls
    python -m bench.load --rate R ...                           calls that arrive at random, so many a minute
    python -m bench.load --step-up N      from one call to N and back: modes over time, texts as alone
    python -m bench.load --long-prompt N  what a prompt of 1,500 tokens does to N callers

Give each sweep a ``--runs`` directory of its own and a ``--name`` for its page; ``--resume`` goes on with the runs that
are there. On a grown model (``python -m bench.grow``): ``--model build/grown --dtype bfloat16``.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import torch

from bench.kept import KeptError
from bench.load import local, long_prompt, page, plan_page, step_up
from bench.load.caller import Manner
from bench.load.contenders import CONTENDERS
from bench.load.local import LocalDriver
from bench.load.plan import PARTS, Plan, in_order
from bench.load.playback import RATE
from bench.load.population import Population, mean_call_s
from bench.load.search import FINE
from bench.load.sweep import DRIVERS, Load, Setting, points, sweep
from evals.calls import FILE, Kind, RecordedCall, read

T = TypeVar("T")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/receptionist"))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--callers", type=Path, default=FILE, help="recorded calls")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="of the whole comparison")
    parser.add_argument("--first", type=int, default=FINE.first, help="calls that the search for each knee begins with")
    parser.add_argument("--drivers", nargs="+", choices=DRIVERS, default=list(DRIVERS), help="records, grpc or both")
    parser.add_argument("--calls", type=int, nargs="+", help="callers at a time, instead of the whole comparison")
    parser.add_argument("--rate", type=float, nargs="+", help="calls a minute that arrive, instead of it")
    parser.add_argument(
        "--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME", help="of given loads"
    )
    parser.add_argument("--seconds", type=float, help="that are measured of each run: 100 of the comparison, else 40")
    parser.add_argument("--warm-up", type=float, default=10.0, help="seconds before them")
    parser.add_argument("--repeats", type=int, default=1, help="of given loads")
    parser.add_argument("--speaking-rate", type=float, default=RATE, help="tokens spoken in a second")
    parser.add_argument("--no-eager", action="store_true", help="callers' backends pass on no eager ends of turns")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("build/load"), help="where each run is kept")
    parser.add_argument("--resume", action="store_true", help="take the runs that are there")
    parser.add_argument("--name", default="load", help="of the page in bench/results")
    parser.add_argument("--step-up", type=int, metavar="N")
    parser.add_argument("--long-prompt", type=int, metavar="N")
    given = parser.parse_args()
    if given.first < 1 or min(given.calls or [1]) < 1:
        parser.error("--first and --calls are of at least one caller")
    return given


def main() -> None:
    given = arguments()
    torch.set_num_threads(1)
    calls = list(read(given.callers))
    sends = {Kind.PARTIAL} if given.no_eager else {Kind.PARTIAL, Kind.EAGER, Kind.RESUMED}
    manner = Manner(rate=given.speaking_rate, sends=frozenset(sends))
    chosen = given.step_up or given.long_prompt or given.calls or given.rate
    seconds = given.seconds or (40.0 if chosen else 100.0)
    setting = Setting(given.model, given.dtype, seconds, given.warm_up, manner, given.seed)
    if given.step_up:
        run_step_up(given, setting, calls)
    elif given.long_prompt:
        run_long_prompt(given, setting, calls)
    elif given.calls or given.rate:
        run_sweep(given, setting, calls)
    else:
        run_plan(given, setting, calls)


def note(setting: Setting) -> str:
    """What was measured, in a few sentences."""
    eager = "" if Kind.EAGER in setting.manner.sends else " No eager ends of turns are passed on."
    return (
        f"`{setting.model}` in {setting.dtype}; windows of {setting.seconds:g} s behind {setting.warm_up_s:g} s of "
        f"warm-up; speech at {setting.manner.rate:g} tokens a second.{eager} Latencies count from when the final was "
        "due. First clause: of the turns that do not begin with a tool call. Turns without an answer count with the "
        "time that they were waited for."
    )


def run_plan(given: argparse.Namespace, setting: Setting, calls: list[RecordedCall]) -> None:
    """The page is written after each part."""
    plan, parts = Plan(given.drivers, setting, calls, given.runs, given.resume, given.first), in_order(given.part)
    print(plan.describe(parts), flush=True)
    for part in parts:
        print(f"--- {part}", flush=True)
        plan.carry_out(part)
        plan_page.write(given.name, plan, note(setting), show=part == parts[-1])


def run_sweep(given: argparse.Namespace, setting: Setting, calls: list[RecordedCall]) -> None:
    loads = [Load(rate=rate / 60) for rate in given.rate] if given.rate else [Load(calls=n) for n in given.calls]
    if given.rate:
        seconds = mean_call_s(calls, setting.manner)
        expected = ", ".join(f"{rate:g}: {rate / 60 * seconds:.1f}" for rate in given.rate)
        print(f"calls in progress by Little's law, at about {seconds:.0f} s a call, by calls a minute: {expected}")
    planned = list(points(given.drivers, given.contenders, loads, given.repeats))
    for runs in sweep(planned, setting, calls, given.runs, given.resume):
        page.write(given.name, runs, note(setting), show=len(runs) == len(planned))


def each(given: argparse.Namespace, setting: Setting, work: Callable[[LocalDriver], Awaitable[T]]) -> dict[str, T]:
    """What the work gives with each contender, each in an engine process of its own."""

    async def one(name: str) -> T:
        async with local.start(setting.environment(name), local.WatchedProcess) as driver:
            return await work(driver)

    found = {}
    for name in given.contenders:
        print(name, flush=True)
        found[name] = asyncio.run(one(name))
    return found


def run_step_up(given: argparse.Namespace, setting: Setting, calls: list[RecordedCall]) -> None:
    """Three parts of ``--seconds`` for each contender."""
    number, seconds = given.step_up, setting.seconds
    found = each(given, setting, lambda driver: step_up.measure(driver, calls, setting.manner, number, seconds))
    step_up.write(f"{given.name}_step_up", found, f"1, {number} and 1 calls, {seconds:g} s each. {note(setting)}")


def run_long_prompt(given: argparse.Namespace, setting: Setting, calls: list[RecordedCall]) -> None:
    """``--seconds`` with long prompts and as many without, for each contender."""
    number, slices = given.long_prompt, max(1, round(setting.seconds / long_prompt.SLICE_S))
    text = long_prompt.LongText(calls, setting.model)

    def work(driver: LocalDriver) -> Awaitable[long_prompt.LongPrompt]:
        population = Population(driver, calls, setting.manner, setting.seed)
        return long_prompt.measure(driver, population, number, setting.warm_up_s, slices, text)

    found = each(given, setting, work)
    about = f"{number} callers; {slices} slices of {long_prompt.SLICE_S:g} s with long prompts and as many without."
    long_prompt.write(f"{given.name}_long_prompt", found, f"{about} {note(setting)}")


if __name__ == "__main__":
    try:
        main()
    except KeptError as error:
        raise SystemExit(str(error)) from None
