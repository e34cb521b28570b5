"""The figures of runs: percentiles, underruns, shares, and the knee."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.load.accounts import Run, TurnFigures
from bench.load.contenders import CONTENDERS

SLOWER = 3.0
"""SLO: the first clause's p95 over the median of a call alone."""
UNDERRUN_SHARE = 0.001
"""SLO: silence within replies over speech."""
PRESENT = 0.8
"""SLO: calls in progress over callers. The rest have hung up and not called again yet: a second of each call."""


@dataclass(frozen=True)
class Percentiles:
    """Milliseconds. count: of what."""

    p50: float
    p95: float
    p99: float
    count: int

    @staticmethod
    def of(seconds: Sequence[float]) -> Percentiles:
        """Interpolated between the nearest ranks; of no value NaN."""
        if len(seconds) < 2:
            only = 1e3 * seconds[0] if seconds else float("nan")
            return Percentiles(only, only, only, len(seconds))
        cuts = statistics.quantiles(seconds, n=100, method="inclusive")
        return Percentiles(1e3 * cuts[49], 1e3 * cuts[94], 1e3 * cuts[98], len(seconds))

    @staticmethod
    def of_milliseconds(values: Sequence[float]) -> Percentiles:
        return Percentiles.of([value / 1e3 for value in values])

    @property
    def two(self) -> str:
        """p50 and p95, as tables have them."""
        return f"{self.p50:.0f}, {self.p95:.0f}" if self.count else "-"

    @property
    def counted(self) -> str:
        """The two, with of how many they are."""
        return f"{self.two} ({self.count})" if self.count else "-"


@dataclass(frozen=True)
class Figures:
    """Of one contender under one load, all its runs together.

    first_clause, first_token: from the due final; first_clause of the turns that do not begin with a tool call, tool:
    until the call was whole, of those that do; after_tools: from when the tool's result was due to the next clause.
    Turns that were not answered are among them, with the time that they were waited for. underruns: gaps;
    underrun_share: of their seconds in those of speech. modes: share of steps by who drafted them. others_cpu: of the
    service's processes, of one core. late_p99_ms: the load generator's own. callers: at a time, or None where they came
    at random.
    """

    callers: int | None
    mean_calls: float
    turns: int
    unanswered: int
    first_token: Percentiles
    first_clause: Percentiles
    tool: Percentiles
    after_tools: Percentiles
    underruns: int
    underrun_share: float
    tokens_per_second: float
    refused: int
    errors: int
    ahead_share: float
    modes: Mapping[str, float]
    cpu_share: float
    others_cpu: Mapping[str, float]
    late_p99_ms: float


def figures(runs: Sequence[Run]) -> Figures:
    turns = [turn for run in runs for turn in run.turns]
    steps: Counter[str] = Counter()
    for turn in turns:
        steps.update(turn.modes)
    silent = sum(gap[1] for turn in turns for gap in turn.gaps)
    speech = sum(turn.speech_s for turn in turns)
    seconds = sum(run.seconds for run in runs)
    return Figures(
        callers=runs[0].calls,
        mean_calls=statistics.fmean(run.mean_calls for run in runs),
        turns=len(turns),
        unanswered=sum(turn.waited_s is not None for turn in turns),
        first_token=Percentiles.of(_present(_or_waited(turn.first_token_s, turn) for turn in turns)),
        first_clause=Percentiles.of(clauses(turns)),
        tool=Percentiles.of(_present(turn.first_tool_s for turn in turns if turn.begins_with_tool)),
        after_tools=Percentiles.of([late for turn in turns for late in turn.after_tools_s]),
        underruns=sum(len(turn.gaps) for turn in turns),
        underrun_share=silent / speech if speech else 0.0,
        tokens_per_second=sum(turn.tokens for turn in turns) / seconds,
        refused=sum(run.refused for run in runs),
        errors=sum(len(run.errors) for run in runs) + sum(bool(turn.error) for turn in turns),
        ahead_share=sum(turn.answered_ahead for turn in turns) / len(turns) if turns else 0.0,
        modes={mode: count / steps.total() for mode, count in steps.most_common()},
        cpu_share=statistics.fmean(run.cpu_share for run in runs),
        others_cpu={
            name: statistics.fmean(run.others_cpu.get(name, 0.0) for run in runs)
            for name in dict.fromkeys(name for run in runs for name in run.others_cpu)
        },
        late_p99_ms=Percentiles.of([turn.sent_late_s for turn in turns]).p99,
    )


def clauses(turns: Iterable[TurnFigures]) -> list[float]:
    """Seconds to the first clause of the turns that do not begin with a tool call."""
    return _present(_or_waited(turn.first_clause_s, turn) for turn in turns if not turn.begins_with_tool)


def _or_waited(seconds: float | None, turn: TurnFigures) -> float | None:
    return turn.waited_s if seconds is None else seconds


def _present(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def meets(found: Figures, solo_ms: float) -> bool:
    """Whether a load is within the SLO. solo_ms: median first clause of a call alone."""
    if found.callers and found.mean_calls < PRESENT * found.callers:
        return False
    late = found.unanswered + found.errors + found.refused
    return not late and found.first_clause.p95 <= SLOWER * solo_ms and found.underrun_share < UNDERRUN_SHARE


def knee(loads: Mapping[float, Figures], solo_ms: float) -> float | None:
    """The largest load up to which all that were tried are within the SLO; None where not even the smallest is."""
    found = None
    for calls in sorted(loads):
        if not meets(loads[calls], solo_ms):
            break
        found = calls
    return found


class Sweep:
    """The runs of one driver, of calls by number or of calls that arrive, beside those of calls alone.

    by: contender, then load, as ``load_of`` has it. arrivals: whether loads are calls a minute.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self.arrivals = any(run.rate is not None for run in runs)
        self.contenders = sorted({run.contender for run in runs}, key=_place)
        grouped: dict[str, dict[float, list[Run]]] = {name: {} for name in self.contenders}
        for run in runs:
            grouped[run.contender].setdefault(load_of(run), []).append(run)
        self.by: dict[str, dict[float, Figures]] = {
            name: {load: figures(of) for load, of in sorted(loads.items())} for name, loads in grouped.items()
        }

    @property
    def solo_ms(self) -> float:
        """The bar for all: the smallest of the contenders' medians alone."""
        medians = [loads[0].first_clause.p50 for loads in self.by.values() if 0 in loads]
        return min(medians, default=float("nan"))

    def of(self, contender: str, load: float) -> list[Run]:
        return [run for run in self.runs if run.contender == contender and load_of(run) == load]

    def loads(self, contender: str) -> Mapping[float, Figures]:
        """All but alone."""
        return {load: found for load, found in self.by.get(contender, {}).items() if load}

    def knee(self, contender: str) -> float | None:
        return knee(self.loads(contender), self.solo_ms)


def _place(contender: str) -> tuple[int, str]:
    """In a table: as contenders are listed, whichever order they ran in."""
    listed = list(CONTENDERS)
    return listed.index(contender) if contender in listed else len(listed), contender


def load_of(run: Run) -> float:
    """Calls at a time, 0 for calls alone; of calls that arrive, how many a minute."""
    if run.calls is not None:
        return run.calls
    assert run.rate is not None
    return round(60 * run.rate, 2)


def differing(runs: Sequence[Run], base: Sequence[Run]) -> tuple[int, int]:
    """(turns whose text differs from the same turn's in ``base``, turns compared)."""
    known = {key: turn for run in base for key, turn in _named(run)}
    same = [
        known[key].said == turn.said
        for run in runs
        for key, turn in _named(run)
        if key in known and all(one.over and one.comparable for one in (turn, known[key]))
    ]
    return same.count(False), len(same)


def faster(runs: Sequence[Run], base: Sequence[Run]) -> list[float]:
    """How many times sooner than in ``base`` the first clause came, of each turn that had to be answered in both and
    had not been answered ahead in either.
    """
    known = {key: turn for run in base for key, turn in _named(run)}
    ratios = []
    for key, mine in (named for run in runs for named in _named(run)):
        pair = mine, known.get(key)
        times = [one.first_clause_s for one in pair if one and not (one.answered_ahead or one.begins_with_tool)]
        if len(times) == 2 and times[0] and times[1]:
            ratios.append(times[1] / times[0])
    return ratios


def _named(run: Run) -> list[tuple[tuple[object, ...], TurnFigures]]:
    """The turns by what makes them the same turn in another contender's run."""
    return [((run.calls, run.rate, run.repeat, turn.call, turn.seed, turn.number), turn) for turn in run.turns]
