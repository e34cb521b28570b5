"""What is claimed of many calls on one accelerator: each claim in a sentence that ends with its verdict, as the figures
of a run have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.load.contenders import OURS, TREES
from bench.load.figures import Percentiles, Sweep, meets

TIMES_AS_MANY = 2.0
"""Calls that ours carries, over those of the best fixed tree that is served first come, first served."""
FLOOR = 0.95
"""Of plain decoding, that drafting never falls below."""
RETURNING = 0.05
"""Share of the replies that may come back to a mode that they had left: the load may have come back as well."""
OTHERWISE = 0.25
"""Share of the replies that may begin in another mode than the one before."""
FEWEST_REPLIES = 20
"""Of which such shares say something."""
FEWEST_STEPS = 100
"""Of which a p99 is not just the longest."""
LONGER = 1.5
"""p99 of steps in which a long prompt is read, over that of steps apart from one; and how much later than with plain
decoding first clauses may be at p95.
"""
FEWEST_CLAUSES = 20
"""Of which a p95 is not just the latest."""


def verdict(text: str, held: bool | None) -> str:
    """The sentence. held: None where the figures do not say."""
    return f"{text}: **{'not decided' if held is None else 'met' if held else 'missed'}**."


def carried(sweep: Sweep) -> str:
    """How many calls ours carries, over the best fixed tree; empty where one of the two was not run."""
    trees = [name for name in TREES.values() if sweep.loads(name)]
    if sweep.arrivals or not trees or not sweep.loads(OURS):
        return ""
    ours, best = sweep.knee(OURS) or 0, max(trees, key=lambda name: sweep.knee(name) or 0)
    theirs = sweep.knee(best)
    claim = f"claimed are at least {TIMES_AS_MANY:g} times as many"
    if not theirs:
        # Not even the smallest load that was tried: it may carry any number below.
        smallest = min(sweep.loads(best))
        held = False if not ours else True if ours >= TIMES_AS_MANY * (smallest - 1) else None
        return verdict(f"Ours carries {ours:g} calls, {best} not even {smallest:g}; {claim}", held)
    times = ours / theirs
    held = times >= TIMES_AS_MANY
    if not _fails(sweep, best):  # it may carry any number more
        held = None if held or not _fails(sweep, OURS) else False
    elif not held and ours and not _fails(sweep, OURS):
        held = None
    found = f"Ours carries {ours:g} calls, {best} {theirs:g}, {times:.2f} times as many; {claim}"
    return verdict(found, held)


def _fails(sweep: Sweep, name: str) -> bool:
    """Whether any load that was tried is too much for the contender."""
    return not all(meets(found, sweep.solo_ms) for found in sweep.loads(name).values())


@dataclass(frozen=True)
class Climb:
    """What a contender brought from one call to all of them and back.

    rates: tokens a second with one call, with all, with one again. clause_p95: milliseconds, of the first clauses with
    all; None where there are too few. failed: errors and calls that were not let in.
    """

    rates: Sequence[float]
    clause_p95: float | None
    failed: int


def collapse(climb: Climb, plain: Climb | None) -> str:
    """plain: of plain decoding, where that was run. Tokens alone do not tell: as long as callers get what they ask for,
    they ask for no more.
    """
    one, most, _ = climb.rates
    tokens, clause = f"{most:.0f} with all calls, {one:.0f} with one", _clause(climb)
    claim = "not fewer tokens than with one call, nothing lost"
    if plain is not None:
        tokens, clause = f"{tokens} and {plain.rates[1]:.0f} with plain decoding", f"{clause}, {_clause(plain)} with it"
        claim += (
            f", at least {FLOOR:g} of plain decoding's tokens, first clauses at most {LONGER:g} times as late as its"
        )
    text = (
        f"Tokens a second: {tokens}; first clause p95 with all calls {clause}; errors and refused calls: "
        f"{climb.failed}. No collapse is claimed: {claim}"
    )
    known = all(found.clause_p95 is not None for found in (climb, plain) if found is not None)
    held = most >= one and not climb.failed
    if plain is not None:
        held &= most >= FLOOR * plain.rates[1]
        if climb.clause_p95 is not None and plain.clause_p95 is not None:
            held &= climb.clause_p95 <= LONGER * plain.clause_p95
    return verdict(text, None if held and not (one and known) else held)


def _clause(climb: Climb) -> str:
    return "not known" if climb.clause_p95 is None else f"{climb.clause_p95:.0f} ms"


def oscillation(replies: Sequence[Sequence[str]], otherwise: int) -> str:
    """replies: the modes that each went through; otherwise: how many began in another than the one before."""
    returning = sum(len(set(modes)) < len(modes) for modes in replies)
    text = (
        f"Of {len(replies)} replies {returning} came back to a mode that they had left, and {otherwise} began in "
        f"another than the one before. No oscillation is claimed: at most {RETURNING:.0%} and {OTHERWISE:.0%}"
    )
    held = returning <= RETURNING * len(replies) and otherwise <= OTHERWISE * len(replies)
    return verdict(text, held if len(replies) >= FEWEST_REPLIES else None)


def same_texts(same: int, compared: int) -> str:
    text = f"{same} of {compared} turns were told as to a lone call; all of them is claimed"
    return verdict(text, same == compared if compared else None)


def beside_long_prompt(apart: Percentiles, beside: Percentiles) -> str:
    """Of steps without and with such a prompt being read."""
    ratio = beside.p99 / apart.p99
    text = (
        f"Steps' p99 {beside.p99:.1f} ms beside a long prompt ({beside.count} steps), {apart.p99:.1f} apart: "
        f"{ratio:.2f} times as long; at most {LONGER:g} is claimed"
    )
    return verdict(text, ratio <= LONGER if min(apart.count, beside.count) >= FEWEST_STEPS else None)


def underruns(gaps: int, speech_s: float) -> str:
    """Of the callers' speech beside long prompts."""
    text = f"{gaps} underruns in {speech_s:.0f} s of speech beside long prompts; none is claimed"
    return verdict(text, gaps == 0 if speech_s else None)
