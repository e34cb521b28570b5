"""The tables and the picture of sweeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib

from bench import harness
from bench.load import claims
from bench.load.accounts import Run
from bench.load.contenders import PLAIN, TREES
from bench.load.figures import PRESENT, SLOWER, UNDERRUN_SHARE, Figures, Percentiles, Sweep, differing, faster, meets

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

WAYS_IN = {"records": "Records to an engine process", "grpc": "gRPC"}
LOADED = [
    "in progress",
    "turns",
    "unanswered",
    "first token ms p50, p95, p99",
    "first clause ms p50, p95, p99",
    "tool call ms p50, p95",
    "after tools ms p50, p95",
    "underruns",
    "of speech",
    "tokens/s",
    "refused",
    "errors",
    "answered ahead",
    "steps by mode",
    "load generator's CPU",
    "CPU of",
    "its lateness p99 ms",
    "in SLO",
]


def write(name: str, runs: Sequence[Run], note: str, *, before: Sequence[str] = (), show: bool) -> None:
    """``bench/results/NAME.md``, its picture and its figures. note: what was measured, in a sentence or two. before:
    what stands between it and the sweeps. show: print it too.
    """
    sweeps = sweeps_of(runs)
    harness.RESULTS.mkdir(exist_ok=True)
    parts = [f"{note} {revisions(runs)}", *before]
    if sweeps:
        plot(sweeps, harness.RESULTS / f"{name}.svg")
        parts.append(f"![]({name}.svg)")
    for title, sweep in sweeps.items():
        parts += [f"## {title}", knees(sweep), table(sweep), *compared(sweep)]
    found = {
        title: {contender: {load: vars_of(one) for load, one in loads.items()} for contender, loads in sweep.by.items()}
        for title, sweep in sweeps.items()
    }
    data = {"machines": sorted({run.machine for run in runs}), "figures": found}
    harness.save(name, "Many callers at once", "\n\n".join(parts), data, show=show)


def revisions(runs: Iterable[Run]) -> str:
    """Of what: a sweep that was resumed may be of several."""
    return f"Measured at {' and '.join(sorted({run.machine.rpartition('revision ')[2] for run in runs}))}."


def sweeps_of(runs: Sequence[Run]) -> dict[str, Sweep]:
    """By title: of each driver the calls by number, and those that arrive. What has only calls alone is none."""
    found = {}
    for driver in WAYS_IN:
        of = [run for run in runs if run.driver == driver]
        alone = [run for run in of if run.calls == 0]
        for text, those in (
            ("", [run for run in of if run.calls]),
            (", calls that arrive at random", [run for run in of if run.rate is not None]),
        ):
            if those:
                names = {run.contender for run in those}
                found[WAYS_IN[driver] + text] = Sweep([*(run for run in alone if run.contender in names), *those])
    return found


def vars_of(found: Figures) -> dict[str, object]:
    """As JSON has it."""
    return {key: vars(value) if isinstance(value, Percentiles) else value for key, value in vars(found).items()}


def knees(sweep: Sweep) -> str:
    """What each contender carries, against the fixed tree that carries most, and whether all say the same."""
    base = [run for run in sweep.runs if run.contender == sweep.contenders[0]]
    of_trees = [carried for name in TREES.values() if (carried := sweep.knee(name))]
    rows = []
    for name in sweep.contenders:
        alone, carried = sweep.by[name].get(0), sweep.knee(name)
        differ, compared = differing([run for run in sweep.runs if run.contender == name], base)
        rows.append(
            [
                name,
                "-" if alone is None else f"{alone.first_clause.p50:.0f}",
                "none" if carried is None else f"{carried:g}",
                f"{carried / max(of_trees):.2f}" if carried and of_trees else "-",
                f"{differ} of {compared}",
            ]
        )
    most = "most calls a minute in SLO" if sweep.arrivals else "most calls in SLO"
    header = ["contender", "first clause alone, p50 ms", most, "x the best FCFS EAGLE-3"]
    header.append(f"other text than {sweep.contenders[0]}")
    slowest = SLOWER * sweep.solo_ms
    limit = (
        f"SLO: first clause p95 at most {slowest:.0f} ms, {SLOWER:g} times the smallest median alone; underruns below "
        f"{UNDERRUN_SHARE:.1%} of speech; nothing refused, failed or unanswered; {PRESENT:.0%} of callers in a call."
    )
    claim = claims.carried(sweep)
    return "\n\n".join([limit, *([claim] if claim else []), harness.table(header, rows)])


def table(sweep: Sweep) -> str:
    rows = []
    for name in sweep.contenders:
        for load, found in sweep.by[name].items():
            rows.append(row(name, load, found, sweep.solo_ms))
    return harness.table(["contender", "calls a minute" if sweep.arrivals else "calls", *LOADED], rows)


def compared(sweep: Sweep) -> list[str]:
    """Every contender beside plain decoding, turn by turn; nothing where that was not run."""
    if PLAIN not in sweep.by or len(sweep.contenders) < 2:
        return []
    rows: list[list[object]] = []
    for name in sweep.contenders:
        for load in sweep.by[name] if name != PLAIN else ():
            ratios = faster(sweep.of(name, load), sweep.of(PLAIN, load))
            if ratios:
                rows.append(
                    [name, _named(load), len(ratios), "{:.2f} [{:.2f}, {:.2f}]".format(*harness.interval(ratios))]
                )
    header = ["contender", "calls", "turns", f"first clause, times as soon as {PLAIN}"]
    text = "Turns that were answered at their final, by both, paired; medians with 95 % intervals."
    return [f"{text}\n\n{harness.table(header, rows)}"]


def row(name: str, load: float, found: Figures, solo_ms: float) -> list[object]:
    modes = ", ".join(f"{mode} {share:.0%}" for mode, share in found.modes.items())
    spoken: list[object] = [found.underruns, f"{found.underrun_share:.2%}"]
    return [
        name,
        _named(load),
        f"{found.mean_calls:.1f}",
        found.turns,
        found.unanswered,
        _all(found.first_token),
        _all(found.first_clause),
        found.tool.two,
        found.after_tools.two,
        *(spoken if load else ["-", "-"]),
        f"{found.tokens_per_second:.0f}",
        found.refused,
        found.errors,
        f"{found.ahead_share:.0%}",
        modes,
        f"{found.cpu_share:.0%}",
        ", ".join(f"{name} {share:.0%}" for name, share in found.others_cpu.items()) or "-",
        f"{found.late_p99_ms:.1f}",
        "-" if not load else "yes" if meets(found, solo_ms) else "no",
    ]


def _named(load: float) -> str:
    return f"{load:g}" if load else "alone"


def _all(of: Percentiles) -> str:
    return f"{of.two}, {of.p99:.0f}" if of.count else "-"


def plot(sweeps: Mapping[str, Sweep], path: Path) -> None:
    """First clause and underruns against calls, with each contender's knee."""
    figure, axes = pyplot.subplots(2, len(sweeps), figsize=(6.5 * len(sweeps), 8), squeeze=False, sharex="col")
    for column, (title, sweep) in enumerate(sweeps.items()):
        above, below = axes[0][column], axes[1][column]
        for name in sweep.contenders:
            _plot_contender(above, below, sweep, name)
        above.axhline(SLOWER * sweep.solo_ms, color="grey", linestyle=":", label="SLO")
        below.axhline(UNDERRUN_SHARE, color="grey", linestyle=":")
        above.set(title=title, ylabel="first clause p95, ms", yscale="log")
        below.set(xlabel="calls in progress", ylabel="underruns, share of speech")
        below.set_yscale("symlog", linthresh=1e-4)
        above.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _plot_contender(above: Axes, below: Axes, sweep: Sweep, name: str) -> None:
    loads, carried = sweep.loads(name), sweep.knee(name)
    calls = {load: found.mean_calls if sweep.arrivals else load for load, found in loads.items()}
    clause = [found.first_clause.p95 for found in loads.values()]
    silent = [found.underrun_share for found in loads.values()]
    (line,) = above.plot(list(calls.values()), clause, marker="o", markersize=3, label=name)
    below.plot(list(calls.values()), silent, marker="o", markersize=3, color=line.get_color())
    if carried is not None:
        for axis, value in ((above, loads[carried].first_clause.p95), (below, loads[carried].underrun_share)):
            axis.plot([calls[carried]], [value], marker="*", markersize=14, color=line.get_color())
