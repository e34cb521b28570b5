"""The dynamic rule against every candidate written out, and the turn's noise in a pair head's search."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.models.decoder import Decoder
from engine.proposers.eagle3 import load_eagle3
from engine.proposers.pairs.proposer import PairProposer
from engine.proposers.search import NOISE_LEVELS, Shape, grow, noise_at, shape_for
from engine.tree import DraftTree
from tests.engine import checkpoints
from tests.engine import loading as targets
from tests.engine.proposers import heads
from tests.engine.proposers.test_eagle3 import features, path_to

Paths = dict[tuple[int, ...], float]
WORDS = 12
TEXT, ROOT = [3, 1, 4, 1, 5, 9, 2, 6], 7


def random_log_probs(path: tuple[int, ...]) -> Tensor:
    """[WORDS] behind a path: any function of it will do."""
    generator = torch.Generator().manual_seed(hash(path) % 2**31)
    return torch.randn(WORDS, generator=generator).mul_(2.0).log_softmax(-1)


class Remembering:
    """An ``Expand`` that knows the path to each node of the level by the ids and parents it was given."""

    def __init__(self) -> None:
        self.level: list[tuple[int, ...]] = [()]

    def __call__(self, level: int, ids: Tensor, rows: Tensor) -> Tensor:
        pairs = zip(ids.tolist(), rows.tolist(), strict=True)
        self.level = [(*self.level[parent], token) for token, parent in pairs]
        assert {len(path) for path in self.level} == {level}
        return torch.stack([random_log_probs(path) for path in self.level])


def searched(shape: Shape) -> Paths:
    """Every candidate: all children of the best ``beams`` nodes of each level that stand among their parent's best."""
    level: Paths = {(): 0.0}
    found: Paths = {}
    for _ in range(shape.depth):
        children: Paths = {}
        for path, score in sorted(level.items(), key=lambda item: -item[1])[: shape.beams]:
            log_probs = random_log_probs(path)
            children |= {(*path, i): score + float(log_probs[i]) for i in log_probs.topk(shape.beams).indices.tolist()}
        found |= children
        level = children
    return found


def paths(tree: DraftTree) -> Paths:
    return {tuple(path_to(tree, node)): math.log(float(tree.score[node])) for node in range(1, len(tree))}


@pytest.mark.parametrize("shape", [Shape(1, 3), Shape(4, 2), Shape(3, 5), Shape(5, 1)])
def test_the_best_of_all_candidates_are_kept(shape: Shape) -> None:
    wanted = sorted(searched(shape).items(), key=lambda item: -item[1])
    candidates = grow(random_log_probs(()), Remembering(), shape)
    assert candidates.ids.numel() == len(wanted)
    for budget in (2, 4, len(wanted), len(wanted) + 1, len(wanted) + 9):
        tree = candidates.tree(77, budget, source=5)
        tree.check()
        assert paths(tree) == pytest.approx(dict(wanted[: budget - 1]), abs=1e-4)
        assert int(tree.tokens[0]) == 77 and tree.source.tolist() == [-1] + [5] * (len(tree) - 1)
        assert tree.causal == (shape.beams == 1)


def test_ties_keep_parents_before_their_children() -> None:
    """A child that is certain is as likely as its parent."""

    def certain(level: int, ids: Tensor, rows: Tensor) -> Tensor:
        out = torch.full((ids.numel(), WORDS), -torch.inf)
        out[:, :2] = torch.tensor([0.0, -9.0])
        return out

    candidates = grow(torch.full((WORDS,), -math.log(WORDS)), certain, Shape(4, 2))
    for budget in range(2, 15):
        candidates.tree(0, budget, source=0).check()


def test_ids_are_mapped_to_the_targets() -> None:
    to_target = torch.arange(WORDS) * 3 + 1
    candidates = grow(random_log_probs(()), Remembering(), Shape(3, 3))
    plain, mapped = candidates.tree(0, 8, 0), candidates.tree(0, 8, 0, to_target)
    assert mapped.tokens[1:].tolist() == [3 * token + 1 for token in plain.tokens[1:].tolist()]


def test_a_search_has_candidates_for_its_budget() -> None:
    for budget in range(2, 62):
        shape = shape_for(budget)
        assert shape.beams + (shape.depth - 1) * shape.beams**2 >= budget - 1
        assert shape.depth < min(budget, NOISE_LEVELS)
        assert shape_for(budget, chain=True) == Shape(budget - 1, 1)


def test_noise_ends_with_its_rows() -> None:
    noise = torch.arange(6.0).view(2, 3)
    rows = [noise_at(noise, level) for level in range(3)]
    assert rows[2] is None and noise_at(None, 0) is None
    assert [row.tolist() for row in rows if row is not None] == [[0, 1, 2], [3, 4, 5]]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    directory = tmp_path_factory.mktemp("target")
    checkpoints.write("qwen3-qk-norm", directory)
    return targets.load(directory, torch.float64)


def pair(target: Decoder, directory: Path, *, chain: bool) -> tuple[PairProposer, heads.SlowHead]:
    tensors = heads.random_head(target.config)
    heads.write(directory, tensors, heads.head_config(target.config))
    proposer = load_eagle3(directory, target, pool_tokens=2048, taps=(1, 2, 4), chain=chain)
    return proposer, heads.SlowHead(tensors, target.embedding)


def slow_score(slow: heads.SlowHead, f: Tensor, path: tuple[int, ...], noise: Tensor) -> float:
    """Of a path behind ROOT: each level's logits gain the noise of that level, read by the target's ids."""
    ids = (torch.arange(60) + slow.t["d2t"]).tolist()
    hidden, follow, total = slow.fuse(f), [*TEXT[1:], ROOT], 0.0
    for depth, token in enumerate(path):
        out = slow.run(hidden, follow)[-1:]
        logits = (slow.norm(out, slow.t["norm.weight"]) @ slow.t["lm_head.weight"].T)[0]
        if depth < len(noise):
            logits = logits + torch.stack([noise[depth, i] for i in ids])
        total += float(logits.log_softmax(-1)[ids.index(token)])
        hidden, follow = torch.cat([hidden, out]), [*follow, token]
    return total


@pytest.mark.parametrize(("budget", "chain"), [(8, False), (32, False), (7, True)])
@pytest.mark.parametrize("levels", [2, 8])
def test_a_pair_heads_tree_follows_the_turns_noise(
    budget: int, chain: bool, levels: int, target: Decoder, tmp_path: Path
) -> None:
    proposer, slow = pair(target, tmp_path, chain=chain)
    f = features(target, TEXT)
    noise = 3 * torch.randn(levels, checkpoints.VOCAB, generator=torch.Generator().manual_seed(levels))
    draft = proposer.start()
    proposer.observe(draft, torch.tensor(TEXT), f, None)
    noised = proposer.propose([draft], [ROOT], [noise], budget)[0]
    plain = proposer.propose([draft], [ROOT], [None], budget)[0]
    silent = proposer.propose([draft], [ROOT], [torch.zeros(levels, checkpoints.VOCAB)], budget)[0]
    noised.check()
    assert len(noised) == budget
    for path, score in paths(noised).items():
        assert score == pytest.approx(slow_score(slow, f, path, noise), abs=1e-4)
    assert paths(noised).keys() != paths(plain).keys()
    assert paths(silent) == paths(plain)
    ids = torch.arange(60) + slow.t["d2t"]
    best = max(ids.tolist(), key=lambda token: slow_score(slow, f, (token,), noise))
    assert best in noised.tokens[noised.parents == 0].tolist()
    draft.close()
