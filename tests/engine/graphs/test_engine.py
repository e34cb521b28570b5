"""Cycles of static steps say what the ordinary loop says, and a reply may change between the two at any step."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch

from engine.engine import Engine, Work
from engine.graphs.draft import GraphProposer
from engine.graphs.engine import GraphEngine
from engine.graphs.steps import Graphs
from engine.kernels import plain
from engine.models.decoder import Decoder, load_target
from engine.policy import FixedPolicy
from engine.proposers.eagle3 import load_eagle3
from engine.proposers.pairs.proposer import PairProposer
from engine.sampling import Sampling
from engine.session import Finish, Turn
from tests.engine.embedded import HEAD, MODEL
from tests.engine.equal import embedded_prompts

SAMPLINGS = [
    Sampling(),
    Sampling(0.8, seed=4),
    Sampling(1.0, top_p=0.8, min_p=0.02, seed=5),
    Sampling(0.9, top_k=20, seed=6),
]
REPLY = 40


@cache
def loaded() -> tuple[Decoder, PairProposer]:
    """The embedded model and its head in float64, in pools of their own."""
    target = load_target(MODEL, dtype=torch.float64, pool_tokens=2048, max_context_tokens=320)
    return target, load_eagle3(HEAD, target, pool_tokens=2048)


@cache
def prompts() -> list[list[int]]:
    """The ends of held-out prompts: short, since the stand-in for the kernels reads a whole context each time."""
    return [prompt[-150:] for prompt in embedded_prompts(24)[::6]]


@cache
def engines(nodes: int) -> tuple[Engine, GraphEngine]:
    target, head = loaded()
    return Engine(target, head, FixedPolicy(nodes)), GraphEngine(
        Graphs(target, head, budgets=(nodes,)), FixedPolicy(nodes)
    )


def finish(engine: Engine, turn: Turn) -> list[int]:
    while turn.finish is None:
        engine.step([Work(turn.session, max_tokens=4096)])
    return turn.tokens


@pytest.mark.parametrize("nodes", [8, 24])
@pytest.mark.parametrize("number", range(len(SAMPLINGS)))
def test_text_is_that_of_the_ordinary_loop(nodes: int, number: int) -> None:
    """Without stop tokens, so that replies are long; over two prompts, as one session after the other."""
    said, steps = [], []
    for engine in engines(nodes):
        for prompt in prompts()[:2]:
            session = engine.open("call", prompt, seed=number)
            turn = engine.submit(session, SAMPLINGS[number], max_tokens=REPLY)
            said.append(finish(engine, turn))
            steps.append(turn.stats.steps)
            engine.close(session)
    assert said[:2] == said[2:]
    assert engines(nodes)[1].cycles > 5
    if number == 0:
        assert steps[:2] == steps[2:], "the trees are the same as well"


def test_calls_that_take_turns_and_are_edited() -> None:
    """Steps of two calls in any order, alone or shared, as cycles and as the loop's; rewinds; second replies."""
    rng = random.Random(3)
    plainly, graphs = engines(8)
    wanted = []
    for number in range(2):
        session = plainly.open("call", prompts()[number], seed=number)
        turn = plainly.submit(session, SAMPLINGS[number], max_tokens=40)
        first = finish(plainly, turn)
        plainly.truncate(session, len(prompts()[number]) + 10)
        plainly.append(session, prompts()[2][:9])
        wanted.append((first, finish(plainly, plainly.submit(session, SAMPLINGS[number], max_tokens=40))))
        plainly.close(session)
    before = graphs.cycles
    sessions = [graphs.open(f"call {number}", prompts()[number], seed=number) for number in range(2)]
    replies: list[list[list[int]]] = [[], []]
    for round_ in range(2):
        turns = [graphs.submit(sessions[number], SAMPLINGS[number], max_tokens=40) for number in range(2)]
        while any(turn.finish is None for turn in turns):
            running = [turn.session for turn in turns if turn.finish is None]
            chosen = rng.sample(running, rng.choice([1, 1, len(running)]))
            for turn in turns:
                turn.drafting = rng.random() < 0.8  # without, a step is the loop's
            graphs.step([Work(session, max_tokens=4096) for session in chosen])
        for number, turn in enumerate(turns):
            replies[number].append(turn.tokens)
            if round_ == 0:
                graphs.truncate(sessions[number], len(prompts()[number]) + 10)
                graphs.append(sessions[number], prompts()[2][:9])
    assert [tuple(reply) for reply in replies] == wanted
    assert graphs.cycles > before
    for session in sessions:
        graphs.close(session)


def test_calls_that_draft_in_turn_one_in_cycles_and_one_in_the_loop() -> None:
    """No cycle has a repetition penalty: that reply is drafted by the same static step, by itself."""
    samplings = (Sampling(), Sampling(repetition_penalty=1.3))
    said = []
    for engine in engines(8):
        sessions = [engine.open(f"call {number}", prompts()[number]) for number in range(2)]
        turns = [
            engine.submit(session, sampling, max_tokens=30)
            for session, sampling in zip(sessions, samplings, strict=True)
        ]
        while any(turn.finish is None for turn in turns):
            for turn in turns:
                if turn.finish is None:
                    engine.step([Work(turn.session, max_tokens=4096)])
        said.append([turn.tokens for turn in turns])
        for session in sessions:
            engine.close(session)
    assert said[0] == said[1]


def test_a_reply_goes_on_to_the_end_of_the_context() -> None:
    """Static steps are as deep there as anywhere; what they name past the end is never kept."""
    prompt, said = embedded_prompts(1)[0][:275], []
    for engine in engines(24):
        session = engine.open("call", prompt)
        turn = engine.submit(session, Sampling(0.8, seed=2), max_tokens=200)
        said.append((finish(engine, turn), turn.finish))
        engine.close(session)
    assert said[0] == said[1]
    assert said[0][1] is Finish.CONTEXT


def test_a_choice_that_is_not_settled_is_made_by_the_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = Sampling(1.3, top_p=0.3, seed=1)
    plainly, graphs = engines(8)
    said = []
    monkeypatch.setattr(plain, "ROUNDS", 1)
    unsettled = 0
    choose_last = graphs._choose_last

    def counted(*arguments):  # type: ignore[no-untyped-def]
        nonlocal unsettled
        unsettled += 1
        return choose_last(*arguments)

    monkeypatch.setattr(graphs, "_choose_last", counted)
    for engine in (plainly, graphs):
        session = engine.open("call", prompts()[0])
        said.append(finish(engine, engine.submit(session, sampling, max_tokens=60)))
        engine.close(session)
    assert said[0] == said[1]
    assert unsettled > 3


def test_a_cycle_that_finds_no_pages_leaves_the_step_to_the_loop() -> None:
    target = load_target(MODEL, dtype=torch.float64, pool_tokens=256, max_context_tokens=320)
    head = load_eagle3(HEAD, target, pool_tokens=256)
    prompt = prompts()[0]
    said = []
    for engine in (
        Engine(target, head, FixedPolicy(8)),
        GraphEngine(Graphs(target, head, budgets=(8,)), FixedPolicy(8)),
    ):
        hog = engine.open("hog", prompt[:45])
        engine.step([Work(hog)])
        session = engine.open("call", prompt)
        turn = engine.submit(session, Sampling(), max_tokens=160)
        tokens = finish(engine, turn)
        said.append((tokens[:40], turn.finish))
        engine.close(session)
        engine.close(hog)
    assert said[0] == said[1]


def test_pairs_of_projected_features_are_left_to_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A static step reads states as they were tapped. Here few pairs are to be made, where what waited long was cut."""
    monkeypatch.setattr("engine.proposers.pairs.proposer.CATCH_UP_TOGETHER", 100)
    proposer = engines(8)[1].graphs.proposer
    assert isinstance(proposer, GraphProposer)
    width, rng = loaded()[0].config.hidden_size, torch.Generator().manual_seed(1)
    features = torch.randn(260, len(proposer.taps), width, dtype=torch.float64, generator=rng)
    tokens = torch.randint(1000, (260,), generator=rng)
    draft = proposer.start()
    for at in range(0, 260, 4):  # a reply that others drafted
        proposer.observe(draft, tokens[at : at + 4], features[at : at + 4], None)
    proposer.catch_up(draft)
    draft.truncate(106)
    assert (draft.num_pairs, draft.num_ready(7), draft.waiting.num_raw) == (100, 6, 0)
    plain = draft.fork()
    tree, expected = (
        maker.propose([one], [7], [None], 8)[0] for maker, one in ((proposer, draft), (proposer.real, plain))
    )
    assert torch.equal(tree.tokens, expected.tokens) and torch.equal(tree.parents, expected.parents)
    draft.close()
    plain.close()
