"""The drafters' part of the equality suite: the embedded model's text with every drafter against its text without one.

Run whole by ``tests.equality`` and in a slice by ``test_drafters``.
"""

from __future__ import annotations

import pickle
import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from bench.harness import Prompt
from engine.config import EngineConfig
from engine.engine import Engine
from engine.interfaces import Draft, Proposer
from engine.load import load_proposer
from engine.models.decoder import Decoder, load_target
from engine.policy import FixedPolicy
from engine.proposers.cascade import Cascade, CascadeDraft
from engine.proposers.none import NoProposer
from engine.proposers.table import PROPOSERS, parse
from engine.sampling import Sampling
from engine.tree import DraftTree
from tests.engine import equal
from tests.engine.embedded import MODEL, codec
from tests.engine.equal import TREES, Ask, Count, Reply
from tests.engine.rounding import differ_by_rounding
from training.files import whole


def spec(name: str) -> str:
    """A drafter of the table as a configuration writes it, with the checkpoint that the embedded model brings."""
    return f"{name}:{MODEL / name}" if PROPOSERS[name].takes_checkpoint else name


SWITCHING = "switching"
DRAFTERS = {
    **{name: spec(name) for name in PROPOSERS if name != "none"},
    "suffix+recycling": "suffix+recycling",
    "suffix+eagle3": f"suffix+{spec('eagle3')}",
    SWITCHING: "+".join(spec(name) for name in PROPOSERS),
}
PRECISIONS = (torch.float64, torch.float32)
APART = 13
"""Replies from one turn to the next, so that turns come from many calls and from every part of one."""
CHAIN_NODES, CHAIN_EVERY = 5, 5


class Switching(Cascade):
    """Asks one part a step, drawn at random; the others go on observing."""

    def __init__(self, parts: Sequence[Proposer], seed: int = 0) -> None:
        super().__init__(parts)
        self._random = random.Random(seed)
        self.asked: Counter[str] = Counter()

    def propose_of(
        self,
        sources: Collection[int],
        drafts: Sequence[Draft],
        roots: Sequence[int],
        noise: Sequence[Tensor | None],
        budget: int,
    ) -> list[DraftTree]:
        at = self._random.choice(list(sources))
        self.asked[self.parts[at].name] += 1
        own = [draft.parts[at] for draft in drafts if isinstance(draft, CascadeDraft)]
        return self.parts[at].propose(own, roots, noise, budget)


@cache
def target_in(dtype: torch.dtype) -> Decoder:
    return load_target(MODEL, dtype=dtype, pool_tokens=equal.POOL_TOKENS)


@cache
def loaded(name: str, dtype: torch.dtype, chain: bool) -> Proposer:
    shape = "chain" if chain else "tree"
    config = EngineConfig(str(MODEL), DRAFTERS[name], pool_tokens=equal.POOL_TOKENS, draft_shape=shape)
    return load_proposer(config, target_in(dtype))


def drafter(name: str, dtype: torch.dtype, number: int) -> Proposer:
    """The drafter for one turn. It has learned nothing from other turns, so a difference can be had again alone."""
    proposer = loaded(name, dtype, is_chain(number))
    if not isinstance(proposer, Cascade):
        return proposer
    return Switching(proposer.parts, number) if name == SWITCHING else Cascade(proposer.parts)


def missing_checkpoints() -> list[Path]:
    named = {path for text in DRAFTERS.values() for _, path in parse(text) if path is not None}
    return sorted(path for path in named if not path.is_dir())


def held_out(turns: int) -> list[Prompt]:
    return equal.held_out(APART * turns)[::APART]


def is_chain(number: int) -> bool:
    """Whether drafters draft chains in a turn, instead of trees."""
    return number % CHAIN_EVERY == CHAIN_EVERY - 1


def asks(number: int, seeds: int) -> list[Ask]:
    """Greedy and temperatures x seeds for one turn. Of every two, one gives the drafter the turn's noise."""
    greedy = Ask(number, Sampling(), (), TREES[1 + number % 3][0])
    return [
        replace(ask, nodes=CHAIN_NODES if is_chain(number) else ask.nodes, coupled=(number + at) % 2 == 1)
        for at, ask in enumerate([greedy, *equal.asks(number, seeds)])
    ]


def alone(dtype: torch.dtype, prompt: Sequence[int], asked: Iterable[Ask]) -> dict[Ask, Reply]:
    """What the target says where nothing drafts."""
    engine = Engine(target_in(dtype), NoProposer(), FixedPolicy())
    base = equal.warm(engine, prompt)
    said = {ask: equal.answer(engine, base, ask, codec().stop_tokens, drafting=False) for ask in asked}
    engine.close(base)
    return said


def compare(
    name: str, dtype: torch.dtype, number: int, prompt: Sequence[int], wanted: dict[Ask, Reply], proposer: Proposer
) -> Count:
    """One drafter's replies in one turn against those ``wanted``. The first is made before it has caught up with the
    prompt. In float64 no decision is so close that it may go another way.
    """
    count = Count(f"embedded, {str(dtype).removeprefix('torch.')}", name)
    engine = Engine(target_in(dtype), proposer, FixedPolicy())
    base = equal.warm(engine, prompt)
    for at, (ask, said) in enumerate(wanted.items()):
        if at == 1:
            while engine.catch_up(base):
                pass
        got = equal.drafted(engine, base, ask, codec().stop_tokens, said, count)
        if got != said:
            exact = target_in(torch.float64)
            close = dtype != exact.dtype and differ_by_rounding(exact, prompt, said.tokens, got.tokens, ask.sampling)
            (count.close if close else count.differences).append(f"{ask}: {said} became {got}")
    engine.close(base)
    if isinstance(proposer, Switching):
        count.asked += proposer.asked
    return count


def count_turn(turn: tuple[int, Sequence[int]], seeds: int, kept: Path) -> list[Count]:
    """Every drafter's row over one turn (number, prompt), in both precisions; as kept from an earlier run if it is."""
    number, prompt = turn
    file = kept / f"{number}-{seeds}.pickle"
    if file.exists():
        had: list[Count] = pickle.loads(file.read_bytes())
        return had
    counts = []
    for dtype in PRECISIONS:
        wanted = alone(dtype, prompt, asks(number, seeds))
        counts += [compare(name, dtype, number, prompt, wanted, drafter(name, dtype, number)) for name in DRAFTERS]
    with whole(file) as part:
        part.write_bytes(pickle.dumps(counts))
    return counts


def rows(prompts: Sequence[Sequence[int]], seeds: int, ranks: int, kept: Path) -> Iterator[list[Count]]:
    """The rows of every turn as they come in, each kept in a file of its own as soon as it is whole. The turns are
    spread over ``ranks`` processes of one thread each.
    """
    kept.mkdir(parents=True, exist_ok=True)
    work = partial(count_turn, seeds=seeds, kept=kept)
    with ProcessPoolExecutor(ranks, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        yield from pool.map(work, enumerate(prompts))


def merged(turns: Iterable[list[Count]]) -> list[Count]:
    """One row for each drafter and precision."""
    found: dict[tuple[str, str], Count] = {}
    for count in (count for turn in turns for count in turn):
        found.setdefault((count.model, count.drafter), Count(count.model, count.drafter)).merge(count)
    return list(found.values())


def idle(counts: Iterable[Count]) -> list[str]:
    """Rows that could not have failed, because nothing was drafted or none of it was accepted."""
    found = []
    for count in counts:
        if not count.lengths:
            found.append(f"{count.model}, {count.drafter}: nothing was drafted")
        elif not any(count.lengths[length] for length in count.lengths if length > 0):
            found.append(f"{count.model}, {count.drafter}: no drafted token was accepted")
        if count.drafter == SWITCHING:
            never = sorted(set(PROPOSERS) - set(count.asked))
            found += [f"{count.model}, {count.drafter}: {name} was never asked" for name in never]
    return found
