"""What ends a reply ends it exactly there, whatever the drafter had already guessed beyond."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engine.engine import Engine, Work
from engine.errors import ContextFull, UnknownSession
from engine.interfaces import Proposer
from engine.models.decoder import Decoder
from engine.policy import FixedPolicy
from engine.proposers.eagle3 import load_eagle3
from engine.proposers.none import NoProposer
from engine.sampling import Sampling
from engine.session import Finish, Session, Turn
from tests.engine import checkpoints
from tests.engine.loading import load
from tests.engine.oracle import OracleProposer
from tests.engine.proposers import heads

PROMPT = [5, 17, 3, 99, 42]
_ENGINES: list[Engine] = []


@pytest.fixture(autouse=True)
def _close_everything() -> Iterator[None]:
    """The tests share a target, and with it a small pool of pages."""
    yield
    for engine in _ENGINES:
        for session in list(engine.sessions.values()):
            engine.close(session)
    _ENGINES.clear()


def make_engine(target: Decoder, proposer: Proposer, nodes: int) -> Engine:
    _ENGINES.append(Engine(target, proposer, FixedPolicy(nodes)))
    return _ENGINES[-1]


def plain(target: Decoder) -> Engine:
    return make_engine(target, NoProposer(), 1)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    directory: Path = tmp_path_factory.mktemp("target")
    checkpoints.write("mistral", directory)
    return load(directory, torch.float64)


@pytest.fixture(scope="module")
def reference(target: Decoder) -> list[int]:
    """What the target alone says, 60 tokens of it."""
    return finish(*start(plain(target), max_tokens=60)).tokens


def start(engine: Engine, prompt: list[int] = PROMPT, **more: object) -> tuple[Engine, Turn]:
    session = engine.open("call", prompt)
    options: dict[str, object] = {"max_tokens": 40, **more}
    return engine, engine.submit(session, Sampling(), **options)  # type: ignore[arg-type]


def finish(engine: Engine, turn: Turn) -> Turn:
    while turn.finish is None:
        engine.step([Work(turn.session)])
    return turn


def oracle(target: Decoder, reference: list[int], seed: int) -> Engine:
    proposer = OracleProposer(checkpoints.VOCAB, seed)
    proposer.reference = PROMPT + reference
    return make_engine(target, proposer, 24)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("at", [1, 2, 7, 20])
def test_a_stop_token_inside_an_accepted_path(target: Decoder, reference: list[int], at: int, seed: int) -> None:
    stop = reference[at]
    first = reference.index(stop)
    engine, turn = start(oracle(target, reference, seed), stop_tokens=frozenset([stop]))
    session: Session = turn.session
    finish(engine, turn)
    assert turn.finish is Finish.STOP_TOKEN
    assert turn.tokens == reference[: first + 1]
    assert session.tokens == PROMPT + reference[: first + 1]
    assert session.cache.length <= len(session.tokens) - 1


@pytest.mark.parametrize("limit", [1, 2, 3, 8, 21])
def test_the_limit_inside_an_accepted_path(target: Decoder, reference: list[int], limit: int) -> None:
    for seed in range(5):
        engine, turn = start(oracle(target, reference, seed), max_tokens=limit)
        finish(engine, turn)
        assert turn.finish is Finish.LENGTH
        assert turn.tokens == reference[:limit]


def test_a_cancelled_reply_stays_as_it_is_and_the_next_one_goes_on_from_there(
    target: Decoder, reference: list[int]
) -> None:
    engine, turn = start(oracle(target, reference, 1))
    engine.step([Work(turn.session)])
    engine.step([Work(turn.session)])
    said = turn.tokens
    engine.cancel(turn)
    engine.cancel(turn)
    assert turn.finish is Finish.CANCELLED
    again = finish(engine, engine.submit(turn.session, Sampling(), max_tokens=10))
    assert turn.tokens == said
    assert again.tokens == reference[len(said) : len(said) + 10]


@pytest.mark.parametrize("forced", [1, 4, 12])
def test_forced_tokens_are_the_replys_beginning(target: Decoder, reference: list[int], forced: int) -> None:
    engine, turn = start(oracle(target, reference, 2), forced=reference[:forced], max_tokens=20)
    assert finish(engine, turn).tokens == reference[:20]


def test_forced_tokens_advance_the_noise(target: Decoder) -> None:
    sampling = Sampling(1.0, top_p=0.9, seed=11)
    engine = plain(target)
    whole = finish(engine, engine.submit(engine.open("a", PROMPT), sampling, max_tokens=20)).tokens
    resumed = engine.submit(engine.open("b", PROMPT), sampling, max_tokens=20, forced=whole[:7])
    assert finish(engine, resumed).tokens == whole


def test_a_stop_token_among_the_forced_ones_ends_the_reply(target: Decoder) -> None:
    _, turn = start(plain(target), forced=[7, 8, 9], stop_tokens=frozenset([8]))
    assert turn.finish is Finish.STOP_TOKEN
    assert turn.session.tokens == [*PROMPT, 7, 8]
    assert turn.session.turn is None


def test_a_turn_without_a_seed_derives_it_from_the_call_and_the_place(target: Decoder) -> None:
    def reply(call_seed: int, prompt: list[int]) -> list[int]:
        engine = plain(target)
        return finish(
            engine, engine.submit(engine.open("a", prompt, seed=call_seed), Sampling(1.0), max_tokens=20)
        ).tokens

    assert reply(1, PROMPT) == reply(1, PROMPT)
    assert reply(1, PROMPT) != reply(2, PROMPT)


def test_a_full_context(target: Decoder, tmp_path: Path) -> None:
    engine = plain(target)
    session = engine.open("call", [1] * 510)
    with pytest.raises(ContextFull):
        engine.append(session, [1, 2, 3])
    assert len(session.tokens) == 510
    turn = finish(engine, engine.submit(session, Sampling(), max_tokens=40))
    assert turn.finish is Finish.CONTEXT
    assert len(session.tokens) == target.max_context_tokens
    engine.close(session)


@pytest.mark.parametrize("chain", [False, True])
@pytest.mark.parametrize("nodes", [5, 60])
def test_a_draft_is_no_deeper_than_what_is_left_of_the_context(target: Decoder, nodes: int, chain: bool) -> None:
    prompt = [1] * 480
    wanted = finish(*start(plain(target), prompt, max_tokens=100)).tokens
    proposer = OracleProposer(checkpoints.VOCAB, 0, chain=chain)
    proposer.reference = [*prompt, *wanted, *[1] * 60]
    turn = finish(*start(make_engine(target, proposer, nodes), prompt, max_tokens=100))
    assert turn.finish is Finish.CONTEXT
    assert turn.tokens == wanted
    assert len(turn.session.tokens) == target.max_context_tokens


def test_a_head_drafts_up_to_the_end_of_the_context(target: Decoder, tmp_path: Path) -> None:
    head = heads.write(tmp_path, heads.random_head(target.config), heads.head_config(target.config))
    proposer = load_eagle3(head, target, pool_tokens=2048, taps=(1, 2, 4))
    prompt = [1] * 480
    wanted = finish(*start(plain(target), prompt, max_tokens=100)).tokens
    for nodes in (5, 60):
        turn = finish(*start(make_engine(target, proposer, nodes), prompt, max_tokens=100))
        assert (turn.finish, turn.tokens) == (Finish.CONTEXT, wanted)


def test_a_reply_for_which_there_is_no_room_is_refused(target: Decoder) -> None:
    engine = plain(target)
    session = engine.open("call", [1] * 512)
    with pytest.raises(ContextFull):
        engine.submit(session, Sampling(), max_tokens=4)
    engine.truncate(session, 508)
    with pytest.raises(ContextFull):
        engine.submit(session, Sampling(), max_tokens=9, forced=[1, 2, 3, 4])
    assert (len(session.tokens), session.turn) == (508, None)
    assert finish(engine, engine.submit(session, Sampling(), max_tokens=9, forced=[1, 2, 3])).finish is Finish.CONTEXT


def test_closing_is_idempotent_and_returns_every_page(target: Decoder, reference: list[int]) -> None:
    before = target.pool.pages_in_use
    engine, turn = start(oracle(target, reference, 3))
    engine.step([Work(turn.session)])
    engine.close(turn.session)
    engine.close(turn.session)
    assert turn.finish is Finish.CANCELLED
    assert target.pool.pages_in_use == before
    with pytest.raises(UnknownSession):
        engine.session("call")


def test_several_sessions_in_one_step_say_what_each_says_alone(target: Decoder) -> None:
    prompts = [[3, 1, 4], [1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9]]
    engine = plain(target)
    alone = []
    for number, prompt in enumerate(prompts):
        session = engine.open(f"alone {number}", prompt)
        alone.append(finish(engine, engine.submit(session, Sampling(), max_tokens=15)).tokens)
        engine.close(session)
    turns = [
        engine.submit(engine.open(f"together {number}", prompt), Sampling(), max_tokens=15)
        for number, prompt in enumerate(prompts)
    ]
    while any(turn.finish is None for turn in turns):
        engine.step([Work(turn.session) for turn in turns if turn.finish is None])
    assert [turn.tokens for turn in turns] == alone
