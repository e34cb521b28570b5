"""A target trained with its MTP module: the loss is that of both, and what it writes serves together."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engine.models.decoder import load_target
from engine.proposers import mtp
from engine.proposers.setup import Setup
from training import corpus, mtp_target
from training.corpus import Corpus, collate
from training.llama import Shape
from training.mtp_target import SHARE, JointTrainer
from training.parallel import ALONE

SMALL = Shape(hidden=192, layers=4, heads=4, kv_heads=2, head_dim=64, intermediate=96)


@pytest.fixture
def trainer(data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(corpus, "BATCH_TOKENS", 512)
    return JointTrainer(data, tmp_path, 0.0001, True, 0, ALONE, SMALL)


def test_the_module_learns_the_token_behind_the_next(trainer):
    ids = np.arange(2, 12, dtype=np.uint16)
    batch = collate([(ids, np.r_[np.zeros(4), np.full(6, 2.0)])], 10, 0)
    model, module = trainer.model, trainer.module
    with torch.no_grad():
        loss = trainer.loss_of(batch)
        states = model.model(batch.ids)
        ahead = module.whole(states, batch.ids, model.model.embed_tokens.weight)
        wanted = F.cross_entropy(model.logits(states)[0, 3:9], batch.ids[0, 4:10])
        further = F.cross_entropy(model.logits(ahead)[0, 2:8], batch.ids[0, 4:10])
    torch.testing.assert_close(loss, wanted + SHARE * further, atol=2e-2, rtol=1e-3)
    assert SHARE * further > 0.5, "the second part counts"


def test_the_module_sees_nothing_of_what_it_predicts(trainer):
    ids = torch.randint(2, 200, (1, 12), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[0, 8] += 1
    embedding = trainer.model.model.embed_tokens.weight
    with torch.no_grad():
        ahead = [trainer.module.whole(trainer.model.model(x), x, embedding) for x in (ids, changed)]
    torch.testing.assert_close(ahead[0][0, :7], ahead[1][0, :7])
    assert not torch.allclose(ahead[0][0, 7], ahead[1][0, 7]), "the pair at 7 holds the token at 8"


def test_both_are_trained_kept_and_serve_together(trainer, data, tmp_path):
    before = {name: value.clone() for name, value in trainer.trained.named_parameters()}
    trainer.run()
    assert trainer.step == 1, "the time is over after the first"
    trainer.budget, trainer.spent = 60.0, 0.0
    trainer.train_step(collate([trainer_row(data)], 512, 0))
    moved = [name for name, value in trainer.trained.named_parameters() if not torch.equal(value, before[name])]
    assert {name.split(".")[0] for name in moved} == {"target", "module"}
    trainer.checkpoint()
    again = mtp_target.JointTrainer(data, tmp_path, 0.0001, True, 0, ALONE, SMALL)
    for ours, theirs in zip(again.trained.parameters(), trainer.trained.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    target = load_target(tmp_path / "model", pool_tokens=256)
    proposer = mtp.load(tmp_path / "model" / "mtp", Setup(target, tmp_path / "model", 256))
    assert proposer.head.to_target.numel() == target.vocab_size


def trainer_row(data):
    return Corpus.load(data / "train.npz")[0]
