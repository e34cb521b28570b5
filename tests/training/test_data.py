"""The data stage and the order of stages: what was cut short is made again, and what is stale does not stay."""

import json
import sys

import pytest

from training import data, make_model
from training.corpus import Corpus

SIZES = {"TOKENIZER_DIALOGUES": 60, "TRAIN_DIALOGUES": 3, "TRAIN_DRILLS": 3, "VALIDATION_DIALOGUES": 2}


@pytest.fixture
def few(monkeypatch):
    for name, size in {**SIZES, "HEAD_DIALOGUES": 3}.items():
        monkeypatch.setattr(data, name, size)


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_a_build_that_was_cut_anywhere_ends_as_one_that_was_not(few, monkeypatch, tmp_path):
    data.build(tmp_path / "whole")
    wanted = files(tmp_path / "whole")
    assert not any(".part" in name for name in wanted)
    assert len(wanted["conversations.jsonl"].splitlines()) == 3

    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:

        def half_a_tokenizer(tokenizer, folder):
            folder.mkdir()
            (folder / "tokenizer.json").write_text("{")
            raise KeyboardInterrupt

        patch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", half_a_tokenizer)
        with pytest.raises(KeyboardInterrupt):
            data.build(cut)
    with monkeypatch.context() as patch:

        def half_a_corpus(corpus, path):
            path.write_bytes(b"PK")
            raise KeyboardInterrupt

        patch.setattr(Corpus, "save", half_a_corpus)
        with pytest.raises(KeyboardInterrupt):
            data.build(cut)
    with monkeypatch.context() as patch:
        spoken = data.dialogue

        def cut_dialogue(seed, *arguments):
            return interrupt() if seed == data.HEAD_SEED + 2 else spoken(seed, *arguments)

        patch.setattr(data, "dialogue", cut_dialogue)
        with pytest.raises(KeyboardInterrupt):
            data.build(cut)
    assert not (cut / "conversations.jsonl").exists()
    data.build(cut)
    assert files(cut) == wanted
    assert len(Corpus.load(cut / "train.npz")) == 3


class Stages:
    """Stands in for the modules that `make_model` runs: each writes what it would."""

    def __init__(self):
        self.ran, self.seed, self.head_began_fresh, self.killed = [], 0, None, ""

    def __call__(self, module, *arguments):
        option = dict(zip(arguments[::2], arguments[1::2], strict=True))
        name = module.rpartition(".")[2]
        self.ran.append(name)
        if name == "data":
            self.write(option["--out"] / "train.npz", "data")
        elif name == "target":
            self.write(option["--out"] / "state.pt", "state")
            self.write(option["--out"] / "model" / "model.safetensors", f"target {self.seed}")
        elif name == "draft_model":
            self.write(option["--out"] / "model" / "model.safetensors", "draft")
        elif name in ("eagle3", "medusa", "mtp"):
            self.head_began_fresh = not option["--work"].exists() and not option["--out"].exists()
            self.write(option["--work"] / "state.pt", "state")
            if self.killed == name:
                raise KeyboardInterrupt
            self.write(option["--out"] / "model.safetensors", f"{name} for {self.seed}")

    @staticmethod
    def write(path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def stages(monkeypatch, tmp_path):
    stages = Stages()
    monkeypatch.setattr(make_model, "run", stages)
    monkeypatch.setattr(make_model, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["x", "--work", str(tmp_path / "work"), "--model", str(tmp_path / "model")])
    return stages


def made(stages):
    """The stages that one build runs."""
    stages.ran.clear()
    make_model.main()
    return stages.ran


ALL = ["data", "target", "eagle3", "medusa", "mtp", "draft_model", "tool_calls"]


def test_a_stage_that_is_done_is_skipped(stages, tmp_path):
    assert made(stages) == ALL
    assert made(stages) == []
    assert len((tmp_path / "model" / "examples.jsonl").read_text().splitlines()) == make_model.EXAMPLE_CALLS
    assert all(json.loads(line)["tools"] for line in (tmp_path / "model" / "examples.jsonl").read_text().splitlines())


def test_another_target_throws_the_head_away(stages, tmp_path):
    made(stages)
    (tmp_path / "work" / "done" / "target").unlink()
    stages.seed = 1
    assert made(stages) == ALL[1:]
    assert stages.head_began_fresh
    for kind in ("eagle3", "medusa", "mtp"):
        assert (tmp_path / "model" / kind / "model.safetensors").read_text() == f"{kind} for 1"
    assert (tmp_path / "model" / "draft" / "model.safetensors").exists()
    assert made(stages) == []


def test_a_head_that_was_interrupted_goes_on_unless_the_target_is_another(stages, tmp_path):
    stages.killed = "eagle3"
    with pytest.raises(KeyboardInterrupt):
        made(stages)
    with pytest.raises(KeyboardInterrupt):
        made(stages)
    assert stages.ran == ["eagle3"] and not stages.head_began_fresh
    (tmp_path / "work" / "done" / "target").unlink()
    stages.seed, stages.killed = 1, ""
    assert made(stages) == ALL[1:]
    assert stages.head_began_fresh


def test_a_stage_that_makes_the_same_again_takes_nothing_with_it(stages, tmp_path):
    """Also where stages were run by hand: their work is gone on with."""
    stages.write(tmp_path / "work" / "target" / "state.pt", "an hour of training")
    stages.write(tmp_path / "work" / "data" / "train.npz", "data")
    made(stages)
    (tmp_path / "work" / "done" / "data").unlink()
    assert made(stages) == ["data"]
    assert (tmp_path / "work" / "target").exists()
