"""The tables and the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

from bench import harness
from bench.drafters.counts import CHAIN, IN_DOMAIN, KINDS, SPLITS, TEMPERATURES, TREE, Counted, Setting
from bench.drafters.methods import Method
from bench.drafters.times import LONG, PLAIN, Times

matplotlib.use("Agg")
from matplotlib import pyplot

Counts = Mapping[tuple[str, Setting], Counted]


def by_setting(counted: Sequence[Counted]) -> Counts:
    return {(one.method, one.setting): one for one in counted}


def tokens(counts: Counts, method: str, setting: Setting, kind: str = "all") -> str:
    found = counts.get((method, setting))
    return f"{found.per_forward[kind]:.2f}" if found and kind in found.per_forward else "-"


def main_table(methods: Sequence[Method], counts: Counts, times: Mapping[str, Times]) -> str:
    """One row a method; acceptance by position of the chain, greedy in domain; times greedy in domain as served."""
    header = ["method", *(f"pos {i}" for i in range(1, 7)), f"chain of {CHAIN - 1}"]
    header += [f"{TREE} nodes, {split}" for split in SPLITS] + ["parameters", "MB", "trained min"]
    for size in times:
        header += [f"{size}: draft ms", "verify ms", f"draft ms at {LONG:,}", "verify ms", "tok/s", "x plain"]
    rows = []
    for method in methods:
        chain = counts.get((method.name, Setting(IN_DOMAIN, "chain")))
        row = [method.name, *([f"{share:.2f}" for share in chain.positions] if chain else ["-"] * 6)]
        row.append(tokens(counts, method.name, Setting(IN_DOMAIN, "chain")))
        row += [tokens(counts, method.name, Setting(split)) for split in SPLITS]
        minutes = method.training_minutes
        held = method.bytes + (chain.table_bytes if chain else 0)
        row += [f"{method.parameters / 1e6:.2f} M", f"{held / 1e6:.1f}"]
        row.append("-" if minutes is None else f"{minutes:.0f}")
        for measured in times.values():
            row += _speed(measured, method.name)
        rows.append(row)
    return harness.table(header, [_plain_row(len(header), times), *rows])


def _plain_row(width: int, times: Mapping[str, Times]) -> list[str]:
    speeds = [cell for measured in times.values() for cell in _speed(measured, PLAIN)]
    return [PLAIN, *["-"] * (width - 1 - len(speeds)), *speeds]


def _speed(measured: Times, mode: str) -> list[str]:
    if mode not in measured.runs:
        return ["-"] * 6
    cost = measured.costs.get(mode)
    known = (cost.draft, cost.verify, cost.long_draft, cost.long_verify) if cost else [None] * 4
    costs = ["-" if ms is None else f"{ms:.2f}" for ms in known]
    return [*costs, f"{measured.tokens_per_second(mode):.1f}", ratio(measured, mode, PLAIN)]


def ratio(measured: Times, mode: str, base: str) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*measured.over(mode, base))


def speed_table(measured: Times) -> str:
    """Every mode, peers among them."""
    rows = [
        [mode, measured.tokens_per_second(mode), ratio(measured, mode, PLAIN), measured.same_text(mode)]
        for mode in measured.runs
    ]
    return harness.table(["mode", "tokens/s", "x plain", "same text as plain"], rows)


def position_table(methods: Sequence[Method], counts: Counts) -> str:
    """Acceptance by position of the chain, greedy, on every kind of text."""
    columns = [(split, at) for split in SPLITS for at in range(6)]
    rows = []
    for method in methods:
        chains = {split: counts.get((method.name, Setting(split, "chain"))) for split in SPLITS}
        cells = [f"{chain.positions[at]:.2f}" if (chain := chains[split]) else "-" for split, at in columns]
        rows.append([method.name, *cells])
    return harness.table(["method", *(f"{split}, {at + 1}" for split, at in columns)], rows)


def temperature_table(methods: Sequence[Method], counts: Counts) -> str:
    """Tokens per forward of a tree, by temperature, with and without the turn's noise shared."""
    columns = [
        (split, temperature, coupled)
        for split in SPLITS
        for temperature in TEMPERATURES
        for coupled in ((False, True) if temperature else (False,))
    ]
    header = ["method"]
    header += [f"{split}, T {temperature:g}{', coupled' * coupled}" for split, temperature, coupled in columns]
    rows = [
        [method.name, *(tokens(counts, method.name, Setting(s, temperature=t, coupled=c)) for s, t, c in columns)]
        for method in methods
    ]
    return harness.table(header, rows)


def kind_table(methods: Sequence[Method], counts: Counts) -> str:
    """Tokens per forward of a tree, greedy: spoken text and tool calls apart, and replies early and late in a call."""
    header = ["method", *(f"{split}, {kind}" for split in SPLITS for kind in KINDS)]
    rows = [
        [method.name, *(tokens(counts, method.name, Setting(split), kind) for split in SPLITS for kind in KINDS)]
        for method in methods
    ]
    return harness.table(header, rows)


def plot(methods: Sequence[Method], counts: Counts, times: Mapping[str, Times], path: Path) -> None:
    """Left: tokens per forward by kind of text. Right: speed over plain decoding by size of model."""
    figure, axes = pyplot.subplots(1, 2, figsize=(13, 5), sharey=True)
    names = [method.name for method in methods]
    places = range(len(names))
    for number, split in enumerate(SPLITS):
        found = [counts.get((name, Setting(split))) for name in names]
        values = [one.per_forward["all"] if one else 0.0 for one in found]
        axes[0].barh([y + 0.27 * (number - 1) for y in places], values, 0.25, label=split)
    axes[0].set(title=f"tokens per target forward (greedy, {TREE} nodes)", yticks=list(places), yticklabels=names)
    for number, (size, measured) in enumerate(times.items()):
        values = [measured.over(name, PLAIN)[0] if name in measured.runs else 0.0 for name in names]
        axes[1].barh([y + 0.3 * (number - 0.5) for y in places], values, 0.28, label=size)
    axes[1].axvline(1.0, color="black", linewidth=0.8)
    axes[1].set(title="times as fast as plain decoding (greedy, in domain)")
    for axis in axes:
        axis.legend()
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path)
