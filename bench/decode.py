"""Seconds per token at batch one: plain, our policy, fixed trees, and transformers, interleaved in one run.

    python -m bench.decode [--embedded-prompts N] [--grown-prompts N]

On the embedded model verification is not free, so the policy is judged by not losing to plain decoding. On the grown
copy of it (``bench.grow``), a step is bound by memory as on a GPU, and drafting is judged by what it gains.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import grow, harness
from bench.peers import LlamaCppPeer, TransformersPeer
from engine.config import EngineConfig
from engine.engine import Engine
from engine.load import load_proposer, load_target_for, measured_engine
from engine.pace import StepCosts
from engine.policy import FixedPolicy
from engine.proposers.none import NoProposer
from engine.sampling import Sampling

GREEDY = Sampling()
PROMPT_LOOKUP = 10
"""Tokens that peers draft from the prompt at each step."""


@dataclass(frozen=True)
class Timed:
    """One reply: its ids, the seconds after its first step, their forwards, and the tokens of the first step."""

    tokens: list[int]
    seconds: float
    forwards: int
    first: int = 1

    @property
    def timed(self) -> int:
        """Tokens that the seconds brought: none where the first step held the whole reply."""
        return len(self.tokens) - self.first

    @property
    def per_token(self) -> float:
        return self.seconds / self.timed


Mode = Callable[[harness.Prompt], Timed]


def engine_mode(engine: Engine, stop: frozenset[int], max_tokens: int) -> Mode:
    def reply(prompt: harness.Prompt) -> Timed:
        run = harness.run_turn(engine, prompt.ids, GREEDY, stop=stop, max_tokens=max_tokens)
        return Timed(run.tokens, run.decode_seconds, run.turn.stats.steps - 1)

    return reply


def peer_mode(peer: TransformersPeer | LlamaCppPeer, max_tokens: int, **options: int) -> Mode:
    """options: of the peer's reply, as ``prompt_lookup``."""

    def reply(prompt: harness.Prompt) -> Timed:
        made = peer.reply(prompt.ids, max_tokens, **options)
        return Timed(made.tokens, made.seconds, 0, made.first_tokens)

    return reply


def build_modes(model: Path, dtype: str, max_tokens: int, trees: tuple[int, ...]) -> tuple[dict[str, Mode], StepCosts]:
    """Every way of decoding on one checkpoint, over one copy of our weights and one of transformers'."""
    stop = harness.stop_tokens(model)
    config = EngineConfig(str(model), f"eagle3:{model / 'eagle3'}", dtype=dtype, pool_tokens=8192)
    target = load_target_for(config)
    head = load_proposer(config, target)
    policy = measured_engine(target, head, config)
    costs = policy.pace.costs
    assert costs is not None
    peer = TransformersPeer(model, getattr(torch, dtype), stop)
    modes = {
        "plain": engine_mode(Engine(target, NoProposer(), FixedPolicy(1)), stop, max_tokens),
        "policy": engine_mode(policy, stop, max_tokens),
    }
    for nodes in trees:
        modes[f"EAGLE-3, {nodes} nodes"] = engine_mode(Engine(target, head, FixedPolicy(nodes)), stop, max_tokens)
    modes["transformers greedy"] = peer_mode(peer, max_tokens)
    modes["transformers prompt lookup"] = peer_mode(peer, max_tokens, prompt_lookup=PROMPT_LOOKUP)
    return modes, costs


def interleave(modes: dict[str, Mode], prompts: list[harness.Prompt], seed: int = 0) -> dict[str, list[Timed]]:
    """Every mode on every prompt, in an order drawn anew for each prompt, after one reply each to warm up."""
    rng = random.Random(seed)
    for mode in modes.values():
        mode(prompts[0])
    results: dict[str, list[Timed]] = {name: [] for name in modes}
    for prompt in prompts:
        for name in rng.sample(list(modes), len(modes)):
            results[name].append(modes[name](prompt))
    return results


SHORTEST = 6
"""Replies of fewer tokens are left out: there is nothing to time in them."""


def overall(runs: Sequence[Timed]) -> float:
    """Milliseconds per token over all replies; NaN where their first steps held all of them."""
    tokens = sum(run.timed for run in runs)
    return 1e3 * sum(run.seconds for run in runs) / tokens if tokens else float("nan")


def comparable(base: Sequence[Timed], runs: Sequence[Timed]) -> list[tuple[Timed, Timed]]:
    """The same reply from both, where both took more than a first step: a drafter may write a whole one in that."""
    return [pair for pair in zip(base, runs, strict=True) if all(run.timed > 0 for run in pair)]


def summarise(results: dict[str, list[Timed]]) -> list[list[Any]]:
    """Per mode: ms per token, tokens per forward, and paired speed ratios to plain and to transformers."""
    long = [i for i, run in enumerate(results["plain"]) if len(run.tokens) >= SHORTEST]
    kept = {name: [runs[i] for i in long] for name, runs in results.items()}
    plain, greedy = kept["plain"], kept["transformers greedy"]
    best = min((runs for name, runs in kept.items() if name.startswith("transformers")), key=overall)
    rows: list[list[Any]] = []
    for name, runs in kept.items():
        forwards = sum(run.forwards for run in runs)
        tokens_per_forward = sum(run.timed for run in runs) / forwards if forwards else ""
        same = sum(mine.tokens == theirs.tokens for mine, theirs in zip(results[name], results["plain"], strict=True))
        row = [name, overall(runs), tokens_per_forward]
        rows.append([*row, *(times(base, runs) for base in (plain, greedy, best)), f"{same}/{len(results[name])}"])
    return rows


def times(base: list[Timed], runs: list[Timed]) -> str:
    """How many times faster than ``base``: median over the paired replies, with its 95 % interval."""
    ratios = [slow.per_token / fast.per_token for slow, fast in comparable(base, runs)]
    return "{:.2f} [{:.2f}, {:.2f}]".format(*harness.interval(ratios))


HEADER = [
    "mode",
    "ms per token",
    "tokens per forward",
    "x plain",
    "x transformers greedy",
    "x best transformers",
    "same text as plain",
]


def cost_table(costs: StepCosts) -> str:
    rows = [[n, 1e3 * v, 1e3 * d] for n, v, d in zip(costs.nodes, costs.verify, costs.draft[0], strict=True)]
    return harness.table(["nodes", "verify ms", "draft ms"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("models/receptionist"))
    parser.add_argument("--grown", type=Path, default=Path("build/grown"))
    parser.add_argument("--embedded-prompts", type=int, default=60)
    parser.add_argument("--grown-prompts", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts: list[str] = []
    data: dict[str, Any] = {}
    jobs = [("embedded", arguments.model, "float32", arguments.embedded_prompts, (5, 8, 24))]
    if arguments.grown_prompts:
        grow.grow(arguments.model, arguments.grown)
        jobs.append(("grown", arguments.grown, "bfloat16", arguments.grown_prompts, (8, 16, 24, 32)))
    for name, model, dtype, count, trees in jobs:
        tokenizer = harness.load_tokenizer(model)
        prompts = harness.prompts(tokenizer, harness.IN_DOMAIN, count)
        prompts = random.Random(1).sample(prompts, count)
        modes, costs = build_modes(model, dtype, 96, trees)
        rows = summarise(interleave(modes, prompts))
        parts += [f"## {name}, {dtype}", harness.table(HEADER, rows), cost_table(costs)]
        data[name] = {"rows": rows, "nodes": costs.nodes, "verify": costs.verify, "draft": costs.draft[0]}
        print(parts[-2], flush=True)
    harness.save("decode", "Decoding at batch one", "\n\n".join(parts), data)


if __name__ == "__main__":
    main()
