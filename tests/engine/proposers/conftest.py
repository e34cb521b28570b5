"""The target, and a random head for it, that the tests of EAGLE-3 checkpoints share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.models.decoder import Decoder
from tests.engine import checkpoints
from tests.engine.loading import load
from tests.engine.proposers import heads


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """Deep enough for every layer that heads tap. Its RoPE is a llama3 one of other numbers than any head's."""
    directory = tmp_path_factory.mktemp("target")
    checkpoints.write("llama-untied-llama3-rope", directory, num_hidden_layers=8)
    return load(directory, torch.float64)


@pytest.fixture(scope="module")
def tensors(target: Decoder) -> dict[str, Tensor]:
    return heads.random_head(target.config)
