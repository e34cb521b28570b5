"""A target small enough to train heads for."""

import json

import pytest
from safetensors.torch import save_file

from tests.training.heads import SMALL, randomise
from training.llama import Llama


@pytest.fixture(scope="module")
def small_target(tmp_path_factory):
    """A random target as a Hugging Face directory."""
    directory = tmp_path_factory.mktemp("target")
    target = randomise(Llama(SMALL), 0)
    save_file(target.state_dict(), directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(SMALL.config()))
    return directory
