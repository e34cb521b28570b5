"""Measures what a step costs on this machine, before the first call is let in."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from engine.cache import KVCache
from engine.errors import ModelError, OutOfPages
from engine.interfaces import Draft, Proposer, Target, Window
from engine.pace import StepCosts
from engine.tree import DraftTree

LADDER = (1, 4, 8, 16, 24, 32, 60)
REPEATED = 16
WINDOWS = 4
CHUNKS = (128, 256)
"""Tokens of a prompt read at once."""


@torch.inference_mode()
def measure_costs(
    target: Target,
    proposers: Sequence[Proposer],
    *,
    context_tokens: int = 256,
    repeats: int = 5,
    ladder: tuple[int, ...] = LADDER,
) -> StepCosts:
    """Median seconds of a forward of n nodes and of drafting n nodes, behind ``context_tokens`` of context.

    proposers: ways to draft from the drafts of the first of them. Runs on scratch sessions that are closed again.
    Budgets that the longest context has no room for are left out of the ladder, and all but the first where nothing is
    drafted. Raises OutOfPages when the pool is smaller than the measurement, and ModelError for a context that holds no
    reply.
    """
    room = target.max_context_tokens - 1  # beside one node of the smallest tree, or one token of context
    if room < 1:
        raise ModelError(f"a context of {target.max_context_tokens} token has no room for a reply")
    ladder = (1, *(nodes for nodes in ladder if 1 < nodes < room))
    context_tokens = max(1, min(context_tokens, room - ladder[-1]))
    main = proposers[0]
    cache, draft = target.new_cache(), main.start()
    try:
        # A text that repeats, or a drafter that copies from it would draft nothing.
        period = min(target.vocab_size, REPEATED)
        prompt = DraftTree.chain(torch.arange(context_tokens) % period)
        cache.reserve(context_tokens)
        features = target.forward([Window(cache, prompt, "none")], main.taps)[0].features
        cache.commit(list(range(context_tokens)))
        main.observe(draft, prompt.tokens, features, None)
        while main.catch_up(draft):  # a drafter that reads in chunks drafts nothing before it is there
            pass
        # A new root each time, as in a reply: its pair is part of what drafting costs. Both go on with the repetition.
        roots = itertools.cycle((context_tokens % period, (context_tokens - 1) % period))
        drafts_at_all = len(ladder) > 1 and len(main.propose([draft], [next(roots)], [None], ladder[1])[0]) > 1
        nodes = ladder if drafts_at_all else (1,)
        drafting = tuple(
            (0.0, *(_draft_seconds(proposer, draft, budget, roots, repeats) for budget in nodes[1:]))
            for proposer in proposers
        )
        verify = tuple(_verify_seconds(target, main, [cache], budget, repeats) for budget in nodes)
        window = _window_seconds(target, main, cache, verify[0], repeats)
        together = tuple(
            _together(proposer, draft, alone[-1], nodes[-1], roots, repeats) if alone[-1] else 1.0
            for proposer, alone in zip(proposers, drafting, strict=True)
        )
        chunks = _chunk_seconds(
            target, main, cache, [n for n in CHUNKS if nodes[-1] < n < room - context_tokens], repeats
        )
        return StepCosts(nodes, verify, drafting, window, together, chunks)
    finally:
        cache.close()
        draft.close()


def _window_seconds(target: Target, proposer: Proposer, cache: KVCache, alone: float, repeats: int) -> float:
    """What one more session adds to a forward, by itself: a step of four of one node each, over one of four nodes."""
    forks = [cache.fork() for _ in range(WINDOWS - 1)]
    try:
        together = _verify_seconds(target, proposer, [cache, *forks], 1, repeats)
        return max(0.0, together - _verify_seconds(target, proposer, [cache], WINDOWS, repeats)) / (WINDOWS - 1)
    except OutOfPages:
        return alone / WINDOWS
    finally:
        for fork in forks:
            fork.close()


def _together(proposer: Proposer, draft: Draft, alone: float, budget: int, roots: Iterator[int], repeats: int) -> float:
    """What one more session adds to drafting, as a part of what the first costs."""
    forks = [draft.fork() for _ in range(WINDOWS - 1)]
    try:
        drafts = [draft, *forks]

        def propose() -> object:
            return proposer.propose(drafts, [next(roots)] * WINDOWS, [None] * WINDOWS, budget)

        return min(1.0, max(0.0, _median_seconds(propose, repeats) / alone - 1.0) / (WINDOWS - 1))
    except OutOfPages:
        return 1.0
    finally:
        for fork in forks:
            fork.close()


def _chunk_seconds(
    target: Target, proposer: Proposer, cache: KVCache, sizes: Sequence[int], repeats: int
) -> tuple[tuple[int, float], ...]:
    """(tokens, seconds) of chunks of a prompt. Those that the pool has no room for are left out."""
    found: list[tuple[int, float]] = []
    for size in sizes:
        try:
            cache.reserve(size)
        except OutOfPages:
            break
        window = Window(cache, DraftTree.chain(torch.arange(size) % target.vocab_size), "last")

        def read(window: Window = window) -> None:
            output = target.forward([window], proposer.taps)[0]
            assert output.logits is not None
            output.logits.argmax(-1).cpu()

        found.append((size, _median_seconds(read, max(1, repeats // 2))))
    return tuple(found)


def _verify_seconds(target: Target, proposer: Proposer, caches: Sequence[KVCache], nodes: int, repeats: int) -> float:
    """A forward of a tree of ``nodes`` behind each cache, whose result has reached the host, its keys never committed.

    The tree is binary: what a drafter draws depends on the text, what a node costs does not.
    """
    parents = torch.arange(-1, nodes - 1).div(2, rounding_mode="floor")
    tree = DraftTree(torch.arange(nodes) % target.vocab_size, parents, torch.ones(nodes), torch.zeros(nodes).long())
    for cache in caches:
        cache.reserve(nodes)

    def verify() -> None:
        for output in target.forward([Window(cache, tree, "all") for cache in caches], proposer.taps):
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
