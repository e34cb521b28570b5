"""How fast replies come with each method, as it is served: its tree sized by measured costs and acceptance. Beside
them the peers' own drafting on the same weights, interleaved reply by reply.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench import harness
from bench.decode import PROMPT_LOOKUP, SHORTEST, Mode, Timed, comparable, engine_mode, interleave, overall, peer_mode
from bench.drafters.counts import TREE, load
from bench.drafters.methods import Method
from bench.peers import TransformersPeer, load_llama_cpp
from bench.peers.hugging_face import ASSISTED
from engine.config import EngineConfig
from engine.costs import measure_costs
from engine.engine import Engine
from engine.load import load_target_for, measured_engine
from engine.pace import StepCosts
from engine.policy import FixedPolicy
from engine.proposers.none import NoProposer

PLAIN = "plain"
MAX_TOKENS = 96
LEARNED_ON = 8
"""Replies that policies learn from before anything is timed."""
SHORT, LONG = 256, 1900
"""Tokens of context behind which a step is timed. Policies go by the costs of the shorter one, as when served."""


@dataclass(frozen=True)
class Costs:
    """Milliseconds of drafting and of verifying a tree of TREE nodes, behind SHORT tokens and behind LONG ones; None
    where the drafter's own context ends before.
    """

    draft: float
    verify: float
    long_draft: float | None = None
    long_verify: float | None = None


@dataclass(frozen=True)
class Times:
    """Of one size of model. runs: by mode, over the same prompts."""

    costs: dict[str, Costs]
    runs: dict[str, list[Timed]]

    def tokens_per_second(self, mode: str) -> float:
        return 1e3 / overall(self.runs[mode])

    def over(self, mode: str, base: str) -> tuple[float, float, float]:
        """How many times as fast as ``base``: over all replies, with the 95 % interval of redrawing the replies."""
        pairs = comparable(self.runs[base], self.runs[mode])
        rng = random.Random(0)
        drawn = sorted(_ratio(rng.choices(pairs, k=len(pairs))) for _ in range(2000))
        return _ratio(pairs), drawn[50], drawn[-51]

    def same_text(self, mode: str) -> str:
        pairs = zip(self.runs[mode], self.runs[PLAIN], strict=True)
        return f"{sum(mine.tokens == theirs.tokens for mine, theirs in pairs)}/{len(self.runs[mode])}"


def _ratio(pairs: Sequence[tuple[Timed, Timed]]) -> float:
    base, mine = zip(*pairs, strict=True)
    return overall(base) / overall(mine)


def measure(model: Path, methods: Sequence[Method], dtype: torch.dtype, count: int) -> Times:
    """``count`` replies in domain, greedy, with every mode."""
    prompts = harness.prompts(harness.load_tokenizer(model), harness.IN_DOMAIN, LEARNED_ON + 2 * count)
    prompts = random.Random(1).sample(prompts, LEARNED_ON + 2 * count)
    learned, prompts = prompts[:LEARNED_ON], prompts[LEARNED_ON:]
    stop = harness.stop_tokens(model)
    config = EngineConfig(str(model), dtype=str(dtype).removeprefix("torch."), pool_tokens=8192)
    target = load_target_for(config)
    plain = engine_mode(Engine(target, NoProposer(), FixedPolicy(1)), stop, MAX_TOKENS)
    prompts = [prompt for prompt in prompts if len(plain(prompt).tokens) >= SHORTEST][:count]
    modes: dict[str, Mode] = {PLAIN: plain}
    costs = {}
    for method in methods:
        proposer = load(method, target, config)
        engine = measured_engine(target, proposer, config)
        measured = measure_costs(target, [proposer], context_tokens=SHORT)
        longer = measure_costs(target, [proposer], context_tokens=LONG, ladder=(TREE,))
        if TREE in measured.nodes:
            costs[method.name] = Costs(*_of_a_tree(measured), *(_of_a_tree(longer) if TREE in longer.nodes else ()))
        modes[method.name] = engine_mode(engine, stop, MAX_TOKENS)
        for prompt in learned:
            modes[method.name](prompt)
    modes |= peers(model, methods, dtype, stop)
    return Times(costs, interleave(modes, prompts))


def _of_a_tree(costs: StepCosts) -> tuple[float, float]:
    """Milliseconds of drafting and of verifying TREE nodes."""
    at = costs.nodes.index(TREE)
    return 1e3 * costs.draft[0][at], 1e3 * costs.verify[at]


def peers(model: Path, methods: Sequence[Method], dtype: torch.dtype, stop: frozenset[int]) -> dict[str, Mode]:
    draft = next((method.checkpoint for method in methods if method.spec.startswith("draft:")), None)
    hugging_face = TransformersPeer(model, dtype, stop, draft)
    modes = {
        "transformers greedy": peer_mode(hugging_face, MAX_TOKENS),
        "transformers prompt lookup": peer_mode(hugging_face, MAX_TOKENS, prompt_lookup=PROMPT_LOOKUP),
    }
    if draft:
        modes["transformers assisted by the draft model"] = peer_mode(hugging_face, MAX_TOKENS, assisted=ASSISTED)
    if llama_cpp := load_llama_cpp(model, dtype, stop):
        modes["llama.cpp greedy"] = peer_mode(llama_cpp, MAX_TOKENS)
        modes["llama.cpp prompt lookup"] = peer_mode(llama_cpp, MAX_TOKENS, prompt_lookup=PROMPT_LOOKUP)
    return modes
