"""The draft model's training, one step of it: what it writes can draft, for whatever has the same tokenizer."""

import json
import sys

import pytest
import torch
from transformers import AutoTokenizer

from engine.models.decoder import load_target
from engine.proposers.draft_model import load
from engine.proposers.setup import Setup
from tests.training.test_target import attention_to_what_followed
from training import corpus, draft_model, target
from training.induction import induction_init
from training.llama import Llama, Shape
from training.optimiser import MUON_RATE


def test_what_it_trains_drafts_for_a_target_of_the_same_tokenizer(data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    monkeypatch.setattr(corpus, "BATCH_TOKENS", 512)
    arguments = ["--data", str(data), "--out", str(tmp_path / "draft"), "--minutes", "0.0001", "--rate", "0.02"]
    monkeypatch.setattr(sys, "argv", ["draft_model", *arguments])
    target.main(draft_model.__doc__, draft_model.SHAPE)
    state = torch.load(tmp_path / "draft" / "state.pt")
    assert state["step"] == 1, "the time is over after the first"
    muon, adamw = (optimiser["param_groups"][0]["lr"] for optimiser in state["optimisers"])
    assert adamw == pytest.approx(0.02 / target.WARM_UP_STEPS) and muon == pytest.approx(adamw * MUON_RATE)
    assert json.loads((tmp_path / "draft" / "model" / "training.json").read_text())["steps"] == 1
    target.main(draft_model.__doc__, draft_model.SHAPE)  # there is nothing left to do
    assert torch.load(tmp_path / "draft" / "state.pt")["step"] == 1

    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
    target.save_model(Llama(Shape(vocab=len(tokenizer), layers=2)), tokenizer, tmp_path / "target")
    served = load_target(tmp_path / "target", pool_tokens=512)
    proposer = load(tmp_path / "draft" / "model", Setup(served, tmp_path / "target", pool_tokens=512))
    assert proposer.model.config.num_layers == draft_model.SHAPE.layers
    draft = proposer.start()
    proposer.observe(draft, torch.arange(20), None, None)
    assert len(proposer.propose([draft], [5], [None], 16)[0]) == 16


def test_it_is_small():
    draft, whole = (sum(p.numel() for p in Llama(shape).parameters()) for shape in (draft_model.SHAPE, Shape()))
    assert draft < 1e6 and draft < whole / 5


def test_it_finds_what_followed_before_any_training():
    torch.manual_seed(0)
    model = Llama(draft_model.SHAPE)
    assert attention_to_what_followed(model) < 0.03
    induction_init(model)
    assert attention_to_what_followed(model) > 0.06
