"""A target that is shared by two ranks, over gloo on the CPU, says what one alone says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.gpu.sizes import RandomTensors
from engine.engine import Engine, Work
from engine.errors import ModelError
from engine.models.config import read_config
from engine.models.decoder import Decoder, load_target
from engine.models.scheme import FP8
from engine.parallel import Shard, ShardedTensors, join, sharing
from engine.policy import FixedPolicy
from engine.proposers import mtp
from engine.proposers.eagle3 import load_eagle3
from engine.proposers.setup import Setup
from engine.quantize import ScaledMatrix
from engine.sampling import Sampling
from tests.engine import checkpoints
from tests.engine.embedded import HEAD, MODEL
from tests.engine.equal import embedded_prompts
from tests.engine.test_quantize import logits_of, write_quantised

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ("llama-untied-llama3-rope", "qwen2-biases", "qwen3-qk-norm")
LAYOUTS = ("channel", "tensor", "block")
"""Of scales, in checkpoints that are quantised already."""
TOKENS = torch.arange(40) * 11 % checkpoints.VOCAB


def replies(target: Decoder) -> list[list[int]]:
    """Greedy and sampled, plain and drafted, of the embedded model. A module has as many heads as the whole target."""
    head = load_eagle3(HEAD, target, pool_tokens=2048)
    module = mtp.load(MODEL / "mtp", Setup(target, MODEL, 2048))
    said = []
    for nodes, drafter, sampling in (
        (1, head, Sampling()),
        (16, head, Sampling()),
        (16, head, Sampling(0.8, seed=2)),
        (8, module, Sampling()),
    ):
        engine = Engine(target, drafter, FixedPolicy(nodes))
        session = engine.open("call", embedded_prompts(1)[0])
        turn = engine.submit(session, sampling, max_tokens=10)
        while turn.finish is None:
            engine.step([Work(session, max_tokens=4096)])
        said.append(turn.tokens)
        engine.close(session)
    return said


def one_rank(rank: int, address: str, directory: Path) -> None:
    """What each of the two processes does: this module, run as a program."""
    torch.set_num_threads(1)
    shard = join(rank, 2, address, torch.device("cpu"))
    targets = {
        name: load_target(directory / name, dtype=torch.float64, pool_tokens=512, shard=shard)
        for name in (*SHAPES, *LAYOUTS)
    }
    assert targets[SHAPES[0]].pool.geometry.num_kv_heads == 1, "each rank keeps its own heads' keys"
    found = {name: logits_of(target, TOKENS) for name, target in targets.items()}
    torch.save(found, directory / f"logits-{rank}.pt")
    said = replies(load_target(MODEL, dtype=torch.float64, pool_tokens=2048, shard=shard))
    (directory / f"replies-{rank}.json").write_text(json.dumps(said))
    torch.distributed.destroy_process_group()


def test_two_ranks_say_what_one_says(tmp_path: Path) -> None:
    for name in SHAPES:
        checkpoints.write(name, tmp_path / name)
    for layout in LAYOUTS:
        write_quantised(tmp_path / layout, FP8, layout)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.engine.test_parallel", str(rank), f"file://{tmp_path}/meet", str(tmp_path)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in ranks:
        _, errors = process.communicate(timeout=110)
        assert process.returncode == 0, errors
    for rank in range(2):
        found = torch.load(tmp_path / f"logits-{rank}.pt")
        for name in (*SHAPES, *LAYOUTS):
            alone = logits_of(load_target(tmp_path / name, dtype=torch.float64, pool_tokens=512), TOKENS)
            torch.testing.assert_close(found[name], alone, rtol=0, atol=1e-9)
    alone_said = replies(load_target(MODEL, dtype=torch.float64, pool_tokens=2048))
    for rank in range(2):
        assert json.loads((tmp_path / f"replies-{rank}.json").read_text()) == alone_said


def test_what_cannot_be_shared_evenly_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="num_heads 4 cannot be shared among 3 ranks"):
        Shard(0, 3).config(read_config(MODEL))
    with pytest.raises(ModelError, match="num_kv_heads 2 cannot be shared among 4 ranks"):
        Shard(0, 4).config(read_config(MODEL))


def test_a_block_of_inputs_is_one_ranks() -> None:
    """24 inputs of each rank in blocks of 16."""
    matrix = ScaledMatrix(torch.ones(4, 48).to(FP8), torch.ones(4, 3), 16)
    shard = Shard(0, 2)
    read = sharing(lambda weights, names, shapes: matrix, shard)
    source = ShardedTensors(RandomTensors(torch.float32, torch.device("cpu")), shard)
    with pytest.raises(ModelError, match=r"o_proj\.weight: blocks of 16 inputs cannot be shared among 2 ranks"):
        read(source, ["o_proj.weight"], [(4, 24)])


if __name__ == "__main__":
    one_rank(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
