"""Single steps at the large shapes: what a token, a tree, a draft and a cycle cost, against reading the weights."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence

import torch

from bench.gpu.machine import copy_gb_per_s, facts, host_ms, link_gb_per_s, median_ms, wait
from bench.gpu.sizes import random_head, random_target, step_bytes
from bench.gpu.stages import Bench, Table, in_words
from bench.gpu.targets import context_of, most_accepted, tree_of
from engine.cache import KVCache
from engine.engine import Work
from engine.graphs.capture import held_bytes
from engine.graphs.engine import GraphEngine
from engine.graphs.frame import Frame
from engine.graphs.steps import BUDGETS, Graphs
from engine.graphs.target import StaticForward
from engine.interfaces import Window
from engine.models.decoder import Decoder
from engine.policy import FixedPolicy
from engine.proposers.pairs.proposer import PairProposer
from engine.quantize import ScaledMatrix
from engine.sampling import Sampling
from engine.session import Session
from engine.tree import DraftTree

FORCED = {
    "Llama-3.1-8B, T=0": {"MT-bench": 6.13, "GSM8K": 6.23, "CNN/DM": 5.34, "T=1, MT-bench": 4.24},
    "Llama-3.3-70B, T=0": {"MT-bench": 5.63, "GSM8K": 6.15, "CNN/DM": 5.02, "T=1, MT-bench": 5.45},
}
"""Tokens per cycle that the EAGLE-3 paper reports (arXiv 2503.01840, table 1), and the issue's own thresholds."""
THRESHOLDS = (4.2, 5.0)


def describe(bench: Bench) -> list[Table]:
    """The device, and what it copies."""
    sizes, rows = bench.sizes, []
    for share in (4, 1):
        rate = copy_gb_per_s(bench.device, sizes.copy_bytes // share)
        rows.append([f"device to device, {sizes.copy_bytes // share / 1e9:.2g} GB, read and written", rate])
        bench.copy_gb_s = max(bench.copy_gb_s, rate)
    down, up = link_gb_per_s(bench.device, sizes.link_bytes)
    rows += [["device to pinned host memory", down], ["pinned host memory to device", up]]
    bench.figures |= {"copy_gb_s": bench.copy_gb_s, "link_down_gb_s": down, "link_up_gb_s": up}
    table = Table("Copies", ["what", "GB/s"], rows)
    return [Table("Device", ["fact", ""], [[k, v] for k, v in facts(bench.device).items()]), table]


def pool_tokens(bench: Bench) -> int:
    """Room for the longest context, and for the largest batch at the shortest."""
    sizes = bench.sizes
    return max(max(sizes.contexts) + 16 * sizes.prefill, max(sizes.batches) * (min(sizes.contexts) + 128))


def small_pair(bench: Bench) -> tuple[Decoder, PairProposer]:
    """8B of random weights and a head in the published proportions."""

    def make() -> tuple[Decoder, PairProposer]:
        room = pool_tokens(bench)
        target = random_target(bench.sizes.small, bench.sizes, bench.device, pool_tokens=room, kernels=bench.kernels)
        return target, random_head(target, pool_tokens=room)

    pair: tuple[Decoder, PairProposer] = bench.held(("random", bench.kernels), make)
    return pair


def filled(target: Decoder, context: int) -> KVCache:
    """A cache of so many positions of whatever is in the pool."""
    cache = target.new_cache()
    cache.reserve(context)
    cache.commit(list(range(context)))
    return cache


def binary(nodes: int, vocab: int) -> DraftTree:
    parents = torch.arange(-1, nodes - 1).div(2, rounding_mode="floor")
    return DraftTree(torch.arange(nodes) % vocab, parents, torch.ones(nodes), torch.zeros(nodes).long())


def static_step(target: Decoder, context: int, nodes: int, windows: int = 1) -> tuple[StaticForward, list[Window]]:
    """A static forward of so many trees, each behind a context of its own."""
    caches = [filled(target, context) for _ in range(windows)]
    trees = [binary(nodes, target.vocab_size) for _ in caches]
    for cache in caches:
        cache.reserve(nodes)
    pages = max(cache.num_pages for cache in caches) + 1
    sink = target.pool.allocate(None) * target.pool.page_tokens
    frame = Frame(windows, nodes, pages, sink, target.device, target.pool.page_tokens)
    given = [Window(cache, tree, "all") for cache, tree in zip(caches, trees, strict=True)]
    frame.fill(given)
    return StaticForward(target, frame, (), None), given


def close(step: StaticForward, windows: list[Window]) -> None:
    pool = windows[0].cache.pool
    for window in windows:
        window.cache.close()
    pool.release(step.frame.sink // pool.page_tokens)


def led_by(first: int, values: Sequence[int]) -> list[int]:
    """The same, with what targets speak of ahead of what the time box may have no room for."""
    return sorted(values, key=lambda value: value != first)


@torch.inference_mode()
def step_ms(bench: Bench, target: Decoder, context: int, nodes: int, windows: int = 1) -> float:
    step, given = static_step(target, context, nodes, windows)
    try:
        return median_ms(step.replay, bench.device, seconds=0.4)
    finally:
        close(step, given)


@torch.inference_mode()
def plain(bench: Bench, target: Decoder | None = None, name: str = "8B bf16") -> Iterator[Table]:
    """One token at a time against the time that reading the weights takes at the measured bandwidth."""
    target = target or small_pair(bench)[0]
    said = f"{bench.kernels} kernels"
    if bench.device.type == "cuda" and any(isinstance(part, ScaledMatrix) for part in vars(target.layers[0]).values()):
        said += ", products in eight bits by Triton's"
    header = ["context", "step ms, graph", "tokens/s", "ms, eager", "GB read", "GB/s", "% of copy bandwidth"]
    yield (table := Table(f"Plain decoding, {name}, {said}", header))
    for context in led_by(context_of(bench.sizes), bench.sizes.contexts):
        if bench.left < 0:
            break
        cached = 2 * target.config.num_layers * target.config.num_kv_heads * target.config.head_dim * context
        read = step_bytes(target) + cached * target.dtype.itemsize
        graph = step_ms(bench, target, context, 1)
        share = read / graph / 1e6 / bench.copy_gb_s if bench.copy_gb_s else float("nan")
        bench.figures |= {f"plain_ms {name} {context}": graph, f"plain_share {name} {context}": 100 * share}
        eager = _eager_ms(bench, target, context)
        table.rows.append([context, graph, 1e3 / graph, eager, read / 1e9, read / graph / 1e6, 100 * share])


def _eager_ms(bench: Bench, target: Decoder, context: int) -> float:
    """A token by the ordinary forward, the host's share in it."""
    cache = filled(target, context)
    cache.reserve(1)
    given = [Window(cache, binary(1, target.vocab_size), "all")]
    try:
        return host_ms(lambda: target.forward(given), bench.device, seconds=0.4)
    finally:
        cache.close()


@torch.inference_mode()
def verify(bench: Bench, target: Decoder | None = None, name: str = "8B bf16") -> Iterator[Table]:
    """A tree of so many nodes, over a plain step at the same context."""
    target = target or small_pair(bench)[0]
    header = ["nodes", "context", "ms", "x plain"]
    yield (table := Table(f"Verifying a tree, {name}", header))
    for context in led_by(context_of(bench.sizes), bench.sizes.contexts):
        for nodes in led_by(tree_of(bench.sizes), bench.sizes.nodes):
            if bench.left < 0:
                return
            ms, base = step_ms(bench, target, context, nodes), bench.figures.get(f"plain_ms {name} {context}")
            bench.figures[f"verify_ms {name} {context} {nodes}"] = ms
            table.rows.append([nodes, context, ms, ms / base if base else float("nan")])


def graph_engine(target: Decoder, head: PairProposer, budget: int) -> GraphEngine:
    return GraphEngine(Graphs(target, head, budgets=(budget,), most_windows=1), FixedPolicy(budget))


def decoding(engine: GraphEngine, context: int, prefill: int, *, reply: int = 1 << 20) -> Session:
    """A session that is some tokens into a reply behind so many of context."""
    prompt = [(7 * i) % engine.target.vocab_size for i in range(context)]
    session = engine.open("bench", prompt)
    engine.submit(session, Sampling(), max_tokens=reply)
    while session.turn is not None and session.turn.num_tokens < 2:
        engine.step([Work(session, max_tokens=prefill)])
    return session


@torch.inference_mode()
def cycles(bench: Bench, pair: tuple[Decoder, PairProposer] | None = None, name: str = "8B bf16") -> Iterator[Table]:
    """Draft, verify, choose, accept and commit: the whole cycle, its two launches apart, and what the host adds."""
    target, head = pair or small_pair(bench)
    header = ["nodes", "context", "levels", "cycle ms", "draft ms", "verify ms", "forward ms", "draft % of cycle"]
    yield (table := Table(f"EAGLE-3 cycles, {name}", [*header, "all but the forward %", "s to capture"]))
    for context in led_by(context_of(bench.sizes), bench.sizes.contexts[:2]):
        for budget in led_by(tree_of(bench.sizes), bench.sizes.budgets):
            if bench.left < 0:
                return
            try:
                table.rows.append([budget, context, *_cycle(bench, target, head, name, context, budget)])
            except Exception as error:
                traceback.print_exc()
                table.rows.append([budget, context, in_words(error), *[float("nan")] * 7])


def _cycle(
    bench: Bench, target: Decoder, head: PairProposer, name: str, context: int, budget: int
) -> tuple[float, ...]:
    """A row of ``cycles``, from its levels on."""
    started = time.perf_counter()
    engine = graph_engine(target, head, budget)
    try:
        session = decoding(engine, context, bench.sizes.prefill)
        cycle = engine.graphs.cycle(budget)
        captured = time.perf_counter() - started
        draw = median_ms(cycle.replay_draft, bench.device, seconds=0.3)
        check = median_ms(cycle.replay_verify, bench.device, seconds=0.3)
        engine.forget_device()
        whole = _whole_cycle_ms(engine, session)
        engine.close(session)
    finally:
        engine.graphs.release()
    forward = step_ms(bench, target, context, budget)
    shares = {"draft": 100 * draw / whole, "beside": 100 * (1 - forward / whole)}
    bench.figures |= {f"cycle_{what} {name} {context} {budget}": share for what, share in shares.items()}
    bench.figures[f"cycle_ms {name} {context} {budget}"] = whole
    return cycle.levels, whole, draw, check, forward, *shares.values(), captured


def _whole_cycle_ms(engine: GraphEngine, session: Session, steps: int = 20) -> float:
    """Median milliseconds of a step of the engine, the host's share in it."""
    taken = []
    for _ in range(steps):
        before = engine.cycles
        started = time.perf_counter()
        engine.step([Work(session)])
        if engine.cycles > before:
            taken.append(1e3 * (time.perf_counter() - started))
    return sorted(taken)[len(taken) // 2]


def forced(bench: Bench, name: str = "8B bf16", paper: str = "Llama-3.1-8B, T=0") -> list[Table]:
    """PROJECTED tokens per second: the measured cycle under acceptance lengths that others have published."""
    rows = []
    lengths = {**{f"threshold {length}": length for length in THRESHOLDS}, **FORCED[paper]}
    for key, cycle in bench.figures.items():
        if not key.startswith(f"cycle_ms {name} "):
            continue
        context, budget = key.removeprefix(f"cycle_ms {name} ").split()
        plain_ms = bench.figures.get(f"plain_ms {name} {context}", float("nan"))
        for what, length in lengths.items():
            if length > most_accepted(int(budget)):
                continue
            rows.append([budget, context, what, length, 1e3 * length / cycle, length * plain_ms / cycle])
    header = ["nodes", "context", "acceptance from", "tokens a cycle", "tokens/s, projected", "x plain, projected"]
    return [Table(f"PROJECTED from published acceptance, {paper.split(',')[0]}", header, rows)]


@torch.inference_mode()
def start(bench: Bench) -> Iterator[Table]:
    """What a start takes: every static step of an engine with a pair head, captured, and the memory that they keep.

    The first time kernels are compiled besides, or read from the disk where an earlier process has compiled them; the
    second time this process has them loaded.
    """
    target, head = small_pair(bench)
    title = "Static steps captured at start: windows of 1 to 64 nodes for 1 to 8 calls, drafts and cycles"
    yield (table := Table(title, ["", "steps", "s", "GB that they keep"]))
    for what in ("kernels compiled or read from the disk", "kernels compiled and loaded"):
        if bench.left < 0:
            break
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
        before, began = held_bytes(bench.device), time.perf_counter()
        graphs = Graphs(target, head, budgets=BUDGETS if bench.device.type == "cuda" else bench.sizes.budgets)
        graphs.prepare()
        wait(bench.device)
        seconds, kept = time.perf_counter() - began, (held_bytes(bench.device) - before) / 1e9
        table.rows.append([what, graphs.num_steps, seconds, kept])
        graphs.release()
        del graphs
        if len(table.rows) == 2:
            bench.figures |= {"capture_s": seconds, "capture_gb": kept}


@torch.inference_mode()
def batches(bench: Bench) -> Iterator[Table]:
    """Several calls in one forward: a token each, and a small tree each."""
    target = small_pair(bench)[0]
    context = min(bench.sizes.contexts)
    header = ["calls", "ms, a token each", "tokens/s in all", "ms, 8 nodes each", "x a token each"]
    yield (table := Table(f"Calls that share a forward, {context} tokens of context each", header))
    for windows in bench.sizes.batches:
        if bench.left < 0 or windows * (context + 64) > target.pool.num_pages * target.pool.page_tokens:
            table.rows.append([windows, *[float("nan")] * 4])
            continue
        one = step_ms(bench, target, context, 1, windows)
        tree = step_ms(bench, target, context, 8, windows)
        table.rows.append([windows, one, 1e3 * windows / one, tree, tree / one])
