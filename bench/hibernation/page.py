"""What was measured of calls that went cold, in tables, and whether what was asked for holds, in words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from bench import harness
from bench.hibernation.conversing import AT_A_TIME, TURNS, Talk, differing
from bench.hibernation.memory import FLAT, OPEN, POOL_TOKENS, WARM_UP, Sample, Slope, closed, fitted, lasts
from bench.hibernation.wakes import HOST, LOG, REPLY_TOKENS, Pair

SOON = 1.3
"""Times a warm call's first token that one may take that was woken from host memory before its turn came."""
OVER_POOL = 10
"""Times what the pool holds that calls are to be open at once."""
PAGE_TOKENS = 16
PROCESSES: Mapping[str, Callable[[Sample], float]] = {
    "service": lambda sample: sample.service_mib,
    "engine": lambda sample: sample.engine_mib,
}

Wakes = Mapping[tuple[int, str], Sequence[Pair]]
"""By tokens of the call and name of the way."""


def wakes(found: Wakes, rounds: int, read_bytes: int) -> str:
    """Both kinds apart: what is in host memory is copied back, what is not is computed again."""
    header = ["tokens of the call", "was in", "wake ms", "first token ms", "warm, ms", "cold / warm"]
    header.append(f"same, {REPLY_TOKENS} tokens")
    host, log = (harness.table(header, [_row(*place, pairs) for place, pairs in of.items()]) for of in _apart(found))
    different = sum(not pair.same for pairs in found.values() for pair in pairs)
    about = (
        f"Medians of {rounds} rounds, CPU time of the engine's thread; ratios are paired, with their 95 % interval. "
        f"Before each reply, of either call, {read_bytes >> 20} MiB of something else were read, so that nothing of it "
        "is in the CPU's caches. What the wake took is done while the caller speaks; not announced, it is part of the "
        f"first token. Replies other than the warm call's: {different} of {sum(map(len, found.values()))}."
    )
    parts = ["## First tokens of calls that were quiet", about, "### Woken from host memory", host, soon(found)]
    return "\n\n".join([*parts, "### Woken from the token log", log])


def _apart(found: Wakes) -> list[Wakes]:
    return [{place: pairs for place, pairs in found.items() if place[1].startswith(kept)} for kept in (HOST, LOG)]


def soon(found: Wakes) -> str:
    """Whether announced wakes from host memory are no slower than asked, in words."""
    asked = {
        context: statistics.median(pair.cold[0] / pair.warm[0] for pair in pairs)
        for (context, way), pairs in found.items()
        if way == f"{HOST}, announced"
    }
    each = "; ".join(f"{ratio:.2f} with {context} tokens" for context, ratio in asked.items())
    missed = [context for context, ratio in asked.items() if ratio > SOON]
    verdict = "**Met**" if not missed else f"**Missed** with {' and '.join(map(str, missed))} tokens"
    return f"Asked: the first token behind an announced wake at most {SOON:g} of a warm call's. {verdict}: {each}."


def _row(context: int, way: str, pairs: Sequence[Pair]) -> list[object]:
    first = harness.interval([pair.cold[0] / pair.warm[0] for pair in pairs])
    last = harness.interval([pair.cold[1] / pair.warm[1] for pair in pairs])
    cold, warm, waking = (
        1e3 * statistics.median(figure)
        for figure in zip(*((pair.cold[0], pair.warm[0], pair.waking) for pair in pairs), strict=True)
    )
    return [context, way, waking, cold, warm, *("{:.2f} [{:.2f}, {:.2f}]".format(*each) for each in (first, last))]


def conversing(crowd: Talk, alone: Talk, calls: int, pool_tokens: int) -> str:
    """Whether so many calls on so small a pool heard what they hear alone, without an error, in words."""
    pages = math.ceil(crowd.mean_tokens / PAGE_TOKENS) or 1
    holds = pool_tokens / PAGE_TOKENS / pages
    different, compared = differing(crowd, alone)
    missing = TURNS * calls - compared
    errors = ", ".join(f"{count} {name}" for name, count in crowd.errors.items()) or "0"
    moved = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in crowd.moved.items())
    good = calls >= OVER_POOL * holds and not (crowd.errors or different or missing)
    about = (
        f"Over gRPC, on a pool of {pool_tokens} tokens, each with {TURNS} turns in an order drawn anew, {AT_A_TIME} at "
        "a time, half of them announced; then each of them alone on a server with room for all. Behind its first turn, "
        f"when it is smallest, a call has {crowd.mean_tokens:.0f} tokens in the mean: the pool holds {holds:.0f} such."
    )
    verdict = (
        f"Asked: {OVER_POOL} times as many calls open as the pool holds, without an error and without a text that "
        f"differs from the same call's when it is undisturbed. **{'Met' if good else 'Missed'}**: {calls / holds:.1f} "
        f"times as many; errors: {errors}; turns that went otherwise: {different} of {compared}; turns without two "
        f"texts to compare: {missing}. Sessions moved: {moved}."
    )
    return f"## {calls} calls open at once\n\n{about}\n\n{verdict}"


def memory(samples: Sequence[Sample], calls: int) -> str:
    """Whether it is flat, in words, and some of the samples."""
    gone, ended = closed(samples), lasts(samples)
    errors = sum(last.errors for last in ended)
    slopes = {name: fitted(samples, of, int(WARM_UP * calls)) for name, of in PROCESSES.items()}
    flat = all(slope is not None and slope.is_flat(calls) for slope in slopes.values())
    good = flat and gone >= calls and not errors
    about = (
        f"{OPEN} calls were open at any time, on a pool of {POOL_TOKENS} tokens, {AT_A_TIME} of them coming, speaking "
        "or going at a time; proportional set size."
        + (f" It was cut off and went on with other processes, {len(ended)} in all." if len(ended) > 1 else "")
    )
    verdict = (
        f"Asked: flat over {calls:,} calls, which is: the line fitted behind the first {WARM_UP:.0%} of them gains at "
        f"most {FLAT:.0%} over all of them, at the upper end of its 95 % interval. **{'Met' if good else 'Missed'}**: "
        f"{'; '.join(_told(name, slope) for name, slope in slopes.items())}. Errors: {errors}."
        + ("" if gone >= calls else f" There was no time for more than {gone:,} calls.")
    )
    rows = [[one.process, one.closed, one.service_mib, one.engine_mib] for one in samples[:: 1 + len(samples) // 20]]
    table = harness.table(["process", "calls opened and closed", "service MiB", "engine MiB"], rows)
    return f"## Memory over {gone:,} calls\n\n{about}\n\n{verdict}\n\n{table}"


def _told(name: str, slope: Slope | None) -> str:
    if slope is None:
        return f"{name}: too few samples to tell"
    each, low, high = (1e3 * value for value in (slope.each, slope.low, slope.high))
    return f"{name} {each:+.2f} MiB [{low:+.2f}, {high:+.2f}] per 1,000 calls at {slope.mean:.0f} MiB"
