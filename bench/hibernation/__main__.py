"""``python -m bench.hibernation``: what it measures is said in the package."""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import asdict
from pathlib import Path

import torch

import bench.hibernation
from bench import harness
from bench.hibernation import conversing, memory, page, wakes
from bench.kept import Kept, KeptError

WAKES, CALLS, MEMORY = PARTS = ("wakes", "calls", "memory")
ROUND_S = {200: 3.0, 800: 7.0}
"""About what a round of wakes takes, by the tokens of its calls."""
CALL_S = 1.0
"""About what a call's turns take, in a crowd and then alone."""
START_S = 30.0
"""About what all services together take to start."""


def most_seconds(given: argparse.Namespace) -> dict[str, float]:
    """By part, about what it takes at most if nothing of it is there."""
    each = {
        WAKES: sum(ROUND_S.values()) * (given.rounds + 1),
        CALLS: START_S + CALL_S * given.open,
        MEMORY: START_S + 60 * given.minutes,
    }
    return {part: each[part] for part in given.parts}


def measure_wakes(model: Path, rounds: int, kept: Kept) -> str:
    found = {}
    for context in wakes.CONTEXTS:

        def measured(context: int = context) -> dict[str, list[dict[str, object]]]:
            made = wakes.measure(model, context, rounds)
            return {name: [asdict(pair) for pair in pairs] for name, pairs in made.items()}

        for name, pairs in kept.of(f"wakes, {context} tokens, {rounds} rounds", measured).items():
            found[context, name] = [wakes.Pair(**pair) for pair in pairs]
        print(f"wakes, {context} tokens: done", flush=True)
    return page.wakes(found, rounds, wakes.Caches().read_bytes)


def measure_calls(model: Path, calls: int, kept: Kept) -> str:
    def talk(name: str) -> conversing.Talk:
        ways = {"together": conversing.together, "alone": conversing.alone}
        found = kept.of(f"{calls} calls {name}", lambda: asdict(asyncio.run(ways[name](model, calls))))
        return conversing.Talk.of(found)

    return page.conversing(talk("together"), talk("alone"), calls, conversing.POOL_TOKENS)


def measure_memory(model: Path, calls: int, minutes: float, kept: Kept) -> str:
    """On from the process that was cut off, if one was, with a new one."""
    name, deadline = f"memory, {calls} calls, ", time.monotonic() + 60 * minutes
    samples = [memory.Sample(**one) for one in kept.all(name)]
    process, left = max((one.process for one in samples), default=0) + 1, calls - memory.closed(samples)

    def take(sample: memory.Sample) -> None:
        kept.put(f"{name}process {sample.process}, {sample.closed}", asdict(sample))
        print(f"{sample.closed} calls closed: {sample.service_mib:.0f} and {sample.engine_mib:.0f} MiB", flush=True)

    if left > 0:
        asyncio.run(memory.measure(model, left, process, max(1, calls // memory.SAMPLES), deadline, take))
    return page.memory([memory.Sample(**one) for one in kept.all(name)], calls)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=bench.hibernation.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("models/receptionist"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=12, help="of first tokens")
    parser.add_argument("--open", type=int, default=160, help="calls that are open at once and converse")
    parser.add_argument("--calls", type=int, default=5000, help="that come and go while memory is watched")
    parser.add_argument("--minutes", type=float, default=25.0, help="in which fewer come if there is no time for all")
    parser.add_argument("--name", default="hibernation", help="of the page under bench/results")
    parser.add_argument("--runs", type=Path, default=Path("build/hibernation.jsonl"), help="file of what was measured")
    parser.add_argument("--resume", action="store_true", help="go on with what is there")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    torch.set_num_threads(1)
    try:
        kept = Kept(given.runs, {"model": str(given.model)}, resume=given.resume)
    except KeptError as error:
        raise SystemExit(str(error)) from error
    most = most_seconds(given)
    told = ", ".join(f"{part} {seconds / 60:.0f}" for part, seconds in most.items())
    print(f"minutes at most, about: {told}, in all {sum(most.values()) / 60:.0f}", flush=True)
    model = given.model.resolve()
    bodies = {
        WAKES: lambda: measure_wakes(given.model, given.rounds, kept),
        CALLS: lambda: measure_calls(model, given.open, kept),
        MEMORY: lambda: measure_memory(model, given.calls, given.minutes, kept),
    }
    text = "\n\n".join(bodies[part]() for part in PARTS if part in given.parts)
    harness.save(given.name, "Calls that were quiet", text, {"runs": kept.everything})


if __name__ == "__main__":
    main()
