"""The MTP trainer: its unroll is the engine's drafting, it learns, it goes on where it stopped, and what it writes
serves."""

import json
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.interfaces import Window
from engine.models.decoder import load_target as load_engine_target
from engine.proposers import mtp
from engine.proposers.setup import Setup
from engine.tree import DraftTree
from tests.engine.embedded import MODEL
from tests.training.test_eagle3 import SMALL, corpus, randomise
from training.eagle3.rows import STEPS, batches
from training.eagle3.train import load_target
from training.llama import Llama
from training.mtp import Module, ModuleTrainer, NormTeacher, train
from training.parallel import ALONE
from training.unroll import Rows


@pytest.fixture(scope="module")
def small_target(tmp_path_factory):
    """A random target as a Hugging Face directory."""
    directory = tmp_path_factory.mktemp("target")
    save_file(randomise(Llama(SMALL), 0).state_dict(), directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(SMALL.config()))
    return directory


def log_probs_of_drafting(directory, module_directory, ids, at):
    """[STEPS, V]: what the engine predicts after positions up to ``at``, forced along ``ids``."""
    target = load_engine_target(directory, dtype=torch.float32, pool_tokens=1024)
    proposer = mtp.load(module_directory, Setup(target, directory, 1024, chain=True))
    cache, draft, known = target.new_cache(), proposer.start(), DraftTree.chain(torch.tensor(ids[: at + 1]))
    cache.reserve(len(known))
    forced, predict, found = iter(ids[at + 2 : at + 2 + STEPS]), proposer.head.predict, []

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
    for row in range(2):
        for column in range(3):
            drafted = log_probs_of_drafting(small_target, tmp_path, ids[row].tolist(), int(at[row, column]))
            assert drafted.std() > 0.5, "the module predicts something"
            torch.testing.assert_close(unrolled[row, column], drafted, atol=1e-4, rtol=0)


def test_it_learns_and_goes_on_where_it_stopped(small_target, tmp_path, monkeypatch):
    # The rate follows the clock, which would not be the same twice.
    monkeypatch.setattr("training.eagle3.train.time", SimpleNamespace(monotonic=lambda: 0.0))
    target, source = load_target(small_target), batches(corpus(30, 0), seed=0)
    seen = [next(source) for _ in range(2)] * 4

    def trainer():
        return ModuleTrainer(target, torch.arange(SMALL.vocab), tmp_path, minutes=1.0, seed=0)

    whole = trainer()
    before = {name: value.clone() for name, value in whole.head.named_parameters()}
    losses = [whole.train_step(*batch) for batch in seen[:6]]
    whole.spent = 7.0
    whole.checkpoint()
    losses += [whole.train_step(*batch) for batch in seen[6:]]
    assert losses[6] < losses[4] < losses[2] < losses[0]
    for name, value in whole.head.named_parameters():
        assert not torch.equal(value, before[name]), f"{name} is not learned"
    assert not any(value.requires_grad for value in target.parameters())
    resumed = trainer()
    assert (resumed.step, resumed.spent) == (6, 7.0)
    assert [resumed.train_step(*batch) for batch in seen[6:]] == losses[6:]
    for ours, theirs in zip(resumed.head.parameters(), whole.head.parameters(), strict=True):
        assert torch.equal(ours, theirs)


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
