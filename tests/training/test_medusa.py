"""The Medusa trainer: its heads say what drafting says, it learns, it goes on where it stopped, and what it writes
serves."""

import json
from types import SimpleNamespace

import torch
from safetensors.torch import load_file

from engine.interfaces import Window
from engine.models.decoder import load_target as load_engine_target
from engine.proposers.medusa.load import load
from engine.proposers.setup import Setup
from engine.tree import DraftTree
from tests.engine.embedded import MODEL
from tests.training.heads import (
    SMALL,
    asked,
    assert_it_learns_and_goes_on,
    corpus,
    log_probs_of_training,
    randomise,
    run_arguments,
)
from training.eagle3.objective import Teacher
from training.eagle3.rows import batches
from training.frozen import FrozenTarget
from training.medusa import Heads, HeadsTrainer, train
from training.parallel import ALONE
from training.unroll import Rows

HEADS = 3


@torch.no_grad()
def test_what_is_written_says_in_the_engine_what_the_heads_say(small_target, tmp_path):
    heads = randomise(Heads(SMALL, HEADS), 1)
    heads.save(tmp_path, "small")
    assert json.loads((tmp_path / "config.json").read_text())["medusa_num_heads"] == HEADS
    ids = torch.randint(0, SMALL.vocab, (2, 20), generator=torch.Generator().manual_seed(3))
    at = torch.tensor([[0, 9], [5, 16]])
    rows = Rows(at, torch.ones(2, 2, HEADS, dtype=torch.bool))
    trained = log_probs_of_training(heads, Teacher(FrozenTarget(small_target)), ids, rows)
    target = load_engine_target(small_target, dtype=torch.float32, pool_tokens=1024)
    proposer = load(tmp_path, Setup(target, small_target, 64, chain=True))
    for row in range(2):
        for column in range(2):
            cache, draft = target.new_cache(), proposer.start()
            known = DraftTree.chain(ids[row, : at[row, column] + 1])
            cache.reserve(len(known))
            states = target.forward([Window(cache, known, "none")], proposer.taps)[0].features
            proposer.observe(draft, known.tokens, states, None)
            tree = proposer.propose([draft], [0], [None], HEADS + 1)[0]
            cache.close()
            assert tree.tokens[1:].tolist() == trained[row, column].argmax(-1).tolist()
            drafted = proposer.heads.log_probs(draft.state, HEADS)
            assert drafted.std() > 0.5, "the heads predict something"
            torch.testing.assert_close(trained[row, column], drafted, atol=1e-4, rtol=0)


@torch.no_grad()
def test_heads_begin_as_the_targets_own_output(small_target):
    target = FrozenTarget(small_target)
    heads = Heads(SMALL, HEADS)
    heads.begin_like(target)
    ids = torch.arange(12)[None]
    rows = Rows(torch.tensor([[3, 11]]), torch.ones(1, 2, HEADS, dtype=torch.bool))
    own = target.logits(target.states(ids)[1])[:, [3, 11]].log_softmax(-1)
    for log_probs in log_probs_of_training(heads, Teacher(target), ids, rows).unbind(2):
        torch.testing.assert_close(log_probs, own)


def test_it_learns_and_goes_on_where_it_stopped(small_target, tmp_path, monkeypatch):
    # The rate follows the clock, which would not be the same twice.
    monkeypatch.setattr("training.eagle3.train.time", SimpleNamespace(monotonic=lambda: 0.0))
    target, source = FrozenTarget(small_target), batches(corpus(30, 0), seed=0)
    seen = [next(source) for _ in range(2)] * 4

    def trainer():
        return HeadsTrainer(HEADS, target, asked(tmp_path))

    assert_it_learns_and_goes_on(trainer, target, seen)


def test_a_run_from_files_to_files(tmp_path, capsys):
    """On the embedded model, whose examples are conversations; what is written drafts for it."""
    arguments = run_arguments(MODEL, tmp_path, heads=2)
    train(ALONE, arguments)
    assert "chain of 4 emits" in capsys.readouterr().out
    written = load_file(arguments.out / "medusa_lm_head.safetensors")
    wanted = {f"{i}.{part}" for i in range(2) for part in ("0.linear.weight", "0.linear.bias", "1.weight")}
    assert set(written) == wanted and all(value.dtype == torch.bfloat16 for value in written.values())
    assert len(load(arguments.out, Setup(load_engine_target(MODEL, pool_tokens=256), MODEL, 256)).heads) == 2
