"""Measures what a step costs on this machine, before the first call is let in."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

import torch

from engine.cache import KVCache
from engine.errors import ModelError
from engine.interfaces import Draft, Proposer, Target, Window
from engine.policy import StepCosts
from engine.tree import DraftTree

LADDER = (1, 4, 8, 16, 24, 32, 60)
REPEATED = 16


@torch.inference_mode()
def measure_costs(
    target: Target, proposer: Proposer, *, context_tokens: int = 256, repeats: int = 5, ladder: tuple[int, ...] = LADDER
) -> StepCosts:
    """Median seconds of a forward of n nodes and of drafting n nodes, behind ``context_tokens`` of context.

    Runs on scratch sessions that are closed again. Budgets that the longest context has no room for are left out of the
    ladder, and all but the first where the proposer drafts nothing. Raises OutOfPages when the pool is smaller than the
    measurement, and ModelError for a context that holds no reply.
    """
    room = target.max_context_tokens - 1  # beside one node of the smallest tree, or one token of context
    if room < 1:
        raise ModelError(f"a context of {target.max_context_tokens} token has no room for a reply")
    ladder = (1, *(nodes for nodes in ladder if 1 < nodes < room))
    context_tokens = max(1, min(context_tokens, room - ladder[-1]))
    cache, draft = target.new_cache(), proposer.start()
    try:
        # A text that repeats, or a drafter that copies from it would draft nothing.
        period = min(target.vocab_size, REPEATED)
        prompt = DraftTree.chain(torch.arange(context_tokens) % period)
        cache.reserve(len(prompt))
        output = target.forward([Window(cache, prompt, "none")], proposer.taps)[0]
        cache.commit(list(range(len(prompt))))
        proposer.observe(draft, prompt.tokens, output.features, None)
        while proposer.catch_up(draft):  # a drafter that reads in chunks drafts nothing before it is there
            pass
        # A new root each time, as in a reply: its pair is part of what drafting costs. Both go on with the repetition.
        roots = itertools.cycle((context_tokens % period, (context_tokens - 1) % period))
        nodes, drafting = [1], [0.0]
        verify = [_verify_seconds(target, proposer, cache, 1, repeats)]
        for budget in ladder[1:]:
            if len(proposer.propose([draft], [next(roots)], [None], budget)[0]) == 1:
                break
            nodes.append(budget)
            drafting.append(_draft_seconds(proposer, draft, budget, roots, repeats))
            verify.append(_verify_seconds(target, proposer, cache, budget, repeats))
        return StepCosts(tuple(nodes), tuple(verify), tuple(drafting))
    finally:
        cache.close()
        draft.close()


def _verify_seconds(target: Target, proposer: Proposer, cache: KVCache, nodes: int, repeats: int) -> float:
    """A forward of a tree of ``nodes`` whose result has reached the host, its keys never committed.

    The tree is binary: what a drafter draws depends on the text, what a node costs does not.
    """
    parents = torch.arange(-1, nodes - 1).div(2, rounding_mode="floor")
    tree = DraftTree(torch.arange(nodes) % target.vocab_size, parents, torch.ones(nodes), torch.zeros(nodes).long())
    cache.reserve(nodes)

    def verify() -> None:
        output = target.forward([Window(cache, tree, "all")], proposer.taps)[0]
        assert output.logits is not None
        output.logits.argmax(-1).cpu()

    return _median_seconds(verify, repeats)


def _draft_seconds(proposer: Proposer, draft: Draft, budget: int, roots: Iterator[int], repeats: int) -> float:
    return _median_seconds(lambda: proposer.propose([draft], [next(roots)], [None], budget), repeats)


def _median_seconds(work: Callable[[], object], repeats: int) -> float:
    work()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)[len(seconds) // 2]
