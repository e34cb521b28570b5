"""What runs come to: ratios of the same round, what was asked for and whether it holds, tables and the picture."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib

from bench import harness
from bench.batching.runs import EAGLE, OURS, PLAIN, Found
from bench.load.claims import FLOOR

matplotlib.use("Agg")
from matplotlib import pyplot

FRUGAL_MODE = "suffix"
"""What a step is counted as that drafts by self-speculation."""


def speed(found: Sequence[Found], contender: str, calls: int) -> float:
    """Median tokens a second."""
    return statistics.median(f.tokens_per_second for f in found if (f.contender, f.calls) == (contender, calls))


def ratios(found: Sequence[Found], contender: str, calls: int, base: str = PLAIN) -> tuple[float, float, float]:
    """To plain decoding, or another base, in the same round: median, smallest, largest."""
    own = [f.tokens_per_second for f in found if (f.contender, f.calls) == (contender, calls)]
    others = [f.tokens_per_second for f in found if (f.contender, f.calls) == (base, calls)]
    each = [a / b for a, b in zip(own, others, strict=True)]
    return statistics.median(each), min(each), max(each)


def our_modes(found: Sequence[Found], calls: int) -> Counter[str]:
    """Our steps, by what they drafted with."""
    total: Counter[str] = Counter()
    for one in found:
        if (one.contender, one.calls) == (OURS, calls):
            total.update(one.modes)
    return total


def chosen(found: Sequence[Found], calls: int) -> str:
    """What most of our steps drafted with."""
    modes = our_modes(found, calls)
    return modes.most_common(1)[0][0] if modes else ""


def floor(found: Sequence[Found], loads: Sequence[int]) -> str:
    """Whether ours is below ``FLOOR`` of plain decoding at a load, in words."""
    middle = {calls: ratios(found, OURS, calls) for calls in loads}
    missed = [calls for calls in loads if middle[calls][0] < FLOOR]
    worst = min(loads, key=lambda calls: middle[calls][0])
    smallest = min(loads, key=lambda calls: middle[calls][1])
    verdict = f"**Missed {_at(missed)}**" if missed else "**Met**"
    return (
        f"Asked: ours at no load below {FLOOR:g} of plain decoding. {verdict}: the smallest median over the rounds is "
        f"{middle[worst][0]:.2f}, {_at([worst])}; the smallest of a single round {middle[smallest][1]:.2f}, "
        f"{_at([smallest])}."
    )


def band(found: Sequence[Found], names: Sequence[str], loads: Sequence[int]) -> str:
    """At which loads ours drafts by self-speculation, and at which of them it is ahead of all others, in words."""
    if not (others := _rivals(names)):
        return ""
    frugal = [calls for calls in loads if chosen(found, calls) == FRUGAL_MODE]
    ahead, always = (
        [calls for calls in loads if all(ratios(found, OURS, calls, base)[least] > 1.0 for base in others)]
        for least in (0, 1)
    )
    return (
        f"Ours is ahead of plain decoding and of every fixed EAGLE-3 tree, by the median over rounds: {_at(ahead)}; in "
        f"every round: {_at(always)}. Most of our steps draft by self-speculation: {_at(frugal)}. **Chosen and ahead: "
        f"{_at(in_band(found, names, loads))}.**"
    )


def in_band(found: Sequence[Found], names: Sequence[str], loads: Sequence[int]) -> list[int]:
    """At which of the loads ours drafts by self-speculation and is ahead of all others by the median."""
    others = _rivals(names)
    return [
        calls
        for calls in loads
        if others
        and chosen(found, calls) == FRUGAL_MODE
        and all(ratios(found, OURS, calls, base)[0] > 1.0 for base in others)
    ]


def _rivals(names: Sequence[str]) -> list[str]:
    """Whom ours has to be ahead of in the band; nobody where there is no fixed tree among the names, or not ours."""
    trees = [name for name in names if name.startswith(EAGLE)]
    return [PLAIN, *trees] if trees and OURS in names else []


def switches(found: Sequence[Found], loads: Sequence[int]) -> str:
    """What most of our steps draft with from load to load, in words."""
    way = ""
    told: list[str] = []
    for calls in sorted(loads):
        if (now := chosen(found, calls)) != way:
            told.append(f"{now} from {calls} on" if told else now)
            way = now
    ways = [chosen(found, calls) for calls in sorted(loads)]
    seen = any(now == FRUGAL_MODE != before for before, now in pairwise(ways))
    verdict = "The policy's switch to self-speculation is seen" if seen else "No switch to self-speculation is seen"
    return f"{verdict}: as replies join, ours drafts with {', '.join(told)}."


def _at(loads: Sequence[int]) -> str:
    return f"at {', '.join(str(calls) for calls in loads)} at a time" if loads else "nowhere"


def table(found: Sequence[Found], names: Sequence[str], loads: Sequence[int]) -> str:
    header = ["replies at a time", "plain tok/s", *(f"{n}, x" for n in names if n != PLAIN), "ours drafts with"]
    rows: list[list[object]] = []
    for calls in loads:
        each = ["{:.2f} [{:.2f}, {:.2f}]".format(*ratios(found, name, calls)) for name in names if name != PLAIN]
        modes = our_modes(found, calls)
        shares = ", ".join(f"{mode} {count / modes.total():.0%}" for mode, count in modes.most_common())
        rows.append([calls, f"{speed(found, PLAIN, calls):.0f}", *each, shares])
    return harness.table(header, rows)


def draw(results: Mapping[str, Sequence[Found]], names: Sequence[str], path: Path) -> None:
    figure, places = pyplot.subplots(1, len(results), figsize=(5.4 * len(results), 4), squeeze=False)
    for axes, (title, found) in zip(places[0], results.items(), strict=True):
        loads = sorted({one.calls for one in found})
        for name in [name for name in names if any(one.contender == name for one in found)]:
            ways = [ratios(found, name, calls)[0] for calls in loads]
            axes.plot(loads, ways, marker="o", label=name, linewidth=2.4 if name == OURS else 1.2)
        axes.set_xscale("log", base=2)
        axes.set_xticks(loads, [str(calls) for calls in loads])
        axes.set_title(title)
        axes.set_xlabel("replies at a time")
        axes.grid(alpha=0.3)
    places[0][0].set_ylabel("tokens a second, x plain decoding")
    places[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
