"""The MTP trainer: its unroll is the engine's drafting, it learns, it goes on where it stopped, and what it writes
serves."""

import json
from argparse import Namespace
from functools import partial
from types import SimpleNamespace

import torch
from safetensors.torch import load_file

from engine.models.decoder import load_target as load_engine_target
from engine.proposers import mtp
from engine.proposers.setup import Setup
from tests.engine.embedded import MODEL
from tests.training.heads import SMALL, assert_it_learns_and_goes_on, corpus, log_probs_of_drafting, randomise
from training.eagle3.rows import STEPS, batches
from training.eagle3.train import load_target
from training.mtp import Module, ModuleTrainer, NormTeacher, train
from training.parallel import ALONE
from training.unroll import Rows


@torch.no_grad()
def test_the_unroll_computes_what_drafting_computes(small_target, tmp_path):
    target = load_target(small_target)
    module = randomise(Module(SMALL), 1)
    module.save(tmp_path)
    g = torch.Generator().manual_seed(3)
    ids = torch.randint(0, SMALL.vocab, (2, 30), generator=g)
    at = torch.tensor([[0, 9, 22], [1, 5, 17]])
    rows = Rows(at, torch.ones(2, 3, STEPS, dtype=torch.bool))
    features, _ = NormTeacher(target)(ids)
    unrolled = torch.stack(module(features, ids, target.model.embed_tokens.weight, rows), 2).log_softmax(-1)
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
    target, source = load_target(small_target), batches(corpus(30, 0), seed=0)
    seen = [next(source) for _ in range(2)] * 4

    def trainer():
        return ModuleTrainer(target, torch.arange(SMALL.vocab), tmp_path, minutes=1.0, seed=0)

    assert_it_learns_and_goes_on(trainer, target, seen)


def test_a_run_from_files_to_files(tmp_path, capsys):
    """On the embedded model, whose examples are conversations; what is written drafts for it."""
    corpus(2, 1, vocab=1000).save(tmp_path / "held_out.npz")
    arguments = Namespace(
        target=MODEL,
        conversations=MODEL / "examples.jsonl",
        held_out=tmp_path / "held_out.npz",
        work=tmp_path / "work",
        out=tmp_path / "module",
        minutes=0.01,
        seed=0,
    )
    train(ALONE, arguments)
    assert "chain of 4 emits" in capsys.readouterr().out
    written = load_file(tmp_path / "module" / "model.safetensors")
    target = load_engine_target(MODEL, pool_tokens=256)
    prefix = f"model.layers.{target.num_layers}."
    assert all(name.startswith(prefix) and value.dtype == torch.bfloat16 for name, value in written.items())
    assert {"enorm", "hnorm", "eh_proj", "shared_head"} <= {name.removeprefix(prefix).split(".")[0] for name in written}
    assert json.loads((tmp_path / "module" / "config.json").read_text())["num_nextn_predict_layers"] == 1
    mtp.load(tmp_path / "module", Setup(target, MODEL, 256))
