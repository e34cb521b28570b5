"""Merged trees: structure, the columns each part is shown, calibration against the text, and when a part is spared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.config import split_drafters
from engine.errors import ModelError, OutOfPages
from engine.interfaces import Draft, Tap
from engine.proposers.cascade import ASKED_EVERY, KNOWN_TREES, Calibration, Cascade, CascadeDraft, MergedTree
from engine.proposers.none import NoDraft
from engine.proposers.setup import Setup
from engine.proposers.table import load_drafters, parse
from engine.tree import DraftTree


class Scripted:
    """Drafts a given tree and keeps what it was shown."""

    noise_levels = 0

    def __init__(self, name: str, tree: DraftTree, taps: Sequence[Tap] = (), top_k: int = 0) -> None:
        self.name, self.tree, self.taps, self.top_k = name, tree, taps, top_k
        self.shown: list[tuple[Tensor, Tensor | None, Tensor | None]] = []
        self.asked = 0

    def start(self) -> NoDraft:
        return NoDraft()

    def observe(self, draft: Draft, tokens: Tensor, features: Tensor | None, top_ids: Tensor | None) -> None:
        assert isinstance(draft, NoDraft)
        draft.extend(tokens.numel())
        self.shown.append((tokens, features, top_ids))

    def behind(self, draft: Draft) -> int:
        return 0

    def catch_up(self, draft: Draft) -> bool:
        self.asked -= 100
        return False

    def propose(
        self, drafts: Sequence[Draft], roots: Sequence[int], noise: Sequence[Tensor | None], budget: int
    ) -> list[DraftTree]:
        self.asked += 1
        return [self.tree]


def tree_of(tokens: list[int], parents: list[int], scores: list[float], source: int) -> DraftTree:
    n = len(tokens)
    return DraftTree(torch.tensor(tokens), torch.tensor(parents), torch.tensor(scores), torch.full((n,), source))


def random_tree(draw: st.DrawFn, source: int) -> DraftTree:
    tokens, parents, scores, edges = [0], [-1], [1.0], set()
    for _ in range(draw(st.integers(0, 10))):
        parent, token = draw(st.integers(0, len(tokens) - 1)), draw(st.integers(0, 3))
        if (parent, token) not in edges:
            edges.add((parent, token))
            tokens.append(token)
            parents.append(parent)
            scores.append(scores[parent] * draw(st.floats(0.1, 1.0)))
    return tree_of(tokens, parents, scores, source)


def paths(tree: DraftTree) -> set[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [()]
    for node in range(1, len(tree)):
        found.append((*found[int(tree.parents[node])], int(tree.tokens[node])))
    return set(found)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 30))
def test_a_merged_tree_holds_the_paths_of_all_and_keeps_its_budget(data: st.DataObject, budget: int) -> None:
    trees = [data.draw(st.composite(random_tree)(source)) for source in range(3)]
    merged, calibration = MergedTree(0), Calibration(3)
    for source, tree in enumerate(trees):
        merged.add(tree, source, calibration)
    whole, cut = merged.tree(100), merged.tree(budget)
    whole.check()
    cut.check()
    assert paths(whole) == set().union(*(paths(tree) for tree in trees))
    assert len(cut) == min(budget, len(whole)) and paths(cut) <= paths(whole)
    for node in range(1, len(whole)):
        assert whole.score[node] <= whole.score[int(whole.parents[node])] + 1e-6
    assert merged.gain(budget) == pytest.approx(float(cut.score[1:].sum()))


def test_a_node_that_two_draft_is_said_to_be_of_the_surer_one() -> None:
    merged, calibration = MergedTree(9), Calibration(2)
    merged.add(tree_of([9, 1, 2], [-1, 0, 1], [1.0, 0.3, 0.2], 0), 0, calibration)
    merged.add(tree_of([9, 1, 3], [-1, 0, 0], [1.0, 0.8, 0.1], 1), 1, calibration)
    tree = merged.tree(8)
    assert list(zip(tree.tokens.tolist(), tree.source.tolist(), strict=True)) == [(9, -1), (1, 1), (2, 0), (3, 1)]


def test_each_part_is_shown_its_own_taps_and_top_ids() -> None:
    root = tree_of([0], [-1], [1.0], 0)
    parts = [Scripted("a", root, (4, 1)), Scripted("b", root, (), 2), Scripted("c", root, (1, "norm"), 3)]
    cascade = Cascade(parts)
    assert cascade.taps == (4, 1, "norm") and cascade.top_k == 3 and cascade.name == "a+b+c"
    features = torch.randn(2, 3, 5)
    cascade.observe(cascade.start(), torch.tensor([7, 8]), features, torch.tensor([[1, 2, 3], [4, 5, 6]]))
    assert torch.equal(parts[0].shown[0][1], features[:, :2])
    assert parts[1].shown[0][1] is None and parts[1].shown[0][2].tolist() == [[1, 2], [4, 5]]
    assert torch.equal(parts[2].shown[0][1], features[:, 1:]) and parts[2].shown[0][2].shape == (2, 3)
    cascade.catch_up(cascade.start())
    assert all(part.asked == -100 for part in parts)


def test_scores_become_the_acceptance_that_was_measured() -> None:
    """One source is always right and modest, the other always wrong and sure of itself."""
    modest = Scripted("modest", tree_of([0, 1, 2], [-1, 0, 1], [1.0, 0.2, 0.1], 0))
    vain = Scripted("vain", tree_of([0, 5, 6], [-1, 0, 1], [1.0, 0.95, 0.9], 1))
    cascade = Cascade([modest, vain])
    draft = cascade.start()
    first = cascade.propose([draft], [0], [None], 3)[0]
    assert first.tokens.tolist() == [0, 5, 6]
    for _ in range(30):
        cascade.observe(draft, torch.tensor([0, 1, 2]), None, None)
        cascade.propose([draft], [0], [None], 3)
    tree = cascade.propose([draft], [0], [None], 3)[0]
    assert tree.tokens.tolist() == [0, 1, 2] and set(tree.source.tolist()) == {-1, 0}
    assert float(tree.score[2]) > 0.7


def test_a_later_source_is_spared_where_the_first_says_enough() -> None:
    sure = Scripted("sure", tree_of([0, 1, 2, 3], [-1, 0, 1, 2], [1.0, 0.95, 0.95, 0.95], 0))
    costly = Scripted("costly", tree_of([0, 1], [-1, 0], [1.0, 0.5], 1))
    cascade = Cascade([sure, costly])
    draft = cascade.start()
    for _ in range(KNOWN_TREES + 10):
        cascade.propose([draft], [0], [None], 8)
        cascade.observe(draft, torch.tensor([0, 1, 2, 3]), None, None)
    assert costly.asked < KNOWN_TREES + 5
    before = costly.asked
    for _ in range(120):  # always wrong
        cascade.propose([draft], [0], [None], 8)
        cascade.observe(draft, torch.tensor([0, 7, 7, 7]), None, None)
    assert costly.asked > before + 6, "more often than it is asked again anyway"


def test_a_rewind_forgets_trees_whose_outcome_is_taken_back() -> None:
    part = Scripted("a", tree_of([0, 1], [-1, 0], [1.0, 0.5], 0))
    cascade = Cascade([part])
    draft = cascade.start()
    cascade.observe(draft, torch.tensor([3, 4, 5]), None, None)
    cascade.propose([draft], [0], [None], 4)
    assert len(draft.open) == 1
    child = draft.fork()
    assert isinstance(child, CascadeDraft) and not child.open and child.following(0) == [4, 5]
    draft.truncate(2)
    assert not draft.open and draft.following(0) == [4] and draft.length == 2
    draft.close()
    assert draft.following(0) is None


def test_specifications_name_known_drafters() -> None:
    assert [name for name, _ in parse("suffix+recycling")] == ["suffix", "recycling"]
    name, path = parse("eagle3:/some/where")[0]
    assert name == "eagle3" and str(path) == "/some/where"
    for wrong in ("", "eagle", "suffix+", "/a/directory"):
        with pytest.raises(ModelError, match="not known; these are: none, suffix"):
            parse(wrong)


def test_a_drafter_that_needs_a_checkpoint_says_so() -> None:
    with pytest.raises(ModelError, match="eagle3 needs a checkpoint: eagle3:DIRECTORY"):
        load_drafters("suffix+eagle3", Setup(None, Path("m"), 64))  # type: ignore[arg-type]


def test_a_source_that_is_wrong_from_its_first_token_is_found_out_however_deep_it_drafts() -> None:
    wrong = Scripted("wrong", tree_of([0, 5, 6, 7, 8, 9, 4], [-1, 0, 1, 2, 3, 4, 5], [1.0] + [0.9] * 6, 0))
    right = Scripted("right", tree_of([0, 1, 2], [-1, 0, 1], [1.0, 0.3, 0.3], 1))
    cascade = Cascade([wrong, right])
    draft = cascade.start()
    for token in (0, 1, 2) * 30:
        cascade.propose([draft], [token], [None], 4)
        cascade.observe(draft, torch.tensor([token]), None, None)
        assert len(draft.open) <= 3, "what the text has left is settled"
    assert right.asked > 60
    assert cascade.calibration.rate(0, 1, 0.9) < 0.2


def test_a_source_is_asked_until_it_is_known_and_again_now_and_then() -> None:
    calibration = Calibration(2)
    assert not calibration.spares(1, 100.0)
    for _ in range(KNOWN_TREES):
        calibration.count_tree(1, 2)
    spared = [calibration.spares(1, 2.5) for _ in range(2 * ASKED_EVERY + 2)]
    assert spared.count(False) == 2 and not calibration.spares(1, 1.5)


def test_old_acceptance_is_forgotten() -> None:
    calibration = Calibration(1)
    for right in (True, False):
        for _ in range(1000):
            calibration.count(0, 1, 0.5, right)
    assert calibration.rate(0, 1, 0.5) < 0.1


class OutOfRoom(Scripted):
    def catch_up(self, draft: Draft) -> bool:
        raise OutOfPages("none left")

    def propose(
        self, drafts: Sequence[Draft], roots: Sequence[int], noise: Sequence[Tensor | None], budget: int
    ) -> list[DraftTree]:
        raise OutOfPages("none left")


def test_a_source_without_room_does_not_take_the_others_trees_along() -> None:
    tree = tree_of([0, 1], [-1, 0], [1.0, 0.5], 0)
    full, other = OutOfRoom("full", tree), Scripted("other", tree)
    cascade = Cascade([full, other])
    draft = cascade.start()
    assert cascade.propose([draft], [0], [None], 4)[0].tokens.tolist() == [0, 1]
    cascade.catch_up(draft)
    assert other.asked == 1 - 100


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("eagle3:/models/a+b/eagle3", [("eagle3", "/models/a+b/eagle3")]),
        ("suffix+eagle3:/a:b+recycling", [("suffix", ""), ("eagle3", "/a:b"), ("recycling", "")]),
        ("suffix+", [("suffix", ""), ("", "")]),
    ],
)
def test_a_plus_inside_a_directorys_name_splits_nothing(spec: str, found: list[tuple[str, str]]) -> None:
    assert split_drafters(spec) == found


def test_a_directory_alone_and_a_checkpoint_that_goes_unused_are_refused() -> None:
    with pytest.raises(ModelError, match="for an EAGLE-3 head write eagle3:/a/directory"):
        parse("/a/directory")
    with pytest.raises(ModelError, match="suffix takes no checkpoint"):
        parse("suffix:/a/directory")
