"""The table and the picture."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib

from bench import harness
from bench.turns.modes import ANSWER, FINAL_ONLY, PREFILL, Mode
from bench.turns.replay import Replay
from evals.calls import Kind

matplotlib.use("Agg")
from matplotlib import pyplot

Key = tuple[str, int]
LENGTHS = {"below 15 tokens": (0, 14), "15 to 30": (15, 30), "31 to 59": (31, 59), "60 and more": (60, 10_000)}
USUAL = "15 to 30"


def by_length(replay: Replay, others: Iterable[Replay], tokens: Callable[[str], int]) -> dict[str, list[Key]]:
    """The turns of each length, in tokens of what the caller said, that there are in the other replays too."""
    others = list(others)
    found: dict[str, list[Key]] = {name: [] for name in LENGTHS}
    for key, answer in replay.answers.items():
        if not all(key in other.answers for other in others):
            continue  # a call that went otherwise, and was over before
        count = tokens(answer.turn.text)
        found[next(name for name, (low, high) in LENGTHS.items() if low <= count <= high)].append(key)
    return {name: keys for name, keys in found.items() if keys}


def percentiles(values: Sequence[float]) -> tuple[float, float]:
    """p50 and p95; of one value that value."""
    if len(values) < 2:
        return values[0], values[0]
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return cuts[9], cuts[18]


def over(base: Replay, other: Replay, keys: Sequence[Key]) -> str:
    """Median of the first token's time over that of the same turn in another mode, with its interval."""
    ratios = [other.answers[key].token_ms / base.answers[key].token_ms for key in keys]
    return "{:.2f} [{:.2f}, {:.2f}]".format(*harness.interval(ratios))


def main_table(replays: dict[Mode, Replay], lengths: dict[str, list[Key]]) -> str:
    header = ["caller's turn", "turns", "mode", "first token p50 ms", "p95", "text or tool call p50 ms", "p95"]
    header += ["first clause p50 ms", "p95"]
    header += [f"first token over {FINAL_ONLY.name}", "same text"]
    base = replays[FINAL_ONLY]
    rows = []
    for name, keys in lengths.items():
        for mode, replay in replays.items():
            answers = [replay.answers[key] for key in keys]
            kinds = ("token_ms", "first_ms", "clause_ms")
            times = [f"{ms:.1f}" for kind in kinds for ms in percentiles([getattr(a, kind) for a in answers])]
            same = sum(replay.answers[key].said == base.answers[key].said for key in keys)
            rows.append([name, len(keys), mode.name, *times, over(base, replay, keys), f"{same}/{len(keys)}"])
    return harness.table(header, rows)


def ahead_table(replay: Replay, socket: Sequence[float]) -> str:
    """What became of the replies made ahead. Tokens: of the replies that were sent, and of those that were dropped."""
    answers = list(replay.answers.values())
    released = [answer for answer in answers if answer.reported.answered_ahead]
    gaps = [answer.turn.eager_ms for answer in answers if answer.turn.eager_ms is not None]
    sent = sum(answer.reported.usage.completion_tokens for answer in answers)
    wasted = sum(answer.reported.usage.wasted_ahead_tokens for answer in answers)
    rows: list[list[object]] = [
        ["turns", len(answers)],
        ["turns whose last word from the recogniser before the final was an eager end", len(gaps)],
        ["from that to the final, as spoken, p50 and p95 ms", "{:.0f}, {:.0f}".format(*percentiles(gaps))],
        ["replies begun ahead", replay.states["started"]],
        ["of these released by the final", f"{len(released)} ({len(released) / max(1, replay.states['started']):.0%})"],
        *([f"dropped: {name}", replay.states[name]] for name in ("resumed", "mismatched", "expired", "abandoned")),
        ["turns answered by a reply made ahead", f"{len(released) / len(answers):.0%}"],
        ["tokens dropped for each token sent", f"{wasted / max(1, sent):.2f} ({wasted:,} of {sent:,})"],
    ]
    if released:
        rows.append(["first token of a released reply, on the service's clock", _two([a.token_ms for a in released])])
        ready = [answer.first_ms for answer in released if answer.was_ready]
        if ready:
            what = f"first text of the {len(ready)} that held some when the final came, at the client, p50 and p95 ms"
            rows.append([what, _two(ready)])
    rows.append(["an event of a call and its answer that ask nothing of an engine, p50 and p95 ms", _two(socket)])
    return harness.table(["", "answer ahead"], rows)


def partials_table(replays: dict[Mode, Replay]) -> str:
    """What hearing ahead cost: tokens that were in the cache when the final came, and those computed in vain."""
    rows = []
    for mode, replay in replays.items():
        if Kind.PARTIAL not in mode.sends:
            continue
        usages = [answer.reported.usage for answer in replay.answers.values()]
        ahead, rewound = (
            sum(getattr(u, name) for u in usages) for name in ("prefilled_ahead_tokens", "rewound_tokens")
        )
        rows.append([mode.name, ahead, rewound, f"{rewound / max(1, ahead):.2f}"])
    return harness.table(["mode", "tokens prefilled ahead and kept", "rewound", "rewound for each kept"], rows)


def _two(values: Sequence[float]) -> str:
    return "{:.1f}, {:.1f}".format(*percentiles(values))


def plot(replays: dict[Mode, Replay], lengths: dict[str, list[Key]], path: Path) -> None:
    """Distribution of the time to the first token, usual turns and long ones."""
    shown = [name for name in (USUAL, list(lengths)[-1]) if name in lengths]
    figure, axes = pyplot.subplots(1, len(shown), figsize=(6.5 * len(shown), 4), squeeze=False)
    for axis, name in zip(axes[0], shown, strict=True):
        for mode in (FINAL_ONLY, PREFILL, ANSWER):
            firsts = sorted(replays[mode].answers[key].token_ms for key in lengths[name])
            axis.plot(firsts, [(at + 1) / len(firsts) for at in range(len(firsts))], label=mode.name, drawstyle="steps")
        axis.set(title=f"caller's turns of {name}", xlabel="ms from the final to the first token", xscale="log")
        axis.set_ylabel("share of turns")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path)
