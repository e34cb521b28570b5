"""Builds a running engine from its configuration: weights, drafter, measured costs, policy, text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from engine import records
from engine.arrival import ArrivalScheduler
from engine.config import EngineConfig
from engine.constraint import ToolConstraint
from engine.costs import measure_costs
from engine.engine import Engine
from engine.errors import ModelError
from engine.grammar.library import GrammarLibrary
from engine.graphs.capture import held_bytes
from engine.graphs.draft import GraphProposer
from engine.graphs.engine import GraphEngine
from engine.graphs.steps import Graphs
from engine.hibernation import Hibernation
from engine.host import EngineHost
from engine.interfaces import Proposer, Target
from engine.measured_policy import MeasuredPolicy
from engine.models.decoder import Decoder, load_target
from engine.pace import Pace
from engine.parallel import Shard, device_of
from engine.policy import DraftPolicy, FixedPolicy
from engine.prefixes import Prefixes
from engine.proposers.setup import Setup
from engine.proposers.table import PROPOSERS, cheaper_ways, load_drafters, parse
from engine.ranks.launch import Ranks
from engine.ranks.lead import LeadingMover, LeadingTarget
from engine.ranks.orders import Prepare
from engine.schedule import DeadlineScheduler, Scheduler
from engine.text.codec import Codec
from engine.text.reply import ReplyReader

_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_target_for(config: EngineConfig, shard: Shard | None = None, device: torch.device | None = None) -> Decoder:
    """The target alone, or a rank's share of it on the rank's device. Raises ModelError for what cannot be served."""
    if config.dtype not in _DTYPES:
        raise ModelError(f"dtype {config.dtype!r} is not one of {', '.join(_DTYPES)}")
    return load_target(
        config.model,
        dtype=_DTYPES[config.dtype],
        device=device or config.device,
        pool_tokens=config.pool_tokens,
        page_tokens=config.page_tokens,
        max_context_tokens=config.max_context_tokens,
        kernels=config.kernels,
        precision=config.weights,
        shard=shard,
    )


def load_host(config: EngineConfig, ranks: Ranks | None = None) -> tuple[EngineHost, records.Ready]:
    """Everything an engine process runs. ranks: the others that hold the model with it.

    Raises ModelError by name for whatever cannot be served.
    """
    torch.set_num_threads(config.threads)
    use_device(config)
    target = load_target_for(config) if ranks is None else _load_leading(config, ranks)
    codec = Codec.load(config.model, target.vocab_size)
    proposer = load_proposer(config, target)
    if config.captures:
        engine, note = graph_engine(target, proposer, config, ranks)
    else:
        engine, note = measured_engine(_led(target, ranks), proposer, config), ""

    def new_reader(command: records.Submit) -> ReplyReader:
        return reader_of(codec, command)

    scheduler = scheduler_for(config)
    grammars = GrammarLibrary(codec, target.vocab_size, target.device)
    prefixes = Prefixes(engine)
    hibernation = Hibernation(engine, config.host_cache_bytes, beginnings=prefixes)
    host = EngineHost(engine, scheduler, new_reader, grammars, hibernation, prefixes)
    ready = records.Ready(
        model=Path(config.model).name,
        max_context_tokens=target.max_context_tokens,
        pages=target.pool.num_pages,
        page_tokens=target.pool.page_tokens,
        costs="; ".join(filter(None, (describe(engine), note))),
    )
    return host, ready


def use_device(config: EngineConfig) -> None:
    """Make the configured GPU the current one: graphs, events and kernels go to that, whatever their tensors are on.

    Raises ModelError where it is not there.
    """
    device = device_of(config.device, 0)
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _load_leading(config: EngineConfig, ranks: Ranks) -> Decoder:
    """Rank 0's share of the target, whose pages are moved in every rank, once all have theirs."""
    target = load_target_for(config, ranks.shard, device_of(config.device, 0))
    ranks.wait_until_loaded()
    target.pool.mover = LeadingMover(target.pool.kv, target.pool.page_tokens, ranks.tell)
    return target


def _led(target: Target, ranks: Ranks | None) -> Target:
    return target if ranks is None else LeadingTarget(target, ranks.tell)


def reader_of(codec: Codec, command: records.Submit) -> ReplyReader:
    """What reads the reply to a command as text, and its tool calls where it may make some."""
    constraint = command.constraint
    if not isinstance(constraint, ToolConstraint) or constraint.choice == "none":
        return ReplyReader(codec, command.stop_strings)
    names, alone = {name for name, _ in constraint.tools}, bool(constraint.text) or not constraint.form.mark
    return ReplyReader(codec, command.stop_strings, calls=constraint.form, names=names, alone=alone)


def load_proposer(config: EngineConfig, target: Decoder) -> Proposer:
    """What the configured mode needs of the configured drafter: several merged, one, or the one that drafts nothing.

    Raises ModelError.
    """
    if config.draft_shape not in ("tree", "chain"):
        raise ModelError(f"draft_shape {config.draft_shape!r} is neither 'tree' nor 'chain'")
    setup = Setup(
        target,
        Path(config.model),
        config.pool_tokens,
        config.page_tokens,
        rope_theta=config.draft_rope_theta,
        taps=config.draft_layer_ids,
        chain=config.draft_shape == "chain",
        kernels=config.kernels,
    )
    return load_drafters(needed_drafter(config), setup)


def needed_drafter(config: EngineConfig) -> str:
    """Of the configured drafter, what the mode ever asks: one that only observes costs memory and every step's time.

    A mode that is not known is left for ``choose_policy`` to refuse. Raises ModelError for drafters that are not known.
    """
    named = parse(config.drafter or "none")
    frugal = [(name, path) for name, path in named if PROPOSERS[name].frugal]
    if config.draft_mode == "plain":
        named = parse("none")
    elif frugal and config.draft_mode == "+".join(name for name, _ in frugal):
        named = frugal
    return "+".join(f"{name}:{path}" if path else name for name, path in named)


def measured_engine(target: Target, proposer: Proposer, config: EngineConfig) -> Engine:
    """An engine that knows what its steps cost here, with the configured policy. Raises ModelError for none of that
    name.
    """
    cheaper = cheaper_ways(proposer)
    pace, policy = measured(target, [proposer, *cheaper], config)
    return Engine(target, proposer, policy, coupled=config.couples, cheaper=cheaper, pace=pace)


@torch.inference_mode()
def graph_engine(
    decoder: Decoder, proposer: Proposer, config: EngineConfig, ranks: Ranks | None = None
) -> tuple[Engine, str]:
    """(the same with static steps, a line for people on what they took). All are captured before this returns.

    With a pair head alone (EAGLE-3, MTP) whole cycles are static; with any other drafter, the target's forwards, and so
    where several ranks have to join each forward.
    """
    started, before = time.monotonic(), held_bytes(decoder.device)
    graphs = Graphs(decoder, proposer)
    if ranks is not None:
        ranks.tell(Prepare(tuple(proposer.taps), graphs.target.sink))
    graphs.prepare(cycles=ranks is None)
    taken, seconds = held_bytes(decoder.device) - before, time.monotonic() - started
    note = f"static steps ready in {seconds:.1f} s, {taken / 1e6:.0f} MB"
    if ranks is not None or not isinstance(graphs.proposer, GraphProposer):
        return measured_engine(_led(graphs.target, ranks), graphs.proposer, config), note
    pace, policy = measured(graphs.target, [graphs.proposer], config)
    return GraphEngine(graphs, policy, coupled=config.couples, pace=pace), note


def measured(target: Target, ways: Sequence[Proposer], config: EngineConfig) -> tuple[Pace, DraftPolicy]:
    """What steps cost here, and the configured policy."""
    pace = Pace(measure_costs(target, ways))
    return pace, choose_policy(config, pace, [way.name for way in ways])


def describe(engine: Engine) -> str:
    """One line for people: what steps cost here."""
    costs, ways = engine.pace.costs, engine.drafting.ways
    assert costs is not None
    drafting = zip(*costs.draft, strict=True)
    sizes = zip(costs.nodes, costs.verify, drafting, strict=True)
    steps = ", ".join(f"{n}: {1e3 * v:.2f}+" + "/".join(f"{1e3 * d:.2f}" for d in ds) for n, v, ds in sizes)
    names = " or ".join(way.name for way in ways)
    return f"drafter {names}; ms to verify + to draft, by nodes: {steps}; {1e3 * costs.window:.2f} for each call more"


def scheduler_for(config: EngineConfig) -> Scheduler:
    """The configured order of work. Raises ModelError for one that is not known."""
    if config.scheduling == "deadline":
        if config.speaking_rate <= 0.0:
            raise ModelError(f"speaking_rate is {config.speaking_rate}; more than 0 tokens a second were expected")
        return DeadlineScheduler(config.prefill_chunk_tokens, config.speaking_rate)
    if config.scheduling == "fcfs":
        return ArrivalScheduler(config.prefill_chunk_tokens, config.speaking_rate)
    raise ModelError(f"scheduling {config.scheduling!r} is neither 'deadline' nor 'fcfs'")


def choose_policy(config: EngineConfig, pace: Pace, ways: Sequence[str]) -> DraftPolicy:
    """The configured policy: measured, of one way alone, or a fixed size. Raises ModelError for what is not known."""
    way = 0
    if config.draft_mode not in ("auto", "plain"):
        if config.draft_mode not in ways:
            known = ", ".join(["auto", "plain", *ways])
            raise ModelError(f"draft_mode {config.draft_mode!r} is not one of these: {known}")
        way = ways.index(config.draft_mode)
    if config.draft_mode == "plain":
        return FixedPolicy(1)
    if config.draft_nodes == "auto":
        only = None if config.draft_mode == "auto" else way
        return MeasuredPolicy(pace, ways, only=only)
    try:
        nodes = int(config.draft_nodes)
    except ValueError as error:
        raise ModelError(f"draft_nodes is {config.draft_nodes!r}; a number or 'auto' was expected") from error
    return FixedPolicy(nodes, way)
