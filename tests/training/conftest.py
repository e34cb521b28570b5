"""A target small enough to train heads for."""

import json

import pytest
from safetensors.torch import save_file
from transformers import AutoTokenizer

from tests.engine import checkpoints
from tests.training.heads import KINDS, SMALL, randomise
from training import tokenizer as tokens
from training.corpus import Corpus
from training.data import _plain
from training.dialogues import dialogue
from training.llama import Llama


@pytest.fixture(scope="module")
def small_target(tmp_path_factory):
    """A random target as a Hugging Face directory."""
    return write_target(tmp_path_factory.mktemp("target"), 0)


@pytest.fixture(scope="module")
def other_target(tmp_path_factory):
    return write_target(tmp_path_factory.mktemp("other"), 1)


@pytest.fixture
def target_of_kind(request, tmp_path):
    """The directory of a random target of one of KINDS."""
    name, changes = KINDS[request.param]
    checkpoints.write(name, tmp_path / "target", **changes)
    return tmp_path / "target"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """What `training.data` makes, of ten dialogues."""
    folder = tmp_path_factory.mktemp("data")
    tokens.train(_plain(dialogue(seed) for seed in range(60))).save_pretrained(folder / "tokenizer")
    encoded = Corpus.encode(AutoTokenizer.from_pretrained(folder / "tokenizer"), (dialogue(i) for i in range(10)))
    for name in ("train", "drills", "valid", "valid_held"):
        encoded.save(folder / f"{name}.npz")
    return folder


def write_target(directory, seed):
    target = randomise(Llama(SMALL), seed)
    save_file(target.state_dict(), directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(SMALL.config()))
    return directory
