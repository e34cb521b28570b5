"""70B with its weights in FP8 on one card, and what eight bits change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from bench.gpu import steps
from bench.gpu.calls import asked
from bench.gpu.sizes import random_head, random_target
from bench.gpu.stages import Bench, Table
from engine.interfaces import Window
from engine.models.decoder import Decoder, load_target
from engine.proposers.pairs.proposer import PairProposer
from engine.quantize import PRECISIONS
from engine.tree import DraftTree

NAME = "70B fp8"


def large_pair(bench: Bench) -> tuple[Decoder, PairProposer]:
    """Random weights, made a layer at a time and quantised at once, and a head in bfloat16."""
    bench.needs_memory(82e9)
    bench.needs_products()

    def make() -> tuple[Decoder, PairProposer]:
        room = max(bench.sizes.contexts[:2]) + 2048
        target = random_target(
            bench.sizes.large, bench.sizes, bench.device, pool_tokens=room, kernels=bench.kernels, precision="fp8"
        )
        return target, random_head(target, pool_tokens=room)

    pair: tuple[Decoder, PairProposer] = bench.held(("70B", bench.kernels), make)
    return pair


def large(bench: Bench) -> Iterator[Table]:
    """Plain steps, trees, cycles, and the projection from published acceptance."""
    sizes = bench.sizes
    pair = large_pair(bench)
    bench.sizes = replace(sizes, contexts=sizes.contexts[:2], nodes=sizes.nodes[::3], budgets=sizes.budgets[-2:])
    try:
        yield from steps.plain(bench, pair[0], NAME)
        yield from steps.verify(bench, pair[0], NAME)
        yield from steps.cycles(bench, pair, NAME)
        yield from steps.forced(bench, NAME, "Llama-3.3-70B, T=0")
    finally:
        bench.sizes = sizes


def quality(bench: Bench) -> Iterator[Table]:
    """Logits with weights in eight bits against those with the weights as they are: random, and trained."""
    bench.needs_products()
    sizes, device, kernels = bench.sizes, bench.device, bench.kernels
    few = replace(sizes.small, num_layers=min(4, sizes.small.num_layers))
    tokens = [(7 * i) % few.vocab_size for i in range(200)]

    def random(precision: str) -> Decoder:
        return random_target(few, sizes, device, pool_tokens=1024, kernels=kernels, precision=precision)

    yield (table := Table("Quality of weights in eight bits, 4 layers of 8B, random", QUALITY))
    _eight_bits(bench, random, tokens, table)
    prompt = asked(bench, 1)[0].ids
    for dtype in (torch.float32, torch.bfloat16) if device.type == "cuda" else (torch.float32,):

        def embedded(precision: str, dtype: torch.dtype = dtype) -> Decoder:
            return load_target(
                bench.model, dtype=dtype, device=device, pool_tokens=4096, kernels=kernels, precision=precision
            )

        title = f"Quality of weights in eight bits, the embedded model in {str(dtype).removeprefix('torch.')}"
        yield (table := Table(title, QUALITY))
        _eight_bits(bench, embedded, prompt, table)


QUALITY = ["layers' matrices", "relative error", "same most likely token", "KL, nats"]


@torch.inference_mode()
def _eight_bits(bench: Bench, made: Callable[[str], Decoder], tokens: list[int], into: Table) -> None:
    """Each precision against the first, which is full."""
    exact = None
    for precision in PRECISIONS:
        if bench.left < 0:
            break
        logits = _logits(made(precision), tokens)
        exact = logits if exact is None else exact
        into.rows.append([precision, *_compared(logits, exact)])


def _logits(target: Decoder, tokens: list[int]) -> torch.Tensor:
    cache, chain = target.new_cache(), DraftTree.chain(torch.tensor(tokens))
    cache.reserve(len(chain))
    logits = target.forward([Window(cache, chain)])[0].logits
    cache.close()
    assert logits is not None
    return logits.float()


def _compared(logits: torch.Tensor, exact: torch.Tensor) -> list[float]:
    error = float((logits - exact).norm() / exact.norm())
    same = float((logits.argmax(-1) == exact.argmax(-1)).float().mean())
    wanted = exact.log_softmax(-1)
    divergence = float((wanted.exp() * (wanted - logits.log_softmax(-1))).sum(-1).mean())
    return [error, same, divergence]
