"""The equality suites: greedy text against transformers, and sampled text with a drafter against text without one.

Run whole by ``tests.equality`` and in slices by ``test_equality``.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from bench.harness import HELD_OUT, Prompt, load_tokenizer, prompts
from engine.engine import Engine, Work
from engine.interfaces import Proposer, TextWatcher
from engine.models.decoder import Decoder
from engine.policy import FixedPolicy
from engine.sampling import Sampling
from engine.session import Finish, Session
from engine.text.reply import ReplyReader
from engine.tree import DraftTree, accept
from tests.engine import checkpoints
from tests.engine.embedded import MODEL, codec
from tests.engine.oracle import OracleProposer
from tests.engine.rounding import differ_by_rounding

TREES = [(1, False), (5, True), (16, False), (60, False)]
"""(nodes, chain): plain decoding, a chain of four drafted tokens, trees of 16 and 60 nodes."""
REPLY = 64
POOL_TOKENS = 8192
TEMPERATURES = (0.4, 0.8, 1.2)
FILTERS: list[dict[str, Any]] = [
    {},
    {"top_p": 0.9},
    {"top_p": 0.8, "repetition_penalty": 1.2},
    {"top_k": 20, "min_p": 0.05},
    {"top_p": 0.95, "repetition_penalty": 0.9, "min_p": 0.02},
]
STOPS = [(), (".",), ("?", " the "), ("you", "\n")]


@dataclass(frozen=True)
class Reply:
    """What one turn said."""

    tokens: list[int]
    text: str
    finish: Finish


@dataclass
class Count:
    """One row of the table. lengths: how often each number of drafted tokens was accepted in a step. lasted: how many
    replies had each number of tokens. asked: how often each part of a drafter that switches was."""

    model: str
    drafter: str
    replies: int = 0
    tokens: int = 0
    differences: list[str] = field(default_factory=list)
    close: list[str] = field(default_factory=list)
    lengths: Counter[int] = field(default_factory=Counter)
    finishes: Counter[str] = field(default_factory=Counter)
    lasted: Counter[int] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)

    def add(self, reply: Reply) -> None:
        self.replies += 1
        self.tokens += len(reply.tokens)
        self.finishes[reply.finish.value] += 1
        self.lasted[len(reply.tokens)] += 1

    def merge(self, other: Count) -> None:
        """Take in what was counted of the same row elsewhere."""
        self.replies += other.replies
        self.tokens += other.tokens
        self.differences += other.differences
        self.close += other.close
        self.lengths += other.lengths
        self.finishes += other.finishes
        self.lasted += other.lasted
        self.asked += other.asked


def warm(engine: Engine, prompt: Sequence[int], chunk: int = 4096) -> Session:
    """A session that holds all of the prompt but its last token, for replies to fork from."""
    session = engine.open("warm", prompt)
    while session.num_pending > 1:
        (step,) = engine.step([Work(session, max_tokens=chunk)])
        assert step.prefilled, "out of pages"
    return session


def reply(
    engine: Engine,
    base: Session,
    sampling: Sampling,
    *,
    max_tokens: int = REPLY,
    stop: frozenset[int] = frozenset(),
    watcher: TextWatcher | None = None,
    drafting: bool = True,
    count: Count | None = None,
) -> Reply:
    """One reply of a fork of ``base``."""
    session = engine.fork(base, "call")
    turn = engine.submit(session, sampling, max_tokens=max_tokens, stop_tokens=stop, watcher=watcher, drafting=drafting)
    text = ""
    while turn.finish is None:
        (step,) = engine.step([Work(session)])
        if isinstance(watcher, ReplyReader):
            text += watcher.take(final=turn.finish is not None).text
        if step.drafted and count is not None:
            count.lengths[step.accepted] += 1
    said = Reply(turn.tokens, text, turn.finish)
    engine.close(session)
    if count is not None:
        count.add(said)
    return said


def greedy(model: PreTrainedModel, prompt: Sequence[int], stop: frozenset[int] = frozenset()) -> list[int]:
    """transformers' own greedy reply; without ``stop`` it has REPLY tokens."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=REPLY,
            do_sample=False,
            eos_token_id=sorted(stop) or None,
            pad_token_id=0,
        )
    return output[0, len(prompt) :].tolist()


def greedy_rows(
    name: str, target: Decoder, model: PreTrainedModel, asked: Iterable[Sequence[int]], stop: frozenset[int]
) -> list[Count]:
    """The engine against transformers over every prompt and tree, with an oracle that knows the answer."""
    rng = random.Random(5)
    oracles = [OracleProposer(target.vocab_size, seed, chain=chain) for seed, (_, chain) in enumerate(TREES)]
    counts = [Count(name, _tree_name(nodes, chain)) for nodes, chain in TREES]
    engine = Engine(target, oracles[0], FixedPolicy())
    for number, prompt in enumerate(asked):
        wanted = greedy(model, prompt, stop)
        base = warm(engine, prompt, rng.choice([7, 64, 4096]))
        for oracle, count, (nodes, _) in zip(oracles, counts, TREES, strict=True):
            oracle.reference = [*prompt, *wanted]
            engine.proposer, engine.drafting.ways, engine.drafting.policy = oracle, [oracle], FixedPolicy(nodes)
            got = reply(engine, base, Sampling(), stop=stop, count=count)
            if got.tokens != wanted:
                count.differences.append(f"prompt {number}: {wanted} became {got.tokens}")
        engine.close(base)
    return counts


@dataclass(frozen=True)
class Ask:
    """One reply to be made with and without a drafter. number: of the prompt. coupled: drafters are given its noise."""

    number: int
    sampling: Sampling
    stops: tuple[str, ...]
    nodes: int
    coupled: bool = False


def asks(number: int, seeds: int) -> Iterable[Ask]:
    """Temperatures x seeds for one prompt, with filters, stop strings and sizes of tree in the mix."""
    for first, temperature in enumerate(TEMPERATURES):
        for seed in range(seeds):
            mix = first + number + seed
            sampling = Sampling(temperature, seed=1000 * number + seed, **FILTERS[mix % len(FILTERS)])
            yield Ask(number, sampling, STOPS[mix % len(STOPS)], TREES[1 + mix % 3][0])


def sampled_rows(
    target: Decoder,
    exact: Decoder,
    proposers: dict[str, Proposer],
    asked: Sequence[Sequence[int]],
    *,
    seeds: int,
    stop: frozenset[int],
) -> list[Count]:
    """Every proposer's text against the text without one. exact: the same target in float64."""
    counts = []
    plain: dict[Ask, Reply] = {}
    for name, proposer in proposers.items():
        count = Count("embedded, sampled", name)
        engine = Engine(target, proposer, FixedPolicy())
        for number, prompt in enumerate(asked):
            base = warm(engine, prompt)
            for ask in asks(number, seeds):
                if ask not in plain:
                    plain[ask] = answer(engine, base, ask, stop, drafting=False)
                got, wanted = drafted(engine, base, ask, stop, plain[ask], count), plain[ask]
                if got != wanted:
                    close = differ_by_rounding(exact, prompt, wanted.tokens, got.tokens, ask.sampling)
                    rounded = close and _agree_exactly(exact, prompt, ask, stop)
                    (count.close if rounded else count.differences).append(f"{ask}: {wanted} became {got}")
            engine.close(base)
        counts.append(count)
    return counts


def answer(
    engine: Engine, base: Session, ask: Ask, stop: frozenset[int], *, drafting: bool, count: Count | None = None
) -> Reply:
    watcher = ReplyReader(codec(), ask.stops)
    return reply(engine, base, ask.sampling, stop=stop, watcher=watcher, drafting=drafting, count=count)


def drafted(
    engine: Engine, base: Session, ask: Ask, stop: frozenset[int], wanted: Reply, count: Count | None = None
) -> Reply:
    engine.drafting.policy, engine.drafting.coupled = FixedPolicy(ask.nodes), ask.coupled
    if isinstance(engine.proposer, OracleProposer):
        engine.proposer.reference = [*base.tokens, *wanted.tokens]
    return answer(engine, base, ask, stop, drafting=True, count=count)


def _agree_exactly(exact: Decoder, prompt: Sequence[int], ask: Ask, stop: frozenset[int]) -> bool:
    """Whether plain and drafted text are the same in float64."""
    engine = Engine(exact, OracleProposer(exact.vocab_size, 0), FixedPolicy())
    base = warm(engine, prompt)
    plain = answer(engine, base, ask, stop, drafting=False)
    same = drafted(engine, base, ask, stop, plain) == plain
    engine.close(base)
    return same


def _tree_name(nodes: int, chain: bool) -> str:
    return "plain" if nodes == 1 else f"oracle, chain of {nodes - 1}" if chain else f"oracle, {nodes} nodes"


def missing_lengths(count: Count, nodes: int, replies_with_room: int = 40) -> list[int]:
    """Accepted lengths that never occurred, of those that a tree of ``nodes`` and so many replies had room for."""

    def had_room(length: int) -> bool:
        return sum(replies for tokens, replies in count.lasted.items() if tokens >= length + 2) >= replies_with_room

    return [length for length in range(nodes if nodes > 1 else 0) if had_room(length) and not count.lengths[length]]


def too_kind(tree: DraftTree, chosen: torch.Tensor) -> list[int]:
    """A broken rule of acceptance, which the suites must find: it keeps one drafted token that the target did not
    choose."""
    path = accept(tree, chosen)
    children = [node for node in range(1, len(tree)) if int(tree.parents[node]) == path[-1]]
    return [*path, children[0]] if children else path


def held_out(count: int) -> list[Prompt]:
    """Everything before a reply, of held-out calls."""
    return prompts(load_tokenizer(MODEL), HELD_OUT, 1 + count // 4)[:count]


def embedded_prompts(count: int) -> list[list[int]]:
    return [prompt.ids for prompt in held_out(count)]


def random_prompts(count: int, seed: int = 5) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(checkpoints.VOCAB) for _ in range(rng.randint(1, 90))] for _ in range(count)]
