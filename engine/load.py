"""Builds a running engine from its configuration: weights, drafter, measured costs, policy, text."""

from __future__ import annotations

from pathlib import Path

import torch

from engine import records
from engine.config import EngineConfig
from engine.constraint import ToolConstraint
from engine.costs import measure_costs
from engine.engine import Engine
from engine.errors import ModelError
from engine.grammar.library import GrammarLibrary
from engine.host import EngineHost
from engine.interfaces import Proposer
from engine.models.decoder import Decoder, load_target
from engine.pace import Pace
from engine.policy import DraftPolicy, FixedPolicy, MeasuredPolicy, StepCosts
from engine.proposers.setup import Setup
from engine.proposers.table import load_drafters
from engine.schedule import Scheduler
from engine.text.codec import Codec
from engine.text.reply import ReplyReader

_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_target_for(config: EngineConfig) -> Decoder:
    """The target alone. Raises ModelError for whatever cannot be served."""
    if config.dtype not in _DTYPES:
        raise ModelError(f"dtype {config.dtype!r} is not one of {', '.join(_DTYPES)}")
    return load_target(
        config.model,
        dtype=_DTYPES[config.dtype],
        device=config.device,
        pool_tokens=config.pool_tokens,
        page_tokens=config.page_tokens,
        max_context_tokens=config.max_context_tokens,
    )


def load_host(config: EngineConfig) -> tuple[EngineHost, records.Ready]:
    """Everything an engine process runs. Raises ModelError by name for whatever cannot be served."""
    torch.set_num_threads(config.threads)
    target = load_target_for(config)
    codec = Codec.load(config.model, target.vocab_size)
    proposer = load_proposer(config, target)
    costs = measure_costs(target, proposer)
    engine = Engine(target, proposer, _policy(config, costs), coupled=config.couples)

    def new_reader(command: records.Submit) -> ReplyReader:
        return reader_of(codec, command)

    scheduler = Scheduler(config.prefill_chunk_tokens)
    grammars = GrammarLibrary(codec, target.vocab_size, target.device)
    host = EngineHost(engine, scheduler, new_reader, grammars, Pace(costs))
    ready = records.Ready(
        model=Path(config.model).name,
        max_context_tokens=target.max_context_tokens,
        pages=target.pool.num_pages,
        page_tokens=target.pool.page_tokens,
        costs=describe(costs, proposer),
    )
    return host, ready


def reader_of(codec: Codec, command: records.Submit) -> ReplyReader:
    """What reads the reply to a command as text, and its tool calls where it may make some."""
    constraint = command.constraint
    if not isinstance(constraint, ToolConstraint) or constraint.choice == "none":
        return ReplyReader(codec, command.stop_strings)
    names, alone = {name for name, _ in constraint.tools}, bool(constraint.text) or not constraint.form.mark
    return ReplyReader(codec, command.stop_strings, calls=constraint.form, names=names, alone=alone)


def load_proposer(config: EngineConfig, target: Decoder, *, chain: bool = False) -> Proposer:
    """The configured drafter, several of them merged, or the one that drafts nothing."""
    setup = Setup(
        target,
        Path(config.model),
        config.pool_tokens,
        config.page_tokens,
        rope_theta=config.draft_rope_theta,
        taps=config.draft_layer_ids,
        chain=chain,
    )
    return load_drafters(config.drafter or "none", setup)


def describe(costs: StepCosts, proposer: Proposer) -> str:
    """One line for people: what steps cost here."""
    sizes = zip(costs.nodes, costs.verify, costs.draft, strict=True)
    steps = ", ".join(f"{n}: {1e3 * v:.2f}+{1e3 * d:.2f}" for n, v, d in sizes)
    return f"drafter {proposer.name}; ms to verify + to draft, by nodes: {steps}"


def _policy(config: EngineConfig, costs: StepCosts) -> DraftPolicy:
    if config.draft_nodes == "auto":
        return MeasuredPolicy(costs)
    try:
        nodes = int(config.draft_nodes)
    except ValueError as error:
        raise ModelError(f"draft_nodes is {config.draft_nodes!r}; a number or 'auto' was expected") from error
    return FixedPolicy(nodes)
