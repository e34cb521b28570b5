"""The EAGLE-3 trainer: its unroll is the engine's drafting, its rows are replies, and it goes on where it stopped."""

from functools import partial
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.models.decoder import load_target as load_engine_target
from engine.proposers.eagle3 import load_eagle3
from tests.engine.embedded import MODEL
from tests.training.heads import (
    KINDS,
    SMALL,
    asked,
    broken_off_and_resumed,
    corpus,
    log_probs_of_drafting,
    log_probs_of_training,
    randomise,
    run_arguments,
)
from training.corpus import Corpus
from training.eagle3.head import Eagle3Head, Rows
from training.eagle3.objective import Teacher, training_loss
from training.eagle3.rows import STEPS, batches, collate, frequent_ids
from training.eagle3.train import PEAK_LR, WARM_UP_STEPS, Trainer, train
from training.frozen import FrozenTarget
from training.optimiser import MUON_RATE
from training.parallel import ALONE


@pytest.mark.parametrize("which", ["small", "embedded"])
def test_the_unroll_computes_what_drafting_computes(which, small_target, tmp_path):
    assert_the_unroll_drafts(small_target if which == "small" else MODEL, tmp_path)


@pytest.mark.parametrize("target_of_kind", KINDS, indirect=True)
def test_a_heads_layer_is_a_plain_llamas_whatever_its_target_is(target_of_kind, tmp_path):
    assert_the_unroll_drafts(target_of_kind, tmp_path)


def assert_the_unroll_drafts(directory, tmp_path):
    target = FrozenTarget(directory)
    vocab, layers = target.shape.vocab, target.shape.layers
    rng = np.random.default_rng(3)
    draft_ids = torch.from_numpy(np.sort(rng.permutation(vocab)[: vocab * 2 // 3]))
    head = randomise(Eagle3Head(target.shape, (2, layers // 2, layers - 3), draft_ids), 1)
    head.save(tmp_path / "head")
    ids = torch.from_numpy(rng.choice(draft_ids.numpy(), (2, 30)))
    at = torch.tensor([[0, 9, 22], [1, 5, 17]])
    rows = Rows(at, torch.ones(2, 3, STEPS, dtype=torch.bool))
    unrolled = log_probs_of_training(head, Teacher(target, head.taps), ids, rows)
    engine_target = load_engine_target(directory, dtype=torch.float32, pool_tokens=1024)
    load_head = partial(load_eagle3, tmp_path / "head", engine_target, pool_tokens=1024, chain=True)
    for row in range(2):
        for column in range(3):
            drafted = log_probs_of_drafting(engine_target, load_head(), ids[row].tolist(), int(at[row, column]))
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
    return FrozenTarget(small_target)


@torch.no_grad()
def test_a_choice_outside_the_draft_vocabulary_is_not_learned(small_llama):
    ids, rows = collate([corpus(1, 0)[0]])
    teacher = Teacher(small_llama, (2, 4, 5))
    best = small_llama.logits(small_llama.states(ids)[1])[0].argmax(-1)
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
        return Trainer(small_llama, torch.arange(96), asked(tmp_path))

    _, losses = broken_off_and_resumed(trainer, seen, 4)
    assert losses[-1] < losses[0]
    assert not list(tmp_path.glob("*.part"))


def test_the_rate_is_what_was_asked_for_warmed_up_and_lowered(small_llama, tmp_path, monkeypatch):
    monkeypatch.setattr("training.eagle3.train.time", SimpleNamespace(monotonic=lambda: 0.0))
    arguments = asked(tmp_path)
    arguments.rate = 5e-5
    trainer, batch = Trainer(small_llama, torch.arange(96), arguments), next(batches(corpus(8, 0), seed=0))
    for step, spent, share in ((0, 0.0, 1 / WARM_UP_STEPS), (WARM_UP_STEPS, trainer.budget / 4, 0.75)):
        trainer.step, trainer.spent = step, spent
        trainer.train_step(*batch)
        muon, adamw = (optimiser.param_groups[0]["lr"] for optimiser in trainer.optimisers)
        assert adamw == pytest.approx(5e-5 * share) and muon == pytest.approx(adamw * MUON_RATE)


@pytest.mark.parametrize("module", ["training.eagle3.train", "training.medusa", "training.mtp"])
def test_every_trainer_takes_a_rate_and_has_one(module, tmp_path, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(f"{module}.launch", lambda train, ranks, arguments: started.append(arguments.rate))
    command = ["train", "--target", str(tmp_path), "--conversations", "calls.jsonl"]
    for more in ([], ["--rate", "5e-5"]):
        monkeypatch.setattr("sys.argv", command + more)
        import_module(module).main()
    assert started == [PEAK_LR, 5e-5]
    monkeypatch.setattr("sys.argv", ["train", "--help"])
    with pytest.raises(SystemExit):
        import_module(module).main()
    assert f"(default {PEAK_LR})" in " ".join(capsys.readouterr().out.split())


def test_a_run_uses_its_time_and_a_second_one_has_none_left(small_llama, tmp_path, capsys):
    def run():
        arguments = asked(tmp_path)
        arguments.minutes = 0.01
        trainer = Trainer(small_llama, torch.arange(96), arguments)
        before = trainer.step
        trainer.run(corpus(30, 0), corpus(3, 1))
        assert trainer.spent >= trainer.budget
        return trainer.step - before

    assert run() > 0
    assert run() == 0
    assert capsys.readouterr().out.count("chain of 4 emits") == 2


def test_a_head_goes_on_from_another_and_says_what_it_was_before(tmp_path, capsys):
    """On the embedded model and its own head, with another draft vocabulary: what both draft keeps its output row."""
    arguments = run_arguments(MODEL, tmp_path, init=MODEL / "eagle3", draft_vocab=300, minutes=0.0)
    train(ALONE, arguments)
    said = capsys.readouterr().out
    before = next(line for line in said.splitlines() if line.startswith("before, with"))
    assert float(before.split("chain of 4 emits ")[1].split()[0]) > 2.5, "the trained head's own acceptance"
    shape = FrozenTarget(MODEL).shape
    begun, written = Eagle3Head.load(MODEL / "eagle3", shape), Eagle3Head.load(arguments.out, shape)
    assert torch.equal(begun.fc.weight, written.fc.weight) and len(written.draft_ids) == 300
    row = {token: at for at, token in enumerate(begun.draft_ids.tolist())}
    shared = [(at, row[token]) for at, token in enumerate(written.draft_ids.tolist()) if token in row]
    assert len(shared) > 200
    assert all(torch.equal(written.lm_head.weight[a], begun.lm_head.weight[b]) for a, b in shared)
    load_eagle3(arguments.out, load_engine_target(MODEL, pool_tokens=64), pool_tokens=64)


def test_a_head_of_another_layout_or_target_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no head of this trainer"):
        Eagle3Head.load(tmp_path, SMALL)
    with pytest.raises(ValueError, match="holds no head of this trainer"):
        Eagle3Head.load(MODEL / "eagle3", SMALL)
