"""The figures that the work on the GPU aims at, and what a run says of each: met, not met, or not measured.

They were set for one H200. Which figure of which stage speaks for a target is written here and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.gpu.sizes import Sizes
from bench.gpu.stages import Table
from engine.proposers.search import shape_for

NOT_MEASURED = "not measured"
SMALL, LARGE = "8B bf16", "70B fp8"
"""How the figures of the two shapes are named."""
CONTEXT, LONG, TREE = 4096, 16_384, 32
"""Tokens of context, and nodes of a tree with six levels of drafting, that targets speak of."""


@dataclass(frozen=True)
class Target:
    """stage: of ``bench.gpu.registry`` that measures it. limit: a number that the figure is at least, or at most; None:
    it is true. figure: of those that the stages left; None where they left none.
    """

    name: str
    stage: str
    limit: float | None
    at_most: bool
    unit: str
    figure: Callable[[Mapping[str, Any], Sizes], float | bool | None]

    @property
    def aim(self) -> str:
        if self.limit is None:
            return "yes"
        return f"{'at most' if self.at_most else 'at least'} {self.limit:g}{self.unit}"

    def judged(self, figures: Mapping[str, Any], sizes: Sizes) -> tuple[str, str]:
        """(the figure, whether it is met), in words."""
        found = self.figure(figures, sizes)
        if found is None or (isinstance(found, float) and math.isnan(found)):
            return NOT_MEASURED, ""
        if self.limit is None:
            return ("yes" if found else "no"), ("met" if found else "NOT met")
        met = found <= self.limit if self.at_most else found >= self.limit
        return f"{found:.3g}{self.unit}", "met" if met else "NOT met"


def context_of(sizes: Sizes) -> int:
    """The context that targets speak of, or the longest of a dry run."""
    return CONTEXT if CONTEXT in sizes.contexts else max(sizes.contexts)


def tree_of(sizes: Sizes) -> int:
    return TREE if TREE in sizes.budgets else max(sizes.budgets)


def most_accepted(nodes: int) -> int:
    """Tokens that a cycle of a tree of so many nodes can bring: one for each level, and the target's own."""
    return shape_for(nodes).depth + 1


def _plain_share(figures: Mapping[str, Any], sizes: Sizes) -> float | None:
    return figures.get(f"plain_share {SMALL} {context_of(sizes)}")


def _plain_rate(figures: Mapping[str, Any], sizes: Sizes) -> float | None:
    ms = figures.get(f"plain_ms {LARGE} {context_of(sizes)}")
    return None if ms is None else 1e3 / ms


def _verify(figures: Mapping[str, Any], sizes: Sizes) -> float | None:
    context, nodes = context_of(sizes), TREE if TREE in sizes.nodes else max(sizes.nodes)
    tree, plain = figures.get(f"verify_ms {SMALL} {context} {nodes}"), figures.get(f"plain_ms {SMALL} {context}")
    return None if tree is None or plain is None else tree / plain


def _beside(name: str) -> Callable[[Mapping[str, Any], Sizes], float | None]:
    """Of a cycle, everything that is not the target's forward: drafting, choosing, accepting, the host."""
    return lambda figures, sizes: figures.get(f"cycle_beside {name} {context_of(sizes)} {tree_of(sizes)}")


def _drafting(name: str) -> Callable[[Mapping[str, Any], Sizes], float | None]:
    return lambda figures, sizes: figures.get(f"cycle_draft {name} {context_of(sizes)} {tree_of(sizes)}")


def _projected(name: str, length: float) -> Callable[[Mapping[str, Any], Sizes], float | None]:
    """Of the fastest tree of at least ``TREE`` nodes that can have so many tokens accepted: a small one, which could as
    well, is far from them in practice.
    """

    def found(figures: Mapping[str, Any], sizes: Sizes) -> float | None:
        start = f"cycle_ms {name} {context_of(sizes)} "
        cycles = {int(key.removeprefix(start)): ms for key, ms in figures.items() if key.startswith(start)}
        able = [ms for nodes, ms in cycles.items() if nodes >= tree_of(sizes) and most_accepted(nodes) >= length]
        return 1e3 * length / min(able) if able else None

    return found


def _first_p95(figures: Mapping[str, Any], sizes: Sizes) -> float | None:
    return figures.get(f"first_p95_ms {CONTEXT if CONTEXT in sizes.histories else max(sizes.histories)}")


def _first_growth(figures: Mapping[str, Any], sizes: Sizes) -> float | None:
    long, short = (figures.get(f"first_p95_ms {length}") for length in (LONG, CONTEXT))
    return None if long is None or short is None else long / short


def _grown(figures: Mapping[str, Any], sizes: Sizes) -> float | None:
    start = f"grown {SMALL} tokens_s "
    plain = figures.get(start + "plain, graphs")
    drafted = [rate for name, rate in figures.items() if name.startswith(start + "eagle3, graphs") and rate == rate]
    return max(drafted) / plain if plain and drafted else None


def _named(name: str) -> Callable[[Mapping[str, Any], Sizes], float | bool | None]:
    return lambda figures, sizes: figures.get(name)


TARGETS = (
    Target("kernels equal to their reference, in tolerance", "check", None, False, "", _named("kernels_correct")),
    Target("text of the trained model, graphs as eager", "check", None, False, "", _named("graph_text_equals_eager")),
    Target(
        "greedy replies of the trained model, steps by graphs over eager",
        "check",
        1.05,
        True,
        " x",
        _named("graph_steps"),
    ),
    Target("capturing at start, 8B, kernels compiled and loaded", "start", 30, True, " s", _named("capture_s")),
    Target("8B plain step, of the measured copy bandwidth, 4k", "plain", 85, False, " %", _plain_share),
    Target("8B verification of 32 nodes over a plain step, 4k", "verify", 1.10, True, " x", _verify),
    Target("8B, all of a cycle but its forward, six levels, 32 nodes, 4k", "cycle", 25, True, " %", _beside(SMALL)),
    Target("8B projected at acceptance length 4.2, 4k", "forced", 600, False, " tok/s", _projected(SMALL, 4.2)),
    Target("8B warm first token p95 inside the engine, 4k", "first", 12, True, " ms", _first_p95),
    Target("the same at 16k over 4k", "first", 1.25, True, " x", _first_growth),
    Target("grown 8B, EAGLE-3 over plain, measured", "grown", 2.2, False, " x", _grown),
    Target("70B FP8 plain, 4k", "large", 54, False, " tok/s", _plain_rate),
    Target("70B FP8, drafting of a cycle, 32 nodes, 4k", "large", 12, True, " %", _drafting(LARGE)),
    Target("70B FP8 projected at acceptance length 5.0, 4k", "large", 220, False, " tok/s", _projected(LARGE, 5.0)),
)


def verdict(figures: Mapping[str, Any], sizes: Sizes, device: str) -> Table:
    """What a run on ``device`` says of every target."""
    rows = [[target.name, target.stage, target.aim, *target.judged(figures, sizes)] for target in TARGETS]
    return Table(f"Targets (set for one H200), on {device}", ["what", "stage", "target", "measured", ""], rows)
