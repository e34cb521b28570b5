"""70B with its weights in FP8 on one card, and what eight bits change."""

from __future__ import annotations

from dataclasses import replace

import torch

from bench.gpu import steps
from bench.gpu.calls import asked
from bench.gpu.sizes import random_head, random_target
from bench.gpu.stages import Bench, Table
from engine.interfaces import Window
from engine.models.decoder import Decoder, load_target
from engine.proposers.pairs.proposer import PairProposer
from engine.tree import DraftTree

NAME = "70B fp8"


def large_pair(bench: Bench) -> tuple[Decoder, PairProposer]:
    """Random weights, made a layer at a time and quantised at once, and a head in bfloat16."""
    bench.needs_memory(82e9)

    def make() -> tuple[Decoder, PairProposer]:
        room = max(bench.sizes.contexts[:2]) + 2048
        target = random_target(
            bench.sizes.large, bench.sizes, bench.device, pool_tokens=room, kernels=bench.kernels, precision="fp8"
        )
        return target, random_head(target, pool_tokens=room)

    pair: tuple[Decoder, PairProposer] = bench.held(("70B", bench.kernels), make)
    return pair


def large(bench: Bench) -> list[Table]:
    """Plain steps, trees, cycles, and the projection from published acceptance."""
    sizes = bench.sizes
    pair = large_pair(bench)
    bench.sizes = replace(sizes, contexts=sizes.contexts[:2], nodes=sizes.nodes[::3], budgets=sizes.budgets[-2:])
    try:
        tables = steps.plain(bench, pair[0], NAME) + steps.verify(bench, pair[0], NAME)
        tables += steps.cycles(bench, pair, NAME)
        return tables + steps.forced(bench, NAME, "Llama-3.3-70B, T=0")
    finally:
        bench.sizes = sizes


@torch.inference_mode()
def quality(bench: Bench) -> list[Table]:
    """Logits with weights in eight bits against those with the weights as they are: trained, and random."""
    rows = []
    prompt = asked(bench, 1)[0].ids
    for dtype in (torch.float32, torch.bfloat16) if bench.device.type == "cuda" else (torch.float32,):
        exact = None
        for precision in ("full", "fp8", "int8"):
            target = load_target(
                bench.model,
                dtype=dtype,
                device=bench.device,
                pool_tokens=4096,
                kernels=bench.kernels,
                precision=precision,
            )
            logits = _logits(target, prompt)
            exact = logits if exact is None else exact
            rows.append(["embedded", str(dtype).removeprefix("torch."), precision, *_compared(logits, exact)])
    few = replace(bench.sizes.small, num_layers=min(4, bench.sizes.small.num_layers))
    exact = None
    for precision in ("full", "fp8", "int8"):
        target = random_target(
            few, bench.sizes, bench.device, pool_tokens=1024, kernels=bench.kernels, precision=precision
        )
        logits = _logits(target, [(7 * i) % few.vocab_size for i in range(200)])
        exact = logits if exact is None else exact
        rows.append(["random, 4 layers of 8B", str(bench.sizes.dtype)[6:], precision, *_compared(logits, exact)])
        del target
    header = ["weights", "dtype", "layers' matrices", "relative error", "same most likely token", "KL, nats"]
    return [Table("Quality of weights in eight bits", header, rows)]


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
