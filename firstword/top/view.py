"""The figures as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from firstword.top.figures import Figures, Latency, Store

QUIET = "grey58"
GOOD, BAD = "#7fd1ae", "#e06c75"
WITHIN_S = {"first token": 0.15, "first clause": 0.35, "per token": 0.1, "interruption": 0.05}
"""What the objectives hold the 95th percentile to, or near it: beyond it is shown in red."""


def render(figures: Figures, title: str) -> RenderableType:
    """All of it. title: whose figures, and of how long."""
    return Group(
        Text.assemble(("firstword top ", "bold"), (title, QUIET)),
        _now(figures),
        Text(),
        _latencies(figures),
        Text(),
        _drafting(figures),
    )


def _now(figures: Figures) -> RenderableType:
    lines = [
        _pairs({"calls": figures.calls, "turns now": figures.turns_open, "turns": figures.turns} | dict(figures.ends)),
        _pairs({"answered ahead": figures.ahead, "spoken over": figures.interruptions}),
        _pairs({"clauses behind silence": figures.underruns, "behind schedule": figures.late_clauses}),
    ]
    for what, counts in (
        ("failed", figures.errors),
        ("refused", figures.refused),
        ("came back in vain", figures.sent_back),
    ):
        if counts:
            lines.append(Text.assemble((f"{what} ", BAD), _pairs(counts)))
    came_back = dict(figures.resumed) | ({"sent on to the warm server": figures.sent_on} if figures.sent_on else {})
    if came_back:
        lines.append(Text.assemble(("came back ", QUIET), _pairs(came_back)))
    for model, engine in figures.engines.items():
        state = ("serving", GOOD) if engine.serving else ("away", BAD)
        facts = _pairs({"sessions": engine.sessions, "pages in use": engine.pages, "replaced": engine.restarts})
        lines.append(Text.assemble((f"{model} ", "bold"), state, "  ", facts))
    if figures.store is not None:
        lines.append(_store(figures.store))
    return Group(*lines)


def _store(store: Store) -> Text:
    state = ("behind", BAD) if store.behind else ("keeps up", GOOD)
    facts: dict[str, object] = {"records to write": store.unwritten, "not safe yet": store.kept}
    text = Text.assemble(("store ", "bold"), state, "  ", _pairs(facts), ("oldest ", QUIET), _time(store.lag_s))
    text.append("  append p95 ", QUIET).append_text(_time(store.append.percentiles[1]))
    if store.memory.whole:
        text.append("  memory ", QUIET).append(str(store.memory))
    wrong = {"failures": store.failures, "fenced": store.fenced, "leases lost": store.leases_lost}
    return text.append("  ").append_text(
        _pairs({name: count for name, count in wrong.items() if count} or {"failures": 0})
    )


def _latencies(figures: Figures) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=QUIET)
    table.add_column("")
    for name in ("p50", "p95", "p99", "count"):
        table.add_column(name, justify="right")
    for name, latency in figures.latencies.items():
        table.add_row(name, *_cells(name, latency))
    for mode, (latency, tokens) in sorted(figures.modes.items()):
        label = Text.assemble("  first token, ", (mode, "bold"), (f"  {tokens:.2f} tokens a forward", QUIET))
        table.add_row(label, *_cells("first token", latency))
    return table


def _cells(name: str, latency: Latency) -> list[Text]:
    p50, p95, p99 = latency.percentiles
    late = p95 is not None and p95 > WITHIN_S.get(name, float("inf"))
    return [_time(p50), _time(p95, BAD if late else ""), _time(p99), Text(str(latency.count), QUIET)]


def _time(seconds: float | None, style: str = "") -> Text:
    if seconds is None:
        return Text("-", QUIET)
    return Text(f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s", style)


def _drafting(figures: Figures) -> RenderableType:
    positions = {f"{at}": share for at, share in enumerate(figures.positions, 1)}
    return Group(
        Text.assemble(("prompt tokens  ", QUIET), _pairs(figures.prompt)),
        Text.assemble(("accepted, by drafter  ", QUIET), _pairs(figures.drafters)),
        Text.assemble(("accepted, by position  ", QUIET), _pairs(positions)),
    )


def _pairs(values: Mapping[str, object]) -> Text:
    text = Text()
    for name, value in values.items():
        text.append(f"{name} ", QUIET).append(f"{value}  ")
    return text if values else Text("-", QUIET)
