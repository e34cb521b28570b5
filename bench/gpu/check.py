"""Whether the kernels compute what they should, before anything is timed: against float64, with fresh random inputs.

Where they do not, the stages behind run with plain kernels, and say so.
"""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.gpu.calls import asked
from bench.gpu.cases import random_case, random_choice, several
from bench.gpu.stages import Bench, Table
from engine.engine import Engine, Work
from engine.graphs.engine import GraphEngine
from engine.graphs.steps import Graphs
from engine.kernels.ops import Choice, Ops, ops_for
from engine.kernels.plain import PlainOps
from engine.models.decoder import load_target
from engine.models.layers import HeadNorms, Rotary
from engine.policy import FixedPolicy
from engine.proposers.eagle3 import load_eagle3
from engine.quantize import PRECISIONS, ScaledMatrix, quantise
from engine.sampling import Sampler, Sampling
from engine.session import Turn

TOLERANCE = {torch.bfloat16: 1e-2, torch.float32: 1e-3}
"""Of |got - wanted| / |wanted|, in norms. bfloat16 keeps 8 bits, of inputs, weights and results."""
PAGE_TOKENS = 16
"""As served."""
REPLIES_SHARE = 0.35
"""Of the time box, which no kernel is checked in."""
SMALL_HEAD = 64
"""Width of the heads that are run in float32 here: the trained model's. Wider ones take ten times as long to compile,
and what is measured behind this is in bfloat16.
"""
Result = tuple[str, str, float, float, bool]
"""(part, case, error, tolerance, whether it is within)."""


def check(bench: Bench) -> Iterator[Table]:
    """Every kernel, then whole replies: the same text by graphs and by the eager loop, and by plain kernels."""
    yield (table := Table("Kernels against float64", ["part", "case", "relative error", "tolerance", "within"]))
    rows, interpreted = table.rows, bench.device.type != "cuda"
    try:
        ops = ops_for(bench.device, "plain" if bench.kernels == "plain" else "triton")
    except Exception as error:
        bench.kernels = "plain"
        rows.append(["triton", "is not there", str(error), "", False])
    else:
        _kernels(bench, ops, rows)
        fine = all(row[-1] for row in rows)
        if bench.kernels == "auto":
            bench.kernels = "triton" if fine and not interpreted else "plain"
        elif not fine:
            bench.kernels = "plain"
    yield from replies(bench)


def _kernels(bench: Bench, ops: Ops, rows: list[list[Any]]) -> None:
    """Check every part. What is wrong is a figure at once; what is right, where all of it was checked in time.

    A part of the time box is the replies': kernels that take long to compile must not leave them out.
    """
    right: dict[str, bool] = {}
    for_replies = REPLIES_SHARE * bench.left
    for part in PARTS:
        of_part: list[list[Any]] = []
        finished = True
        try:
            for result in part(ops, bench.device, small=bench.device.type != "cuda"):
                of_part.append(list(result))
                if bench.left < for_replies:
                    finished = False
                    break
        except Exception:
            of_part.append([part.__name__, "raised", traceback.format_exc().splitlines()[-1], "", False])
            traceback.print_exc()
        rows += of_part
        if finished or not all(row[-1] for row in of_part):
            right[part.__name__] = all(row[-1] for row in of_part)
    if "products" in right:
        bench.figures["products_correct"] = right["products"]
    if ops.name == "triton" and (len(right) == len(PARTS) or not all(right.values())):
        bench.figures["kernels_correct"] = all(right.values())


def _error(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-30))


def _result(part: str, case: str, got: Tensor, wanted: Tensor) -> Result:
    error, most = _error(got, wanted), TOLERANCE[got.dtype]
    return part, case, error, most, bool(error <= most)  # NaN is not


def attention(ops: Ops, device: torch.device, *, small: bool) -> Iterable[Result]:
    """Trees of 1 to 64 nodes, prefill chunks, and several windows with nodes that were computed before, over shuffled
    pages: of the large shapes in bfloat16, and of the trained model's in float32.
    """
    rng = random.Random(time.time_ns())
    shapes = [(4, 2, SMALL_HEAD)] if small else [(32, 8, 128), (64, 8, 128), (4, 2, SMALL_HEAD)]
    for heads, kv_heads, head_dim in shapes:
        cases = [
            (
                f"{rows} rows behind {length}, {'chain' if chains else 'tree'}",
                random_case(rng, device, rows=rows, length=length, chains=chains, page_tokens=PAGE_TOKENS),
            )
            for rows, length, chains in ([(3, 40, False)] if small else _WINDOWS)
        ]
        most = (5, 40) if small else (40, 3000)
        for _ in range(1 if small else 3):
            case = several(rng, device, page_tokens=PAGE_TOKENS, most_rows=most[0], most_length=most[1])
            cases.append((f"windows behind {case.lengths}, of which computed {case.computed}", case))
        dtype = torch.float32 if head_dim == SMALL_HEAD else torch.bfloat16
        for name, case in cases:
            query = torch.randn(case.rows.num_rows, heads, head_dim, device=device).to(dtype)
            kv = torch.randn(2, case.slots, kv_heads, head_dim, device=device).to(dtype)
            out = ops.attend(query, kv, case.rows)
            wanted = PlainOps().attend(query.double(), kv.double(), case.rows)
            yield _result("attention", f"{heads}/{kv_heads} heads of {head_dim}, {name}, {_name(dtype)}", out, wanted)


_WINDOWS = [(1, 0, False), (1, 4097, False), (8, 1000, False), (32, 4096, False), (60, 777, False), (64, 63, False)]
_WINDOWS += [(256, 0, True), (200, 3000, True), (100, 500, False)]


def norms(ops: Ops, device: torch.device, *, small: bool) -> Iterable[Result]:
    for n, d in [(2, 96)] if small else [(1, 4096), (64, 4096), (64, 8192), (3, 1000)]:
        for dtype in (torch.float32,) if small else (torch.bfloat16, torch.float32):
            x, delta = (torch.randn(n, d, device=device).to(dtype) for _ in range(2))
            weight = (1 + 0.2 * torch.randn(d, device=device)).to(dtype)
            added, normed = ops.add_norm(x, delta, weight, 1e-5)
            total = x.double() + delta.double()
            wanted = total * (total.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()
            yield _result("residual and norm", f"[{n}, {d}] {_name(dtype)}, sum", added, total)
            yield _result("residual and norm", f"[{n}, {d}] {_name(dtype)}", normed, wanted)


def gates(ops: Ops, device: torch.device, *, small: bool) -> Iterable[Result]:
    for n, inner in [(2, 96)] if small else [(1, 14_336), (64, 28_672), (5, 999)]:
        for dtype in (torch.float32,) if small else (torch.bfloat16, torch.float32):
            gate_up = (2 * torch.randn(n, 2 * inner, device=device)).to(dtype)
            gate, up = gate_up.double().chunk(2, -1)
            yield _result("SwiGLU", f"[{n}, {inner}] {_name(dtype)}", ops.gate(gate_up), gate * gate.sigmoid() * up)


def writes(ops: Ops, device: torch.device, *, small: bool) -> Iterable[Result]:
    rng = random.Random(time.time_ns())
    for heads, kv_heads, head_dim in [(4, 2, 64)] if small else [(4, 2, 64), (32, 8, 128)]:
        for dtype in (torch.float32,) if small else (torch.bfloat16, torch.float32):
            case = random_case(rng, device, rows=3 if small else 40, length=20 if small else 900, chains=False)
            settings = {"rope_type": "default", "rope_theta": 500_000.0}
            rotary = Rotary(settings, head_dim, 2048, dtype, device)
            exact = Rotary(settings, head_dim, 2048, torch.float64, device)
            weights = [1 + 0.2 * torch.randn(head_dim, device=device).to(dtype) for _ in range(2)]
            qkv = torch.randn(case.rows.num_rows, heads + 2 * kv_heads, head_dim, device=device).to(dtype)
            for normed in (False, True):
                kv = torch.zeros(2, case.slots, kv_heads, head_dim, device=device, dtype=dtype)
                wide = kv.double()
                got = ops.write(qkv, HeadNorms(*weights, 1e-5) if normed else None, kv, case.rows, rotary)
                head_norms = HeadNorms(*(weight.double() for weight in weights), 1e-5) if normed else None
                wanted = PlainOps().write(qkv.double(), head_norms, wide, case.rows, exact)
                name = f"heads of {head_dim}, {_name(dtype)}{', normed' if normed else ''}"
                yield _result("RoPE and cache", name + ", queries", got, wanted)
                yield _result("RoPE and cache", name + ", keys and values", kv, wide)


def choices(ops: Ops, device: torch.device, *, small: bool) -> Iterable[Result]:
    """Tokens, which must be those of the sampler's rule with the same noise, row by row."""
    rng = random.Random(time.time_ns())
    for n, vocab in [(3, 300)] if small else [(1, 128_256), (60, 128_256), (64, 151_936)]:
        for filters in (False, True):
            logits = (3 * torch.randn(n, vocab, device=device)).bfloat16()
            choice = random_choice(rng, device, n, vocab, filters=filters)
            got, wanted = ops.choose(logits, choice), by_the_rule(ops, logits, choice)
            settled = got >= 0
            wrong = float((settled & (got != wanted)).sum() + (~settled).sum() * (not filters))
            name = f"[{n}, {vocab}]{', filters' if filters else ''}, {int((~settled).sum())} not settled"
            yield "choosing", name, wrong, 0.0, wrong == 0
    seed = torch.randint(2**62, (4,), device=device)
    wanted = PlainOps().noise(seed, seed % 1000, 5000)
    error = float((ops.noise(seed, seed % 1000, 5000) - wanted).abs().max())
    yield "noise", "[4, 5000]", error, 1e-5, error <= 1e-5


def by_the_rule(ops: Ops, logits: Tensor, choice: Choice) -> Tensor:
    """int64 [n]: what ``Sampler.choose`` says row by row, with the noise of ``ops``."""
    vocab = logits.shape[1]
    sampler, said = Sampler(vocab, logits.device), []
    for row in range(logits.shape[0]):
        facts = (choice.temperature, choice.top_k, choice.top_p, choice.min_p)
        temperature, top_k, top_p, min_p = (values[row].item() for values in facts)
        allowed, here = None, slice(row, row + 1)
        if choice.allowed is not None:
            ids = torch.arange(vocab, device=logits.device)
            allowed = ((choice.allowed[row, ids // 32] >> (ids % 32)) & 1).bool()[None]
        noise = ops.noise(choice.seed[here], choice.index[here], vocab)
        sampling = Sampling(float(temperature), int(top_k), float(top_p), float(min_p))
        said.append(int(sampler.choose(logits[here].float(), sampling, noise=noise, allowed=allowed)))
    return torch.tensor(said, device=logits.device)


def products(ops: Ops, device: torch.device, *, small: bool) -> Iterable[Result]:
    """Matrices in eight bits, against what they stand for. Their kernel is not one of ``ops``."""
    for n, inputs, outputs in [(2, 96, 40)] if small else [(1, 4096, 6144), (32, 14_336, 4096), (300, 4096, 4096)]:
        for name, kind in PRECISIONS.items():
            if kind is None:
                continue
            matrix = quantise(torch.randn(outputs, inputs, device=device), kind)
            blocks = torch.rand(outputs, -(-inputs // 128), device=device) + 0.1
            by_block = ScaledMatrix(torch.randn(outputs, inputs, device=device).mul_(20).to(kind), blocks, 128)
            # In float32 its products are unrolled, which takes long to compile: few rows are enough there.
            for dtype in (torch.float32,) if small else (torch.bfloat16, torch.float32)[: 2 if n == 1 else 1]:
                x = torch.randn(n, inputs, device=device).to(dtype)
                for scales, each in (("row", matrix), ("block", by_block)):
                    wanted = x.double() @ each.full(torch.float64).T
                    case = f"[{n}, {inputs}] {_name(dtype)}, scales by {scales}"
                    yield _result(f"product, {name}", case, each.linear(x), wanted)


PARTS = (attention, norms, gates, writes, choices, products)


@dataclass
class Said:
    """What one loop made of the prompts. steps, accepted: of the greedy replies, which every loop makes alike."""

    replies: list[list[int]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    accepted: int = 0


def replies(bench: Bench) -> Iterator[Table]:
    """Greedy and sampled replies of the trained model: eager and plain, eager with the kernels, and by graphs.

    The text is the same however wrong a draft is; that drafts are as good shows in the steps that it takes.
    """
    title = "Replies of the trained model in float32 that are those of the eager loop with plain kernels"
    header = ["loop", "kernels", "the same", "steps, greedy", "drafts accepted, greedy", "cycles"]
    yield (table := Table(title, header))
    model, device = bench.model, bench.device
    questions = asked(bench, 8 if device.type == "cuda" else 1)
    longest = min(2048, bench.sizes.small.max_positions)
    said: dict[str, Said] = {}
    for name, kernels, graphs in (
        ("eager, plain", "plain", False),
        ("graphs", bench.kernels, True),
        ("eager", bench.kernels, False),
    ):
        target = load_target(model, device=device, pool_tokens=8192, max_context_tokens=longest, kernels=kernels)
        head = load_eagle3(model / "eagle3", target, pool_tokens=8192)
        policy = FixedPolicy(24)
        engine = GraphEngine(Graphs(target, head, budgets=(24,)), policy) if graphs else Engine(target, head, policy)
        mine = said[name] = Said()
        _answer(bench, engine, [prompt.ids for prompt in questions], mine)
        pairs = list(zip(mine.replies, said["eager, plain"].replies, strict=False))
        same = f"{sum(one == other for one, other in pairs)}/{len(pairs)}"
        table.rows.append([name, kernels, same, sum(mine.steps), mine.accepted, getattr(engine, "cycles", "")])
    _compare(bench, said)


def _answer(bench: Bench, engine: Engine, prompts: list[list[int]], said: Said) -> None:
    """Each prompt greedily and sampled, as far as there is time."""
    for ids in prompts:
        if bench.left < 0:
            return
        for sampling in (Sampling(), Sampling(0.8, top_p=0.9, seed=1)):
            turn = _reply(engine, ids, sampling, bench.sizes.reply_tokens)
            said.replies.append(turn.tokens)
            if sampling.greedy:
                said.steps.append(turn.stats.steps)
                said.accepted += turn.stats.accepted


def _compare(bench: Bench, said: dict[str, Said]) -> None:
    """The figures of the replies that every loop had time for; none where one had none."""
    plain, eager, by_graphs = (said[name] for name in ("eager, plain", "eager", "graphs"))
    whole = min(len(loop.replies) for loop in (plain, eager, by_graphs))
    if whole:
        bench.figures["graph_text_equals_eager"] = by_graphs.replies[:whole] == eager.replies[:whole]
    if greedy := min(len(plain.steps), len(by_graphs.steps)):
        bench.figures["graph_steps"] = sum(by_graphs.steps[:greedy]) / sum(plain.steps[:greedy])


def _reply(engine: Engine, prompt: list[int], sampling: Sampling, most: int) -> Turn:
    session = engine.open("check", prompt)
    turn = engine.submit(session, sampling, max_tokens=most)
    while turn.finish is None:
        engine.step([Work(session, max_tokens=4096)])
    engine.close(session)
    return turn


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
