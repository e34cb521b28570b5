"""The draft model against transformers, which runs every path from scratch; and through the engine."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from engine.engine import Engine, Work
from engine.errors import OutOfPages
from engine.policy import FixedPolicy
from engine.proposers.draft_model import DraftModelProposer, ModelDraft, load
from engine.proposers.search import Shape, shape_for
from engine.proposers.setup import Setup
from engine.sampling import Sampling, gumbel_noise
from engine.tree import DraftTree
from tests.engine import checkpoints
from tests.engine import loading as targets
from tests.engine.proposers.test_eagle3 import path_to

TEXT = [3, 1, 4, 1, 5, 9, 2, 6]
SAMPLINGS = [Sampling(), Sampling(temperature=0.7, seed=3), Sampling(temperature=1.3, seed=4)]
Paths = dict[tuple[int, ...], float]


@dataclass(frozen=True)
class Models:
    """A target, directories of models that draft for it, and transformers' model of the one at ``other``.

    near: the target with weights a little off. short: it has a context of 24 tokens.
    """

    setup: Setup
    other: Path
    near: Path
    short: Path
    reference: PreTrainedModel
    short_reference: PreTrainedModel


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    root = tmp_path_factory.mktemp("models")
    model = checkpoints.write("llama-tied", root / "target")
    target = targets.load(root / "target", torch.float64)
    reference = checkpoints.write("qwen3-qk-norm", root / "other", seed=1)
    short = checkpoints.write("qwen2-biases", root / "short", seed=1, max_position_embeddings=24)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    model.save_pretrained(root / "near")
    setup = Setup(target, root / "target", pool_tokens=1024, page_tokens=4)
    return Models(setup, root / "other", root / "near", root / "short", reference, short)


def as_chain(setup: Setup) -> Setup:
    return Setup(setup.target, setup.model, setup.pool_tokens, setup.page_tokens, chain=True)


def noise_of(temperature: float, levels: int, seed: int = 0) -> Tensor:
    return temperature * gumbel_noise(seed, 0, levels, checkpoints.VOCAB, torch.device("cpu"))


@torch.no_grad()
def slow_paths(
    model: PreTrainedModel, text: list[int], root: int, shape: Shape, budget: int, noise: Tensor | None
) -> Paths:
    """The dynamic rule written out: the best ``budget - 1`` paths behind the root, and their log-probabilities."""

    def children(path: tuple[int, ...], score: float) -> list[tuple[tuple[int, ...], float]]:
        logits = model(torch.tensor([[*text, root, *path]])).logits[0, -1]
        if noise is not None and len(path) < len(noise):
            logits = logits + noise[len(path)]
        best = logits.log_softmax(-1).topk(shape.beams)
        return [
            ((*path, token), score + gained)
            for gained, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    level = children((), 0.0)
    found = level
    for _ in range(1, shape.depth):
        expanded = sorted(level, key=lambda item: -item[1])[: shape.beams]
        level = [child for path, score in expanded for child in children(path, score)]
        found = found + level
    return dict(sorted(found, key=lambda item: -item[1])[: budget - 1])


def check(
    model: PreTrainedModel, tree: DraftTree, text: list[int], root: int, shape: Shape, budget: int, noise: Tensor | None
) -> None:
    """The tree has the slow search's paths and scores."""
    tree.check()
    assert int(tree.tokens[0]) == root
    assert tree.source.tolist() == [-1] + [0] * (len(tree) - 1)
    paths = {tuple(path_to(tree, node)): math.log(float(tree.score[node])) for node in range(1, len(tree))}
    assert paths == pytest.approx(slow_paths(model, text, root, shape, budget, noise), abs=1e-4)


def started(proposer: DraftModelProposer, text: list[int]) -> ModelDraft:
    draft = proposer.start()
    proposer.observe(draft, torch.tensor(text), None, None)
    return draft


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("budget", [2, 5, 8, 16, 32, 60])
def test_the_tree_is_that_of_a_search_without_a_cache(budget: int, temperature: float, models: Models) -> None:
    proposer = load(models.other, models.setup)
    draft = started(proposer, TEXT)
    noise = noise_of(temperature, 3) if temperature else None  # fewer rows than the tree has levels
    tree = proposer.propose([draft], [7], [noise], budget)[0]
    assert len(tree) == budget
    check(models.reference, tree, TEXT, 7, shape_for(budget), budget, noise)


def test_a_chain_takes_the_most_likely_token_each_time(models: Models) -> None:
    proposer = load(models.other, as_chain(models.setup))
    draft = started(proposer, TEXT)
    for noise in (None, noise_of(0.7, 12)):
        tree = proposer.propose([draft], [7], [noise], 11)[0]
        assert tree.causal and tree.depth.tolist() == list(range(11))
        check(models.reference, tree, TEXT, 7, Shape(10, 1), 11, noise)


def test_the_first_token_of_a_text_is_a_root_like_any_other(models: Models) -> None:
    proposer = load(models.other, models.setup)
    check(models.reference, proposer.propose([proposer.start()], [7], [None], 8)[0], [], 7, shape_for(8), 8, None)


def test_each_session_has_its_own_noise(models: Models) -> None:
    proposer = load(models.other, models.setup)
    drafts, noise = [started(proposer, TEXT), started(proposer, TEXT[:3])], noise_of(1.0, 4)
    one, two = proposer.propose(drafts, [7, 8], [noise, None], 8)
    check(models.reference, one, TEXT, 7, shape_for(8), 8, noise)
    check(models.reference, two, TEXT[:3], 8, shape_for(8), 8, None)


def test_a_budget_of_one_is_the_root_and_reads_nothing(models: Models) -> None:
    for setup in (models.setup, as_chain(models.setup)):
        proposer = load(models.other, setup)
        draft = started(proposer, TEXT)
        assert proposer.propose([draft], [7], [None], 1)[0].tokens.tolist() == [7]
        assert draft.cache.num_pages == 0


def test_a_long_text_is_read_in_chunks(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """The root alone in its chunk, and together with others."""
    monkeypatch.setattr("engine.proposers.draft_model.CATCH_UP_CHUNK", 4)
    proposer = load(models.other, models.setup)
    for text in (TEXT, [*TEXT, 8], [*TEXT, 8, 9, 7]):
        for early in (False, True):
            draft = started(proposer, text)
            if early:
                chunks = 1
                while proposer.catch_up(draft):
                    assert draft.cache.length == 4 * chunks, "a chunk at a time, for whoever else has work"
                    chunks += 1
                assert draft.cache.length == len(text)
            check(models.reference, proposer.propose([draft], [6], [None], 8)[0], text, 6, shape_for(8), 8, None)
            draft.close()
    assert proposer.model.pool.pages_in_use == 0


def test_a_reply_does_not_stand_still_for_a_text_that_nobody_had_time_to_read(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.proposers.draft_model.CATCH_UP_CHUNK", 3)
    monkeypatch.setattr("engine.proposers.draft_model.MOST_UNREAD", 4)
    proposer = load(models.other, models.setup)
    draft = started(proposer, TEXT)  # 8 tokens
    for read in (3, 6):
        assert len(proposer.propose([draft], [6], [None], 8)[0]) == 1
        assert draft.cache.length == read
    check(models.reference, proposer.propose([draft], [6], [None], 8)[0], TEXT, 6, shape_for(8), 8, None)
    draft.close()


@pytest.mark.parametrize("seed", range(8))
def test_it_follows_the_session_through_anything(seed: int, models: Models) -> None:
    """Random texts, proposals, rewinds, forks and catching up: the tree is always that of the text alone."""
    proposer, rng = load(models.other, models.setup), random.Random(seed)
    pool = proposer.model.pool
    sessions: list[tuple[ModelDraft, list[int]]] = [(proposer.start(), [5])]  # a text has one token more than observed
    for _ in range(40):
        draft, text = sessions[rng.randrange(len(sessions))]
        action = rng.choice(["observe", "observe", "propose", "propose", "rewind", "fork", "catch up", "close"])
        if action == "observe":
            start = draft.length
            text += [rng.randrange(checkpoints.VOCAB) for _ in range(rng.randint(1, 6))]
            proposer.observe(draft, torch.tensor(text[start:-1]), None, None)
        elif action == "propose":
            noise = rng.choice([None, noise_of(1.0, 8, seed)])
            tree = proposer.propose([draft], text[-1:], [noise], 8)[0]
            check(models.reference, tree, text[:-1], text[-1], shape_for(8), 8, noise)
            if rng.random() < 0.5:  # a path of the tree is accepted, and something else follows it
                path = path_to(tree, rng.randrange(len(tree)))
                proposer.observe(draft, torch.tensor([text[-1], *path]), None, None)
                text += [*path, rng.randrange(checkpoints.VOCAB)]
        elif action == "rewind":
            del text[rng.randint(1, len(text)) :]
            if len(text) - 1 < draft.length:
                draft.truncate(len(text) - 1)
        elif action == "fork" and len(sessions) < 4:
            sessions.append((draft.fork(), text.copy()))
        elif action == "catch up":
            proposer.catch_up(draft)
            assert draft.cache.length == draft.length
        elif action == "close" and len(sessions) > 1:
            sessions.remove((draft, text))
            draft.close()
            draft.close()
        for draft, text in sessions:
            assert draft.tokens == text[:-1] and draft.cache.length <= draft.length
        assert pool.pages_in_use == len({page for draft, _ in sessions for page in draft.cache._pages})
    for draft, _ in sessions:
        draft.close()
    assert pool.pages_in_use == 0


def test_running_out_of_pages_loses_nothing(models: Models) -> None:
    setup = Setup(models.setup.target, models.setup.model, pool_tokens=32, page_tokens=4)
    proposer = load(models.other, setup)
    hog, draft = started(proposer, TEXT * 2), started(proposer, TEXT + TEXT[:6])
    proposer.catch_up(hog)
    for _ in range(2):
        with pytest.raises(OutOfPages):  # the text alone would fit
            proposer.propose([draft], [7], [None], 8)
        assert draft.length == 14 and draft.cache.length == 0 and draft.cache.num_pages == 0
    proposer.catch_up(draft)
    with pytest.raises(OutOfPages):
        proposer.propose([draft], [7], [None], 8)
    assert draft.cache.length == 14
    hog.close()
    tree = proposer.propose([draft], [7], [None], 8)[0]
    check(models.reference, tree, TEXT + TEXT[:6], 7, shape_for(8), 8, None)


def test_it_stops_drafting_where_its_own_context_ends(models: Models) -> None:
    proposer = load(models.short, models.setup)
    text = (TEXT * 4)[:30]
    draft, depths = proposer.start(), []
    for position, token in enumerate(text):
        tree = proposer.propose([draft], [token], [None], 8)[0]
        depth = min(4, 24 - position)
        depths.append(int(tree.depth.max()))
        if position in (18, 21, 23):
            check(models.short_reference, tree, text[:position], token, Shape(depth, 2), 8, None)
        proposer.observe(draft, torch.tensor([token]), None, None)
        proposer.catch_up(draft)
    assert max(depths) <= 4 and min(depths[:24]) >= 1
    assert depths[23:] == [1, 0, 0, 0, 0, 0, 0]
    draft.truncate(19)
    tree = proposer.propose([draft], [text[19]], [None], 8)[0]
    check(models.short_reference, tree, text[:19], text[19], Shape(4, 2), 8, None)


def said(
    engine: Engine, prompt: list[int], sampling: Sampling, *, drafting: bool = True
) -> tuple[list[int], list[str]]:
    """A reply of 40 tokens, and what became of each drafted step but the last, which the limit may cut."""
    session = engine.open("call", prompt)
    turn = engine.submit(session, sampling, max_tokens=40, drafting=drafting)
    outcomes = []
    while turn.finish is None:
        (step,) = engine.step([Work(session)])
        if step.drafted and turn.finish is None:
            outcomes.append("all" if step.accepted == step.drafted else "some" if step.accepted else "none")
    engine.close(session)
    return turn.tokens, outcomes


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_target_as_its_own_draft_model_is_always_right(sampling: Sampling, models: Models) -> None:
    target = models.setup.target
    chain = Engine(target, load(models.setup.model, as_chain(models.setup)), FixedPolicy(6), coupled=True)
    tree = Engine(target, load(models.setup.model, models.setup), FixedPolicy(16), coupled=True)
    wanted, _ = said(chain, TEXT, sampling, drafting=False)
    tokens, outcomes = said(chain, TEXT, sampling)
    assert tokens == wanted
    assert outcomes == ["all"] * 6  # the first token, and six steps of six; the last three are cut
    tokens, outcomes = said(tree, TEXT, sampling)
    assert tokens == wanted
    assert "none" not in outcomes


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_replies_are_those_without_a_drafter(sampling: Sampling, models: Models) -> None:
    rng, seen = random.Random(7), set[str]()
    for directory in (models.near, models.other, models.short):
        proposer = load(directory, models.setup)
        engine = Engine(models.setup.target, proposer, FixedPolicy(8), coupled=True)
        for _ in range(3):
            prompt = [rng.randrange(checkpoints.VOCAB) for _ in range(rng.randint(1, 12))]
            wanted, _ = said(engine, prompt, sampling, drafting=False)
            tokens, outcomes = said(engine, prompt, sampling)
            assert tokens == wanted
            seen.update(outcomes)
        assert proposer.model.pool.pages_in_use == 0 and models.setup.target.pool.pages_in_use == 0
    assert seen >= {"some", "none"}
