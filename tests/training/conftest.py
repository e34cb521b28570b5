"""A target small enough to train heads for."""

import json

import pytest
from safetensors.torch import save_file

from tests.training.heads import SMALL, randomise
from training.llama import Llama


@pytest.fixture(scope="module")
def small_target(tmp_path_factory):
    """A random target as a Hugging Face directory."""
    return write_target(tmp_path_factory.mktemp("target"), 0)


@pytest.fixture(scope="module")
def other_target(tmp_path_factory):
    return write_target(tmp_path_factory.mktemp("other"), 1)


def write_target(directory, seed):
    target = randomise(Llama(SMALL), seed)
    save_file(target.state_dict(), directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(SMALL.config()))
    return directory
