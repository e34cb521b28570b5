"""A model that cannot be served says why: the file, and the key or tensor in it."""

from __future__ import annotations

import json
import os
import re
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import records, worker
from engine.config import EngineConfig
from engine.costs import LADDER, measure_costs
from engine.errors import ModelError
from engine.models.config import read_config
from engine.models.decoder import load_target
from engine.proposers.none import NoProposer
from engine.weights import INDEX
from tests.engine import checkpoints
from tests.engine.embedded import MODEL
from tests.engine.loading import load
from tests.engine.proposers import heads
from tests.engine.proposers.test_eagle3_load import eagle, read

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    checkpoints.write("llama-tied", tmp_path)
    return tmp_path


def change(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": None}, "vocab_size is None"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"rms_norm_eps": None}, "rms_norm_eps is None"),
        ({"sliding_window": 64, "max_position_embeddings": None}, "max_position_embeddings is None"),
        ({"rope_parameters": {"rope_type": "linear"}}, "lacks factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": None}}, "factor is None"),
        ({"rope_parameters": LLAMA3}, "lacks original_max_position_embeddings"),
        ({"rope_parameters": None, "rope_scaling": {"type": "yarn", "factor": 4.0}}, "RoPE type 'yarn'"),
        ({"rope_parameters": [1]}, "RoPE settings"),
    ],
)
def test_a_config_names_its_file_and_key(directory: Path, changes: dict[str, Any], message: str) -> None:
    change(directory, **changes)
    (directory / "model.safetensors").unlink()  # the config is refused before any weight is looked for
    with pytest.raises(ModelError, match=rf"{re.escape(str(directory / 'config.json'))}.*{re.escape(message)}"):
        load_target(directory, pool_tokens=64)


def test_linear_scaling_divides_the_frequencies(directory: Path) -> None:
    change(directory, rope_parameters=None, rope_scaling={"type": "linear", "factor": 2.0}, rope_theta=500.0)
    rope = read_config(directory).rope
    assert (rope["rope_type"], rope["factor"], rope["rope_theta"]) == ("linear", 2.0, 500.0)
    rotary = load(directory, torch.float32).rotary
    change(directory, rope_scaling=None)
    torch.testing.assert_close(rotary.cos[::2][:50], load(directory, torch.float32).rotary.cos[:50])


def shard(directory: Path, index: dict[str, Any]) -> None:
    (directory / "model.safetensors").rename(directory / "model-1.safetensors")
    (directory / INDEX).write_text(json.dumps(index))


def test_an_index_that_promises_too_much(directory: Path) -> None:
    names = load_file(directory / "model.safetensors")
    lost = "model.layers.1.mlp.down_proj.weight"
    save_file({n: t for n, t in names.items() if n != lost}, directory / "model.safetensors")
    shard(directory, {"weight_map": dict.fromkeys(names, "model-1.safetensors")})
    with pytest.raises(ModelError, match=rf"model-1.safetensors.*{lost}.*index.json"):
        load_target(directory, pool_tokens=64)


@pytest.mark.parametrize("index", [{}, {"weight_map": ["model-1.safetensors"]}, {"weight_map": {"a": 1}}])
def test_an_index_without_a_map(directory: Path, index: dict[str, Any]) -> None:
    shard(directory, index)
    with pytest.raises(ModelError, match=r"index.json has no weight_map"):
        load_target(directory, pool_tokens=64)


def start(config: EngineConfig) -> tuple[int, object]:
    """(exit status, first record) of an engine that cannot start."""
    ours, theirs = Pipe()
    ours.send(config)
    status = worker.main(["worker", str(os.dup(theirs.fileno()))])  # which it closes
    record = ours.recv()
    ours.close()
    theirs.close()
    return status, record


def test_an_engine_that_cannot_start_says_what_was_raised(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, failed = start(EngineConfig(str(tmp_path)))
    assert status == 1
    assert isinstance(failed, records.Failed) and failed.reason == "ModelError"
    assert capsys.readouterr().err == ""

    def load_host(config: EngineConfig, *ranks: object) -> None:
        raise torch.OutOfMemoryError("31 GiB are wanted")

    monkeypatch.setattr(worker, "load_host", load_host)
    status, failed = start(EngineConfig(str(tmp_path)))
    assert (status, failed) == (1, records.Failed("", None, "OutOfMemoryError", "31 GiB are wanted"))
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("context", [2, 3, 9, 40, 61, 62, 63])
def test_a_short_context_is_measured_as_far_as_it_goes(directory: Path, tmp_path: Path, context: int) -> None:
    target = load_target(directory, pool_tokens=512, max_context_tokens=context)
    assert measure_costs(target, [NoProposer()], repeats=1).nodes == (1,)
    head = heads.write(tmp_path / "head", heads.random_head(target.config), eagle(target))
    costs = measure_costs(target, [read(head, target, taps=(0, 1, 2))], repeats=1)
    assert costs.nodes == tuple(nodes for nodes in LADDER if nodes == 1 or nodes + 2 <= context)
    assert target.pool.pages_in_use == 0


def test_a_context_without_room_for_a_reply(directory: Path) -> None:
    with pytest.raises(ModelError, match="context of 1 token"):
        measure_costs(load_target(directory, pool_tokens=64, max_context_tokens=1), [NoProposer()])


def test_the_embedded_model_serves_a_short_context() -> None:
    target = load_target(MODEL, pool_tokens=256, max_context_tokens=32)
    assert measure_costs(target, [NoProposer()], repeats=1).nodes == (1,)
