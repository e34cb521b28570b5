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
from tests.engine.embedded import MODEL
from tests.training.heads import (
    KINDS,
    SMALL,
    asked,
    assert_it_learns_and_goes_on,
    corpus,
    log_probs_of_drafting,
    log_probs_of_training,
    randomise,
    run_arguments,
)
from training.eagle3.objective import Teacher, training_loss
from training.eagle3.rows import STEPS, batches, collate
from training.frozen import FrozenTarget
from training.mtp import Module, ModuleTrainer, train
from training.parallel import ALONE
from training.unroll import Rows


@pytest.mark.parametrize("target_of_kind", KINDS, indirect=True)
@torch.no_grad()
def test_the_unroll_computes_what_drafting_computes(target_of_kind, tmp_path):
    """A module of the target's own kind of block, at every level, from what was written."""
    target = FrozenTarget(target_of_kind)
    module = randomise(Module(target.shape), 1)
    module.save(tmp_path / "mtp")
    g = torch.Generator().manual_seed(3)
    ids = torch.randint(0, target.shape.vocab, (2, 30), generator=g)
    at = torch.tensor([[0, 9, 22], [1, 5, 17]])
    rows = Rows(at, torch.ones(2, 3, STEPS, dtype=torch.bool))
    unrolled = log_probs_of_training(module, Teacher(target), ids, rows)
    engine_target = load_engine_target(target_of_kind, dtype=torch.float32, pool_tokens=1024)
    load_module = partial(mtp.load, tmp_path / "mtp", Setup(engine_target, target_of_kind, 1024, chain=True))
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
    account = json.loads((arguments.out / "training.json").read_text())
    assert set(account) == {"minutes", "steps", "accepted"} and account["steps"] > 0
    mtp.load(arguments.out, Setup(target, MODEL, 256))


def test_a_conversation_may_fill_the_context(small_target):
    """Of rows at its end only those steps are learned that lie in it; the others must not reach beyond it."""
    full = SMALL.max_positions
    ids, rows = collate([(np.resize(np.arange(2, 9, dtype=np.uint16), full), np.ones(full, np.float16))])
    assert int(rows.at.max()) + STEPS > full
    target, module = FrozenTarget(small_target), Module(SMALL)
    assert 0.0 < float(training_loss(module, Teacher(target), ids, rows).detach()) < 20.0


@pytest.mark.parametrize("target_of_kind", KINDS, indirect=True)
@torch.no_grad()
def test_a_module_begins_with_the_targets_own_choices(target_of_kind):
    """Its state passed through to its own output rows: most of what it says first is what the target has just said."""
    target = FrozenTarget(target_of_kind)
    torch.manual_seed(0)
    module = Module(target.shape)
    module.begin_like(target)
    assert not any(bias.any() for name, bias in module.named_parameters() if name.endswith("bias"))
    ids = torch.randint(0, target.shape.vocab, (4, 40), generator=torch.Generator().manual_seed(5))
    at = torch.arange(2, 34).expand(4, -1)
    begun = log_probs_of_training(module, Teacher(target), ids, Rows(at, torch.ones(4, 32, 1, dtype=torch.bool)))
    own = target.logits(target.states(ids)[1])[:, 2:34]
    assert (begun[:, :, 0].argmax(-1) == own.argmax(-1)).float().mean() > 0.5
