"""The EAGLE-3 proposer against a slow head that recomputes everything, through rewinds, forks and restarts."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from torch import Tensor

from engine.models.decoder import Decoder
from engine.proposers.eagle3 import load_eagle3
from engine.proposers.pairs import draft as draft_module
from engine.proposers.pairs import waiting as waiting_module
from engine.proposers.pairs.draft import PairDraft
from engine.proposers.pairs.proposer import PairProposer
from engine.tree import DraftTree
from tests.engine import checkpoints
from tests.engine.loading import load
from tests.engine.proposers import heads


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    directory = tmp_path_factory.mktemp("target")
    checkpoints.write("qwen3-qk-norm", directory)
    return load(directory, torch.float64)


@pytest.fixture(scope="module")
def pair(target: Decoder, tmp_path_factory: pytest.TempPathFactory) -> tuple[PairProposer, heads.SlowHead]:
    tensors = heads.random_head(target.config)
    directory = heads.write(tmp_path_factory.mktemp("head"), tensors, heads.head_config(target.config))
    proposer = load_eagle3(directory, target, pool_tokens=2048, taps=(1, 2, 4))
    return proposer, heads.SlowHead(tensors, target.embedding)


def features(target: Decoder, tokens: list[int]) -> Tensor:
    """Any deterministic function of the position's past will do for a feature; only who gets which matters."""
    rows = []
    for i in range(len(tokens)):
        g = torch.Generator().manual_seed(hash(tuple(tokens[: i + 1])) % 2**31)
        rows.append(torch.randn(3, target.config.hidden_size, generator=g, dtype=torch.float64))
    return torch.stack(rows)


def log_of(target: Decoder, seed: int, length: int) -> tuple[list[int], Tensor]:
    """Tokens of a log, drawn at random, and their features."""
    rng = random.Random(seed)
    tokens = [rng.randrange(checkpoints.VOCAB) for _ in range(length)]
    return tokens, features(target, tokens)


def path_to(tree: DraftTree, node: int) -> list[int]:
    path: list[int] = []
    while node > 0:
        path.insert(0, int(tree.tokens[node]))
        node = int(tree.parents[node])
    return path


def check(target: Decoder, slow: heads.SlowHead, tree: DraftTree, tokens: list[int], root: int) -> None:
    """Every node's score is the probability that the slow head gives its path."""
    check_scores(slow, tree, features(target, tokens), tokens, root)


def check_scores(slow: heads.SlowHead, tree: DraftTree, known: Tensor, tokens: list[int], root: int) -> None:
    """The same where the head knows no more than these features and tokens."""
    tree.check()
    for node in range(1, len(tree)):
        wanted = slow.log_prob(known, tokens, root, path_to(tree, node))
        assert math.log(float(tree.score[node])) == pytest.approx(wanted, abs=1e-5)


def test_a_pair_joins_a_feature_with_the_token_after_it(
    target: Decoder, pair: tuple[PairProposer, heads.SlowHead]
) -> None:
    """Worked by hand: positions 0, 1, 2 hold tokens 5, 6, 7 and the root 8 stands at 3. The head reads the pairs
    (f0, 6), (f1, 7), (f2, 8), and its last output is the first guess."""
    proposer, slow = pair
    tokens, root = [5, 6, 7], 8
    f = features(target, tokens)
    draft = proposer.start()
    proposer.observe(draft, torch.tensor(tokens), f, None)
    tree = proposer.propose([draft], [root], [None], 5)[0]
    out = slow.run(slow.fuse(f), [6, 7, 8])[-1:]
    logits = slow.norm(out, slow.t["norm.weight"]) @ slow.t["lm_head.weight"].T
    best = int(logits.argmax())
    assert int(tree.tokens[1]) == best + int(slow.t["d2t"][best])
    assert draft.num_pairs == 3
    draft.close()


@pytest.mark.parametrize("budget", [2, 5, 8, 16, 24, 32, 60])
def test_scores_are_the_slow_heads(budget: int, target: Decoder, pair: tuple[PairProposer, heads.SlowHead]) -> None:
    proposer, slow = pair
    tokens = [3, 1, 4, 1, 5, 9, 2, 6]
    draft = proposer.start()
    proposer.observe(draft, torch.tensor(tokens), features(target, tokens), None)
    tree = proposer.propose([draft], [7], [None], budget)[0]
    assert len(tree) == budget
    check(target, slow, tree, tokens, 7)
    draft.close()


def test_the_tree_holds_the_most_likely_first_tokens(
    target: Decoder, pair: tuple[PairProposer, heads.SlowHead]
) -> None:
    proposer, slow = pair
    tokens = [9, 8, 7]
    draft = proposer.start()
    proposer.observe(draft, torch.tensor(tokens), features(target, tokens), None)
    tree = proposer.propose([draft], [6], [None], 60)[0]
    f = features(target, tokens)
    ids = (torch.arange(60) + slow.t["d2t"]).tolist()
    ranked = sorted(ids, key=lambda token: -slow.log_prob(f, tokens, 6, [token]))
    first_level = [int(t) for t, p in zip(tree.tokens, tree.parents, strict=True) if int(p) == 0]
    assert set(first_level) == set(ranked[: len(first_level)])
    draft.close()


@pytest.mark.parametrize("seed", range(12))
def test_it_follows_the_cache_through_anything(
    seed: int, target: Decoder, pair: tuple[PairProposer, heads.SlowHead]
) -> None:
    """Random appends, proposals, rewinds, forks and catching up: the tree is that of a fresh draft every time."""
    proposer, slow = pair
    rng = random.Random(seed)
    draft, log = proposer.start(), [rng.randrange(checkpoints.VOCAB)]  # log: one token more than was observed
    others: list[PairDraft] = []
    rewound = False  # the engine forwards at least one token between a rewind and the next proposal
    for _ in range(25):
        action = rng.choice(["observe", "observe", "propose", "rewind", "fork", "catch up"])
        if action == "observe":
            new = [rng.randrange(checkpoints.VOCAB) for _ in range(rng.randint(1, 6))]
            start = draft.length
            log += new
            proposer.observe(draft, torch.tensor(log[start:-1]), features(target, log[:-1])[start:], None)
            rewound = False
        elif action == "propose" and draft.length and not rewound:
            tree = proposer.propose([draft], [log[-1]], [None], rng.choice([4, 8]))[0]
            check(target, slow, tree, log[:-1], log[-1])
        elif action == "rewind" and draft.length > 1:
            keep = rng.randint(1, len(log))
            log = log[:keep]
            if keep - 1 < draft.length:
                draft.truncate(keep - 1)
                rewound = True
        elif action == "fork":
            others.append(draft)
            draft = draft.fork()
        elif action == "catch up":
            proposer.catch_up(draft)
        assert draft.length == len(log) - 1
    for other in [*others, draft]:
        other.close()
    assert proposer.pool.pages_in_use == 0


@pytest.mark.parametrize("raw", [1024, 20])
@pytest.mark.parametrize("pieces", [[80], [40, 40], [40, 33, 7], [32, 32, 16], [48, 32]])
def test_a_long_prompt_is_read_to_its_beginning(
    pieces: list[int],
    raw: int,
    target: Decoder,
    pair: tuple[PairProposer, heads.SlowHead],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though it is longer than what may wait, in one piece or several, and nobody lets the drafter catch up. With no
    piece more pairs are made than it has tokens, and no more are projected: others wait for the same step.
    """
    monkeypatch.setattr(draft_module, "MAX_WAITING", 48)
    monkeypatch.setattr(waiting_module, "PROMPT_RAW", raw)
    proposer, slow = pair
    tokens, f = log_of(target, 4, 80)
    draft = proposer.start()
    for end, piece in zip(itertools.accumulate(pieces), pieces, strict=True):
        made, states = draft.num_pairs, draft.waiting.num_raw
        proposer.observe(draft, torch.tensor(tokens[end - piece : end]), f[end - piece : end], None)
        assert draft.num_pairs - made <= piece
        if piece >= draft_module.PROMPT_TOKENS:
            assert draft.waiting.num_raw == min(states + piece, raw, draft.waiting.num)
        assert draft.base == 0 and draft.length - draft.num_pairs <= 48
    check(target, slow, proposer.propose([draft], [7], [None], 6)[0], tokens, 7)
    draft.close()


def test_a_long_prompt_without_pages_for_its_pairs_restarts_with_a_window(
    target: Decoder, pair: tuple[PairProposer, heads.SlowHead], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft_module, "MAX_WAITING", 48)
    proposer, _ = pair
    hog = proposer.start()
    hog.cache.reserve((proposer.pool.num_pages - 1) * proposer.pool.page_tokens)
    tokens, f = log_of(target, 4, 80)
    draft = proposer.start()
    proposer.observe(draft, torch.tensor(tokens), f, None)
    assert draft.base == 80 - 24
    hog.close()
    draft.close()


def test_a_draft_whose_pairs_could_not_be_made_starts_over(
    target: Decoder, pair: tuple[PairProposer, heads.SlowHead], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head fails once: what it was given is lost, and from there on the call is drafted for as any other."""
    proposer, slow = pair
    tokens, f = log_of(target, 5, 20)
    draft = proposer.start()
    proposer.observe(draft, torch.tensor(tokens[:12]), f[:12], None)
    with monkeypatch.context() as broken:
        broken.setattr(proposer.head, "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            proposer.propose([draft], [tokens[12]], [None], 6)
    assert (draft.base, draft.length, draft.num_pairs) == (12, 12, 12)
    proposer.observe(draft, torch.tensor(tokens[12:]), f[12:], None)
    tree = proposer.propose([draft], [7], [None], 6)[0]
    assert len(tree) == 6
    check_scores(slow, tree, f[12:], tokens[12:], 7)
    draft.close()
    assert proposer.pool.pages_in_use == 0


def test_what_waited_for_long_was_projected_and_drafts_the_same(
    target: Decoder, pair: tuple[PairProposer, heads.SlowHead]
) -> None:
    """A prompt, and a reply that others drafted. Cut back behind what was projected, it is drafted for as well."""
    proposer, slow = pair
    tokens, f = log_of(target, 6, 260)
    draft = proposer.start()
    proposer.observe(draft, torch.tensor(tokens[:100]), f[:100], None)
    assert draft.waiting.num_raw == 100
    for start in range(100, 260, 4):
        proposer.observe(draft, torch.tensor(tokens[start : start + 4]), f[start : start + 4], None)
    assert draft.waiting.num == 260 and draft.waiting.num_raw < waiting_module.RAW_MOST
    child = draft.fork()
    check(target, slow, proposer.propose([draft], [7], [None], 6)[0], tokens, 7)
    child.truncate(90)
    assert child.waiting.num_raw == 0
    check(target, slow, proposer.propose([child], [7], [None], 6)[0], tokens[:90], 7)
    draft.close()
    child.close()
    assert proposer.pool.pages_in_use == 0


def test_a_draft_that_was_off_for_long_restarts_with_a_window(
    target: Decoder, pair: tuple[PairProposer, heads.SlowHead], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft_module, "MAX_WAITING", 16)
    proposer, slow = pair
    tokens, f = log_of(target, 3, 40)
    draft = proposer.start()
    for start in range(0, 40, 4):
        proposer.observe(draft, torch.tensor(tokens[start : start + 4]), f[start : start + 4], None)
    assert draft.base > 0
    tree = proposer.propose([draft], [7], [None], 6)[0]
    check_scores(slow, tree, f[draft.base :], tokens[draft.base :], 7)
    draft.truncate(draft.base - 2)
    assert draft.length == draft.base
    draft.close()
