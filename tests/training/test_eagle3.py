"""The EAGLE-3 trainer: its unroll is the engine's drafting, its rows are replies, and it goes on where it stopped."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from engine.interfaces import Window
from engine.models.decoder import load_target as load_engine_target
from engine.proposers.eagle3 import load_eagle3
from engine.tree import DraftTree
from tests.engine.embedded import MODEL
from training.corpus import Corpus
from training.eagle3.head import Eagle3Head, Rows
from training.eagle3.objective import Teacher, training_loss
from training.eagle3.rows import STEPS, batches, collate, frequent_ids
from training.eagle3.train import Trainer, load_target
from training.llama import Llama, Shape

SMALL = Shape(
    vocab=96, hidden=48, layers=8, heads=4, kv_heads=2, head_dim=16, intermediate=64, rope_theta=700.0, max_positions=64
)


def randomise(module, seed):
    """Weights far from their beginnings, as bf16 holds them: constants would hide mistakes."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            noise = torch.randn(weight.shape, generator=g)
            value = 1 + 0.3 * noise if name.endswith("norm.weight") else noise * weight.shape[-1] ** -0.5
            weight.copy_(value.bfloat16())
    return module.requires_grad_(False)


@pytest.fixture(scope="module")
def small_target(tmp_path_factory):
    """A random target as a Hugging Face directory."""
    directory = tmp_path_factory.mktemp("target")
    target = randomise(Llama(SMALL), 0)
    save_file(target.state_dict(), directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(SMALL.config()))
    return directory


def log_probs_of_drafting(directory, head_directory, ids, at):
    """[STEPS, draft vocabulary]: what the engine predicts after positions up to ``at``, forced along ``ids``."""
    target = load_engine_target(directory, dtype=torch.float32, pool_tokens=1024)
    proposer = load_eagle3(head_directory, target, pool_tokens=1024, chain=True)
    cache, draft, known = target.new_cache(), proposer.start(), DraftTree.chain(torch.tensor(ids[: at + 1]))
    cache.reserve(len(known))
    draft_ids = proposer.head.to_target.tolist()
    forced = iter([draft_ids.index(token) for token in ids[at + 2 : at + 2 + STEPS]])
    predict, found = proposer.head.predict, []

    def forced_predict(x, noise=None):
        log_probs, fed = predict(x, noise)
        found.append(log_probs[0])
        wanted = torch.full_like(log_probs, -1000.0)
        wanted[0, next(forced)] = 0.0
        return wanted, fed

    proposer.head.predict = forced_predict
    with torch.inference_mode():
        features = target.forward([Window(cache, known, "none")], proposer.taps)[0].features
        proposer.observe(draft, known.tokens, features, None)
        tree = proposer.propose([draft], [ids[at + 1]], [None], STEPS + 1)[0]
    assert tree.tokens.tolist() == ids[at + 1 : at + 2 + STEPS]
    return torch.stack(found)


@pytest.mark.parametrize("which", ["small", "embedded"])
def test_the_unroll_computes_what_drafting_computes(which, small_target, tmp_path):
    directory = small_target if which == "small" else MODEL
    target = load_target(directory)
    vocab, layers = target.shape.vocab, target.shape.layers
    rng = np.random.default_rng(3)
    draft_ids = torch.from_numpy(np.sort(rng.permutation(vocab)[: vocab * 2 // 3]))
    head = randomise(Eagle3Head(target.shape, (2, layers // 2, layers - 3), draft_ids), 1)
    head.save(tmp_path)
    ids = torch.from_numpy(rng.choice(draft_ids.numpy(), (2, 30)))
    at = torch.tensor([[0, 9, 22], [1, 5, 17]])
    rows = Rows(at, torch.ones(2, 3, STEPS, dtype=torch.bool))
    teacher = Teacher(target, head.taps)
    features, _ = teacher(ids)
    unrolled = torch.stack(head(features, ids, target.model.embed_tokens.weight, rows), 2).log_softmax(-1)
    for row in range(2):
        for column in range(3):
            drafted = log_probs_of_drafting(directory, tmp_path, ids[row].tolist(), int(at[row, column]))
            assert drafted.std() > 0.5, "the head predicts something"
            torch.testing.assert_close(unrolled[row, column], drafted, atol=1e-4, rtol=0)


def test_what_is_saved_names_the_taps_that_were_trained(small_target, tmp_path):
    target = load_engine_target(small_target, pool_tokens=64)
    draft_ids = torch.tensor([3, 4, 50, 95])
    for taps in ((2, 4, 5), (1, 3, 8)):
        Eagle3Head(SMALL, taps, draft_ids).save(tmp_path)
        proposer = load_eagle3(tmp_path, target, pool_tokens=64)
        assert proposer.taps == taps
        assert proposer.head.to_target.tolist() == draft_ids.tolist()
        assert proposer.head.config.rope["rope_theta"] == SMALL.rope_theta


CONVERSATIONS = st.lists(st.lists(st.booleans(), min_size=1, max_size=25), min_size=1, max_size=4)


@given(CONVERSATIONS)
@settings(max_examples=100, deadline=None)
def test_rows_are_where_the_root_and_what_follows_belong_to_a_reply(said):
    conversations = [(np.arange(1, 1 + len(row), dtype=np.uint16), np.array(row, np.float16) * 3) for row in said]
    ids, rows = collate(conversations)
    assert ids.shape == (len(said), max(map(len, said)))
    assert rows.valid.shape == (*rows.at.shape, STEPS)
    most = []
    for number, row in enumerate(said):
        assert ids[number].tolist() == [*range(1, 1 + len(row)), *[0] * (ids.shape[1] - len(row))]
        wanted = {
            t: [all(row[t + 1 : t + 3 + step]) and t + 3 + step <= len(row) for step in range(STEPS)]
            for t in range(len(row) - 2)
            if row[t + 1] and row[t + 2]
        }
        found = {
            int(t): valid.tolist()
            for t, valid in zip(rows.at[number], rows.valid[number], strict=True)
            if bool(valid.any())
        }
        assert found == wanted
        most.append(len(wanted))
    assert rows.at.shape[1] == max(1, *most), "no row is computed that teaches nothing"


def corpus(count, seed, vocab=96):
    """Conversations of a repeating tune, the second half of each a reply."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(16, 40, count)
    ids = np.concatenate([np.resize(rng.integers(2, vocab, 5), length) for length in lengths]).astype(np.uint16)
    weights = np.concatenate([np.r_[np.zeros(n - n // 2), np.ones(n // 2)] for n in lengths]).astype(np.float16)
    return Corpus(ids, weights, np.cumsum([0, *lengths]))


def test_batches_hold_like_lengths_and_show_every_conversation_once_a_pass():
    data = corpus(40, 0)
    stream, seen = batches(data, seed=1), []
    while len(seen) < 40:
        ids, rows = next(stream)
        assert rows.at.shape[0] == ids.shape[0]
        seen += [tuple(row[row > 0].tolist()) for row in ids]
    assert sorted(seen) == sorted(tuple(data[index][0].tolist()) for index in range(40))


def test_the_draft_vocabulary_is_what_replies_say_most():
    data = Corpus(np.array([1, 1, 1, 5, 5, 7, 2, 2], np.uint16), np.array([0, 0, 0, 1, 1, 1, 2, 2]), np.array([0, 8]))
    assert frequent_ids(data, 10, 2).tolist() == [2, 5]
    assert frequent_ids(data, 10, 3).tolist() == [2, 5, 7]


@pytest.fixture
def small_llama(small_target):
    return load_target(small_target)


@torch.no_grad()
def test_a_choice_outside_the_draft_vocabulary_is_not_learned(small_llama):
    ids, rows = collate([corpus(1, 0)[0]])
    teacher = Teacher(small_llama, (2, 4, 5))
    best = small_llama(ids)[0].argmax(-1)
    outside = torch.tensor(sorted(set(range(96)) - set(best.tolist())))
    assert float(training_loss(Eagle3Head(SMALL, (2, 4, 5), outside), teacher, ids, rows)) == 0.0
    inside = torch.arange(96)
    assert float(training_loss(Eagle3Head(SMALL, (2, 4, 5), inside), teacher, ids, rows)) > 0.0


def test_training_goes_on_where_it_stopped(small_llama, tmp_path, monkeypatch):
    # The rate follows the clock, which would not be the same twice.
    monkeypatch.setattr("training.eagle3.train.time", SimpleNamespace(monotonic=lambda: 0.0))
    source = batches(corpus(30, 0), seed=0)
    seen = [next(source) for _ in range(2)] * 3

    def trainer():
        return Trainer(small_llama, torch.arange(96), tmp_path, minutes=1.0, seed=0)

    whole = trainer()
    losses = [whole.train_step(*batch) for batch in seen[:4]]
    whole.spent = 7.0
    whole.checkpoint()
    losses += [whole.train_step(*batch) for batch in seen[4:]]
    resumed = trainer()
    assert (resumed.step, resumed.spent) == (4, 7.0)
    assert [resumed.train_step(*batch) for batch in seen[4:]] == losses[4:]
    for ours, theirs in zip(resumed.head.parameters(), whole.head.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert losses[-1] < losses[0]
    assert not (tmp_path / "state.part").exists()


def test_a_checkpoint_for_another_target_or_vocabulary_is_not_gone_on_with(small_llama, tmp_path, capsys):
    batch = next(batches(corpus(10, 0), seed=0))
    first = Trainer(small_llama, torch.arange(96), tmp_path, minutes=1.0, seed=0)
    first.train_step(*batch)
    first.checkpoint()
    for target, draft_ids in ((small_llama, torch.arange(95)), (randomise(Llama(SMALL), 9), torch.arange(96))):
        assert Trainer(target, draft_ids, tmp_path, minutes=1.0, seed=0).step == 0
        assert "starting over" in capsys.readouterr().out
    assert Trainer(small_llama, torch.arange(96), tmp_path, minutes=1.0, seed=0).step == 1


def test_a_run_uses_its_time_and_a_second_one_has_none_left(small_llama, tmp_path, capsys):
    def run():
        trainer = Trainer(small_llama, torch.arange(96), tmp_path, minutes=0.01, seed=0)
        before = trainer.step
        trainer.run(corpus(30, 0), corpus(3, 1))
        assert trainer.spent >= trainer.budget
        return trainer.step - before

    assert run() > 0
    assert run() == 0
    assert capsys.readouterr().out.count("chain of 4 emits") == 2
