"""Plain counts, no clock: how much of each method's drafts is accepted, by temperature, kind of text and tree."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from bench import harness
from bench.acceptance import Tally, ngram_table
from bench.drafters.methods import Method
from bench.ngram import NgramProposer, NgramTable
from engine.config import EngineConfig
from engine.engine import Engine, Work
from engine.interfaces import Proposer
from engine.load import load_proposer, load_target_for
from engine.models.decoder import Decoder
from engine.policy import FixedPolicy
from engine.sampling import Sampling
from training.dialogues import courier

TREE, CHAIN = 24, 7
"""Nodes, the root included."""
TEMPERATURES = (0.0, 0.7, 1.0)
IN_DOMAIN, HELD_OUT, OTHER = "in domain", "held out", "other style"
"""Calls as trained; with names and paraphrases that never were; and another business in other words altogether, which
neither drafters nor target ever saw."""
SPLITS = (IN_DOMAIN, HELD_OUT, OTHER)
KINDS = ("all", "text", "tool", "early", "late")
LATE = 500
"""Tokens of prompt behind which a reply counts as late in its call: about a third of them do."""
MAX_TOKENS = 64
"""Of a reply: so small a model, sampled, now and then says the same for as long as it is let."""


@dataclass(frozen=True)
class Setting:
    """Under which replies were made."""

    split: str
    shape: str = "tree"
    temperature: float = 0.0
    coupled: bool = False


@dataclass(frozen=True)
class Counted:
    """One method under one setting. per_forward: tokens for each of the target's forwards, by kind of reply.
    positions: acceptance at each draft position, of the steps whose tokens before it were accepted; a step at which
    nothing was drafted there counts as one where it was not. table_bytes: of a table that all calls share.
    """

    method: str
    setting: Setting
    replies: int
    per_forward: dict[str, float]
    positions: list[float]
    table_bytes: int = 0


def settings(couples: bool) -> list[Setting]:
    """couples: whether the method can share the turn's noise."""
    found = []
    for split in SPLITS:
        found.append(Setting(split, "chain"))
        for temperature in TEMPERATURES:
            found.append(Setting(split, temperature=temperature))
            if temperature and couples:
                found.append(Setting(split, temperature=temperature, coupled=True))
    return found


def prompts_of(split: str, method: Method, calls: int) -> list[harness.Prompt]:
    tokenizer = harness.load_tokenizer(method.model)
    if split == OTHER:
        return harness.prompts_of(tokenizer, (courier.dialogue(harness.SEED + number) for number in range(calls)))
    return harness.prompts(tokenizer, harness.HELD_OUT if split == HELD_OUT else harness.IN_DOMAIN, calls)


@cache
def _ngrams(model: Path, vocab_size: int) -> NgramTable:
    return ngram_table(harness.load_tokenizer(model), vocab_size)


def load(method: Method, target: Decoder, config: EngineConfig, *, chain: bool = False) -> Proposer:
    """The method's drafter beside its target; the 5-gram table is counted on EAGLE-3's own training corpus."""
    if not method.spec:
        table = _ngrams(method.model, target.vocab_size)
        return NgramProposer(table, branches=1) if chain else NgramProposer(table)
    shape = "chain" if chain else "tree"
    return load_proposer(replace(config, drafter=method.spec, draft_shape=shape), target)


def count(job: tuple[Method, int]) -> list[Counted]:
    """All settings of one method; runs in a process of its own."""
    method, calls = job
    torch.set_num_threads(1)
    config = EngineConfig(str(method.model), pool_tokens=16_384)
    target = load_target_for(config)
    stop = harness.stop_tokens(method.model)
    prompts = {split: prompts_of(split, method, calls) for split in SPLITS}
    tree = load(method, target, config)
    chosen = settings(tree.noise_levels > 0)
    table_bytes = _ngrams(method.model, target.vocab_size).nbytes if not method.spec else 0
    found = []
    for shape in ("tree", "chain"):
        proposer = tree if shape == "tree" else load(method, target, config, chain=True)
        engine = Engine(target, proposer, FixedPolicy(TREE if shape == "tree" else CHAIN))
        for split, asked in prompts.items():
            wanted = [setting for setting in chosen if (setting.split, setting.shape) == (split, shape)]
            for setting, tallies in measure(engine, asked, wanted, stop).items():
                per_forward = {kind: tallies[kind].per_forward for kind in KINDS if tallies[kind].forwards}
                positions = tallies["all"].positions(6)
                found.append(Counted(method.name, setting, len(asked), per_forward, positions, table_bytes))
    return found


def measure(
    engine: Engine, prompts: Sequence[harness.Prompt], settings: Sequence[Setting], stop: frozenset[int]
) -> dict[Setting, dict[str, Tally]]:
    """Every prompt is read once; its replies under all settings are made by forks of it."""
    tallies = {setting: {kind: Tally() for kind in KINDS} for setting in settings}
    for number, prompt in enumerate(prompts):
        base = harness.warm(engine, prompt.ids)
        for setting in settings:
            engine.drafting.coupled = setting.coupled
            session = engine.fork(base, "reply", seed=number)
            sampling = Sampling(setting.temperature)
            turn = engine.submit(session, sampling, max_tokens=MAX_TOKENS, stop_tokens=stop)
            while turn.finish is None:
                engine.step([Work(session)])
            for kind in ("all", "tool" if prompt.tool else "text", "late" if len(prompt.ids) > LATE else "early"):
                tallies[setting][kind].add(turn)
            engine.close(session)
        engine.close(base)
    return tallies


def count_all(methods: Sequence[Method], calls: int, processes: int) -> list[Counted]:
    """Every method under every setting, methods shared out over processes."""
    found: list[Counted] = []
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for counted in pool.imap(count, [(method, calls) for method in methods]):
            at = next(c for c in counted if c.setting == Setting(IN_DOMAIN))
            print(f"{at.method}: {at.per_forward['all']:.2f} tokens per forward in domain, greedy", flush=True)
            found += counted
    return found
