"""The table and the picture of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

from bench import harness
from bench.load.accounts import Run
from bench.load.figures import SLOWER, UNDERRUN_SHARE, Figures, Percentiles, differing, faster, figures, knee, meets

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

SHARES = {"records": "records to an engine process", "grpc": "gRPC"}
LOADED = [
    "contender",
    "calls",
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
    "its lateness p99 ms",
    "in SLO",
]


class Sweep:
    """The runs of one driver. by: contender, then load; 0 for calls alone."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self.contenders = list(dict.fromkeys(run.contender for run in runs))
        grouped: dict[str, dict[int, list[Run]]] = {name: {} for name in self.contenders}
        for run in runs:
            grouped[run.contender].setdefault(_load(run), []).append(run)
        self.by: dict[str, dict[int, Figures]] = {
            name: {load: figures(of) for load, of in sorted(loads.items())} for name, loads in grouped.items()
        }

    @property
    def solo_ms(self) -> float:
        """The bar for all: the smallest of the contenders' medians alone."""
        medians = [loads[0].first_clause.p50 for loads in self.by.values() if 0 in loads]
        return min(medians, default=float("nan"))

    def of(self, contender: str, load: int) -> list[Run]:
        return [run for run in self.runs if run.contender == contender and _load(run) == load]

    def loads(self, contender: str) -> Mapping[int, Figures]:
        return {load: found for load, found in self.by[contender].items() if load}

    def knee(self, contender: str) -> int | None:
        return knee(self.loads(contender), self.solo_ms)


def _load(run: Run) -> int:
    """Calls at a time; of arrivals at random, as many as there were on average."""
    return run.calls if run.calls is not None else max(1, round(run.mean_calls))


def write(name: str, runs: Sequence[Run], note: str, *, show: bool) -> None:
    """``bench/results/NAME.md``, its picture and its figures. note: what was measured, in a sentence or two. show:
    print it too.
    """
    drivers = list(dict.fromkeys(run.driver for run in runs))
    sweeps = {driver: Sweep([run for run in runs if run.driver == driver]) for driver in drivers}
    harness.RESULTS.mkdir(exist_ok=True)
    plot(sweeps, harness.RESULTS / f"{name}.svg")
    parts = [note, f"![]({name}.svg)"]
    for driver, sweep in sweeps.items():
        parts += [f"## {SHARES[driver]}", knees(sweep), table(sweep), *compared(sweep)]
    found = {
        driver: {
            contender: {load: vars_of(one) for load, one in loads.items()} for contender, loads in sweep.by.items()
        }
        for driver, sweep in sweeps.items()
    }
    data = {"machines": sorted({run.machine for run in runs}), "figures": found}
    harness.save(name, "Many callers at once", "\n\n".join(parts), data, show=show)


def vars_of(found: Figures) -> dict[str, object]:
    """As JSON has it."""
    return {key: vars(value) if isinstance(value, Percentiles) else value for key, value in vars(found).items()}


def knees(sweep: Sweep) -> str:
    """What each contender carries, and whether all say the same."""
    base = [run for run in sweep.runs if run.contender == sweep.contenders[0]]
    rows = []
    for name in sweep.contenders:
        alone, carried = sweep.by[name].get(0), sweep.knee(name)
        differ, compared = differing([run for run in sweep.runs if run.contender == name], base)
        rows.append(
            [
                name,
                "-" if alone is None else f"{alone.first_clause.p50:.0f}",
                "none" if carried is None else carried,
                f"{differ} of {compared}",
            ]
        )
    header = ["contender", "first clause alone, p50 ms", "most calls in SLO", f"other text than {sweep.contenders[0]}"]
    slowest = SLOWER * sweep.solo_ms
    limit = (
        f"SLO: first clause p95 at most {slowest:.0f} ms, {SLOWER:g} times the smallest median alone; underruns below "
        f"{UNDERRUN_SHARE:.1%} of speech; nothing refused, failed or unanswered."
    )
    return f"{limit}\n\n{harness.table(header, rows)}"


def table(sweep: Sweep) -> str:
    rows = []
    for name in sweep.contenders:
        for load, found in sweep.by[name].items():
            rows.append(row(name, load, found, sweep.solo_ms))
    return harness.table(LOADED, rows)


PLAIN = "plain"


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
                    [name, load or "alone", len(ratios), "{:.2f} [{:.2f}, {:.2f}]".format(*harness.interval(ratios))]
                )
    header = ["contender", "calls", "turns", f"first clause, times as soon as {PLAIN}"]
    text = "Turns that were answered at their final, by both, paired; medians with 95 % intervals."
    return [f"{text}\n\n{harness.table(header, rows)}"]


def row(name: str, load: int, found: Figures, solo_ms: float) -> list[object]:
    modes = ", ".join(f"{mode} {share:.0%}" for mode, share in found.modes.items())
    spoken: list[object] = [found.underruns, f"{found.underrun_share:.2%}"]
    return [
        name,
        load or "alone",
        f"{found.mean_calls:.1f}",
        found.turns,
        found.unanswered,
        _all(found.first_token),
        _all(found.first_clause),
        _two(found.tool),
        _two(found.after_tools),
        *(spoken if load else ["-", "-"]),
        f"{found.tokens_per_second:.0f}",
        found.refused,
        found.errors,
        f"{found.ahead_share:.0%}",
        modes,
        f"{found.cpu_share:.0%}",
        f"{found.late_p99_ms:.1f}",
        "-" if not load else "yes" if meets(found, solo_ms) else "no",
    ]


def _all(of: Percentiles) -> str:
    return f"{of.p50:.0f}, {of.p95:.0f}, {of.p99:.0f}" if of.count else "-"


def _two(of: Percentiles) -> str:
    return f"{of.p50:.0f}, {of.p95:.0f}" if of.count else "-"


def plot(sweeps: Mapping[str, Sweep], path: Path) -> None:
    """First clause and underruns against calls, with each contender's knee."""
    figure, axes = pyplot.subplots(2, len(sweeps), figsize=(6.5 * len(sweeps), 8), squeeze=False, sharex="col")
    for column, (driver, sweep) in enumerate(sweeps.items()):
        above, below = axes[0][column], axes[1][column]
        for name in sweep.contenders:
            _plot_contender(above, below, sweep, name)
        above.axhline(SLOWER * sweep.solo_ms, color="grey", linestyle=":", label="SLO")
        below.axhline(UNDERRUN_SHARE, color="grey", linestyle=":")
        above.set(title=f"Over {SHARES[driver]}", ylabel="first clause p95, ms", yscale="log")
        below.set(xlabel="calls in progress", ylabel="underruns, share of speech")
        below.set_yscale("symlog", linthresh=1e-4)
        above.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _plot_contender(above: Axes, below: Axes, sweep: Sweep, name: str) -> None:
    loads, carried = sweep.loads(name), sweep.knee(name)
    clause = [found.first_clause.p95 for found in loads.values()]
    silent = [found.underrun_share for found in loads.values()]
    (line,) = above.plot(list(loads), clause, marker="o", markersize=3, label=name)
    below.plot(list(loads), silent, marker="o", markersize=3, color=line.get_color())
    if carried is not None:
        for axis, value in ((above, loads[carried].first_clause.p95), (below, loads[carried].underrun_share)):
            axis.plot([carried], [value], marker="*", markersize=14, color=line.get_color())
