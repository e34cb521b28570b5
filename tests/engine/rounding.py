"""Which decisions of a float32 engine are so close that rounding may decide them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from engine.interfaces import Target, Window
from engine.sampling import Sampler, Sampling
from engine.tree import DraftTree

CLOSE = 1e-4
"""Logits change with the width of a window in the sixth digit; this is far above, and far below most gaps."""


def next_logits(target: Target, tokens: Sequence[int]) -> Tensor:
    """[V] after the tokens, from an empty cache."""
    fresh = target.new_cache()
    chain = DraftTree.chain(torch.tensor(tokens))
    fresh.reserve(len(chain))
    with torch.inference_mode():
        logits = target.forward([Window(fresh, chain, "last")])[0].logits
    fresh.close()
    assert logits is not None
    return logits[0]


def is_close(
    logits: Tensor, context: Sequence[int], sampling: Sampling, noise: Tensor | None, one: int, two: int
) -> bool:
    """Whether ``one`` and ``two`` both win if their logits or the edge of the nucleus move by no more than ``CLOSE``.

    logits: float64 [V] after ``context``. noise: [1, V] of the place in the reply.
    """
    sampler = Sampler(len(logits), logits.device)
    seen = torch.zeros(len(logits), dtype=torch.bool)
    seen[list(context)] = True
    chosen = set()
    for nucleus in (-CLOSE, 0.0, CLOSE):
        moved = sampling if sampling.top_p == 1.0 else replace(sampling, top_p=min(1.0, sampling.top_p + nucleus))
        for shift in (-CLOSE, 0.0, CLOSE):
            row = logits.clone()
            row[one] += shift
            row[two] -= shift
            chosen.add(int(sampler.choose(row[None], moved, noise=noise, seen=seen)))
    return {one, two} <= chosen


def differ_by_rounding(
    exact: Target, prompt: Sequence[int], one: Sequence[int], two: Sequence[int], sampling: Sampling
) -> bool:
    """Whether two replies part at a decision that is close. exact: the target in float64. The seed must be given."""
    at = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), None)
    if at is None:
        return False  # one is longer, which no rounding explains
    context = [*prompt, *one[:at]]
    noise = None
    if not sampling.greedy:
        assert sampling.seed is not None
        noise = Sampler(exact.vocab_size, exact.device).noise(sampling.seed, at, 1)
    return is_close(next_logits(exact, context), context, sampling, noise, one[at], two[at])
