"""The MTP trainer: its unroll is the engine's drafting, it learns, it goes on where it stopped, and what it writes
serves."""

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engine.models.decoder import load_target as load_engine_target
from engine.proposers import mtp
from engine.proposers.setup import Setup
from tests.engine import checkpoints
from tests.engine.embedded import MODEL
from tests.training.heads import (
    SMALL,
    asked,
    assert_it_learns_and_goes_on,
    corpus,
    log_probs_of_drafting,
    randomise,
    run_arguments,
)
from training.eagle3.objective import Teacher, training_loss
from training.eagle3.rows import STEPS, batches, collate
from training.frozen import FrozenTarget
from training.mtp import Module, ModuleTrainer, refuse_other_blocks, train
from training.parallel import ALONE
from training.unroll import Rows


@torch.no_grad()
def test_the_unroll_computes_what_drafting_computes(small_target, tmp_path):
    target = FrozenTarget(small_target)
    module = randomise(Module(SMALL), 1)
    module.save(tmp_path)
    g = torch.Generator().manual_seed(3)
    ids = torch.randint(0, SMALL.vocab, (2, 30), generator=g)
    at = torch.tensor([[0, 9, 22], [1, 5, 17]])
    rows = Rows(at, torch.ones(2, 3, STEPS, dtype=torch.bool))
    features, _ = target.states(ids)
    unrolled = torch.stack(module(features, ids, target.embedding, rows), 2).log_softmax(-1)
    engine_target = load_engine_target(small_target, dtype=torch.float32, pool_tokens=1024)
    load_module = partial(mtp.load, tmp_path, Setup(engine_target, small_target, 1024, chain=True))
    for row in range(2):
        for column in range(3):
            drafted = log_probs_of_drafting(engine_target, load_module(), ids[row].tolist(), int(at[row, column]))
            assert drafted.std() > 0.5, "the module predicts something"
            torch.testing.assert_close(unrolled[row, column], drafted, atol=1e-4, rtol=0)


def test_it_learns_and_goes_on_where_it_stopped(small_target, tmp_path, monkeypatch):
    # The rate follows the clock, which would not be the same twice.
    monkeypatch.setattr("training.eagle3.train.time", SimpleNamespace(monotonic=lambda: 0.0))
    target, source = FrozenTarget(small_target), batches(corpus(30, 0), seed=0)
    seen = [next(source) for _ in range(2)] * 4

    def trainer():
        return ModuleTrainer(target, torch.arange(SMALL.vocab), asked(tmp_path))

    assert_it_learns_and_goes_on(trainer, target, seen)


def test_a_run_from_files_to_files(tmp_path, capsys):
    """On the embedded model, whose examples are conversations; what is written drafts for it."""
    arguments = run_arguments(MODEL, tmp_path)
    train(ALONE, arguments)
    assert "chain of 4 emits" in capsys.readouterr().out
    written = load_file(arguments.out / "model.safetensors")
    target = load_engine_target(MODEL, pool_tokens=256)
    prefix = f"model.layers.{target.num_layers}."
    assert all(name.startswith(prefix) and value.dtype == torch.bfloat16 for name, value in written.items())
    assert {"enorm", "hnorm", "eh_proj", "shared_head"} <= {name.removeprefix(prefix).split(".")[0] for name in written}
    assert json.loads((arguments.out / "config.json").read_text())["num_nextn_predict_layers"] == 1
    mtp.load(arguments.out, Setup(target, MODEL, 256))


def test_a_conversation_may_fill_the_context(small_target):
    """Of rows at its end only those steps are learned that lie in it; the others must not reach beyond it."""
    full = SMALL.max_positions
    ids, rows = collate([(np.resize(np.arange(2, 9, dtype=np.uint16), full), np.ones(full, np.float16))])
    assert int(rows.at.max()) + STEPS > full
    target, module = FrozenTarget(small_target), Module(SMALL)
    assert 0.0 < float(training_loss(module, Teacher(target), ids, rows).detach()) < 20.0


@pytest.mark.parametrize("name", ["mistral", "qwen2-biases"])
def test_a_target_whose_block_would_be_another_is_refused(name, tmp_path):
    checkpoints.write(name, tmp_path)
    with pytest.raises(ValueError, match="no MTP module can be trained yet for a target with"):
        refuse_other_blocks(FrozenTarget(tmp_path))


def test_the_embedded_target_is_not_refused():
    refuse_other_blocks(FrozenTarget(MODEL))
