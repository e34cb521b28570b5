"""What stands on the page of a plan above its sweeps: the choice of the baseline, and calls alone."""

from __future__ import annotations

from collections.abc import Sequence

from bench import harness
from bench.load import claims, page
from bench.load.accounts import Run
from bench.load.contenders import OURS, PLAIN
from bench.load.figures import Sweep, faster, figures
from bench.load.plan import Plan


def write(name: str, plan: Plan, note: str, *, show: bool) -> None:
    """The page as far as the plan has come. show: print it too."""
    before = []
    if plan.tried_trees.runs:
        before.append(baseline(plan.tried_trees.runs, plan.best_tree, plan.tried_trees.setting.seconds))
    if both := [run for run in plan.kept.runs if run.calls == 0 and run.contender in (OURS, PLAIN)]:
        before.append(alone(both))
    page.write(name, plan.kept.runs, note, before=before, show=show)


def baseline(runs: Sequence[Run], best: str, seconds: float) -> str:
    """What each fixed tree carries, and which one was taken."""
    text = f"To choose by, in windows of {seconds:g} s; what counts is below. Taken: **{best}**."
    return f"## The best fixed tree\n\n{text} {page.revisions(runs)}\n\n{page.knees(Sweep(runs))}"


def alone(runs: Sequence[Run]) -> str:
    """Ours beside plain decoding with one call at a time, round by round. Rounds that only one made are left out."""
    rows: list[list[object]] = []
    sooner, more = [], []
    places = {(run.driver, run.repeat) for run in runs}
    for driver, number in sorted(places, key=lambda place: (list(page.WAYS_IN).index(place[0]), place[1])):
        of = {run.contender: run for run in runs if (run.driver, run.repeat) == (driver, number)}
        if len(of) < 2:
            continue
        mine, plain = figures([of[OURS]]), figures([of[PLAIN]])
        sooner.append(plain.first_clause.p50 / mine.first_clause.p50)
        more.append(mine.tokens_per_second / plain.tokens_per_second)
        paired = faster([of[OURS]], [of[PLAIN]])
        by_turn = "{:.2f} [{:.2f}, {:.2f}]".format(*harness.interval(paired)) if paired else "-"
        clauses = [f"{one.first_clause.p50:.1f}" for one in (mine, plain)]
        rates = [f"{one.tokens_per_second:.0f}" for one in (mine, plain)]
        way = page.WAYS_IN[driver]
        rows.append([way, number + 1, *clauses, f"{sooner[-1]:.2f}", by_turn, *rates, f"{more[-1]:.2f}"])
    header = ["way", "round", "first clause ms, ours", PLAIN, "times as soon", "turn by turn"]
    header += ["tokens/s, ours", PLAIN, "times as many"]
    if not rows:
        return "## One call at a time"
    text = (
        f"The smallest ratios to plain decoding, of {len(rows)} rounds: first clause {min(sooner):.2f}, tokens a "
        f"second {min(more):.2f}; never below {claims.FLOOR:g} is claimed"
    )
    claim = claims.verdict(text, min(sooner + more) >= claims.FLOOR)
    elsewhere = "At every other load: `make bench-batching`."
    return f"## One call at a time\n\n{claim} {elsewhere}\n\n{harness.table(header, rows)}"
