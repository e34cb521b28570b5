"""Medusa heads are read wherever they are published, known traps are caught, and the rest is refused by name."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.errors import ModelError
from engine.models.decoder import Decoder
from engine.proposers.medusa.load import load
from engine.proposers.medusa.proposer import MedusaProposer
from engine.proposers.setup import Setup
from tests.engine import checkpoints, small
from tests.engine.loading import load as load_decoder
from tests.engine.proposers import modules
from tests.engine.proposers.medusa_heads import WIDTH, random_heads, slow_log_probs, write
from tests.engine.proposers.test_medusa import assert_scored, draft_tree, states


@pytest.fixture(scope="module")
def target() -> Decoder:
    return small.models()[0]


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return random_heads(3)


def read(path: Path | None, target: Decoder, model: Path | None = None) -> MedusaProposer:
    return load(path, Setup(target, model or Path("no model"), 64))


def assert_drafts_like(proposer: MedusaProposer, tensors: dict[str, Tensor], output: Tensor | None = None) -> None:
    """Every head says what the slow one says, and there are no more."""
    for budget in (4, 60):
        tree = draft_tree(proposer, states(2), budget)
        assert len(tree) == budget
        assert_scored(tree, slow_log_probs(tensors, states(2)[-1, 0], output=output))
    heads = len({name.split(".")[0] for name in tensors})
    assert len(proposer.heads) == heads
    rows = proposer.heads.log_probs(states(2)[-1], heads)
    wanted = torch.stack(slow_log_probs(tensors, states(2)[-1, 0], output=output))
    torch.testing.assert_close(rows.double(), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_medusa_1(target: Decoder, tmp_path: Path, pickled: bool, blocks: int) -> None:
    tensors = random_heads(3, blocks=blocks)
    assert_drafts_like(read(write(tmp_path, tensors, pickled=pickled), target), tensors)


def test_a_published_tree_beside_the_heads_is_drafted(
    target: Decoder, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    path = write(tmp_path, tensors)
    (path / "config.json").write_text('{"medusa_num_heads": 2, "medusa_choices": [[0], [1], [0, 0], [0, 2]]}')
    tree = draft_tree(read(path, target), states(2), 60)
    assert tree.parents.tolist() == [-1, 0, 0, 1, 1]
    chain = draft_tree(load(path, Setup(target, path, 64, chain=True)), states(2), 60)
    assert chain.parents.tolist() == [-1, 0, 1, 2]


@pytest.mark.parametrize(
    "choices",
    [
        "[[0, 0]]",
        "[[0], [0]]",
        "[[0], [0, 0], [0, 0, 0], [0, 0, 0, 0]]",
        "7",
        "[[]]",
        "[[0.0]]",
        '[["0"]]',
        '{"0": [0]}',
    ],
)
def test_a_tree_that_is_none_is_refused(
    choices: str, target: Decoder, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    path = write(tmp_path, tensors)
    (path / "config.json").write_text(f'{{"medusa_choices": {choices}}}')
    with pytest.raises(ModelError, match="medusa_choices"):
        read(path, target)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("own_output", [False, True])
def test_medusa_2_is_inside_the_target(tmp_path: Path, sharded: bool, own_output: bool) -> None:
    tensors = random_heads(2, own_output=own_output)
    checkpoints.write("llama-untied-llama3-rope", tmp_path)
    modules.write_into(tmp_path, {f"medusa_head.{name}": t for name, t in tensors.items()}, sharded=sharded)
    target = load_decoder(tmp_path, torch.float64)
    for path in (None, tmp_path):
        assert_drafts_like(read(path, target, tmp_path), tensors, target.lm_head_weight)


def test_heads_are_counted_not_believed(target: Decoder, tmp_path: Path) -> None:
    """Published configs say 2 heads, their files hold 5."""
    tensors = random_heads(5)
    assert_drafts_like(read(write(tmp_path, tensors, heads=2), target), tensors)
    assert_drafts_like(read(write(tmp_path / "fewer", random_heads(1), heads=2), target), random_heads(1))
    (tmp_path / "config.json").unlink()
    assert_drafts_like(read(tmp_path, target), tensors)


@pytest.mark.parametrize("pickled", [False, True])
def test_a_block_that_is_repeated_is_applied_as_often_and_held_once(
    target: Decoder, tmp_path: Path, pickled: bool
) -> None:
    """``[ResBlock(...)] * 2`` is one block under two names, and the config may say 1."""
    tensors = random_heads(2, blocks=2)
    for head, kind in itertools.product(range(2), ("weight", "bias")):
        first = tensors[f"{head}.0.linear.{kind}"]
        tensors[f"{head}.1.linear.{kind}"] = first if pickled else first.clone()
    proposer = read(write(tmp_path, tensors, pickled=pickled), target)
    assert_drafts_like(proposer, tensors)
    for first, second in proposer.heads._blocks:
        assert first[0] is second[0] and first[1] is second[1]


def test_heads_without_output_rows_share_the_targets(target: Decoder, tmp_path: Path) -> None:
    """As text-generation-inference publishes them. Where one head lacks its rows alone, the file is not whole."""
    tensors = random_heads(3, own_output=False)
    assert_drafts_like(read(write(tmp_path, tensors), target), tensors, target.lm_head_weight)
    tensors = random_heads(3)
    del tensors["1.1.weight"]
    with pytest.raises(ModelError, match=r"missing tensors: 1\.1\.weight"):
        read(write(tmp_path, tensors), target)


def test_a_tensor_that_is_missing_or_of_another_shape_is_named(
    target: Decoder, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    for name, tensor in tensors.items():
        rest = {other: value for other, value in tensors.items() if other != name}
        with pytest.raises(ModelError, match=f"missing tensors: {name}"):
            read(write(tmp_path, rest), target)
        for shape in (tensor.shape[1:] or (3,), (*tensor.shape[:-1], tensor.shape[-1] + 1)):
            with pytest.raises(ModelError, match=f"{name} has shape"):
                read(write(tmp_path, tensors | {name: torch.zeros(shape)}), target)


def test_a_head_left_out_is_named(target: Decoder, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    rest = {name: value for name, value in tensors.items() if not name.startswith("1.")}
    with pytest.raises(ModelError, match=r"missing tensors: 1\.0\.linear\.bias.*unexpected tensors: 2\."):
        read(write(tmp_path, rest), target)


def test_a_repeated_block_that_was_saved_once_is_not_taken_for_one(
    target: Decoder, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    """Writers that drop copies leave the output matrix at index 2 behind one block."""
    renamed = {name.replace(".1.weight", ".2.weight"): value for name, value in tensors.items()}
    with pytest.raises(ModelError, match=r"missing tensors: 0\.1\.weight.*unexpected tensors: 0\.2\.weight"):
        read(write(tmp_path, renamed), target)


@pytest.mark.parametrize(
    "name",
    ["0.1.bias", "0.0.linear.weight_scale", "0.0.norm.weight", "lm_head.weight", "3.0.linear", "x0.0.linear.bias"],
)
def test_a_tensor_that_would_be_ignored_is_refused(
    target: Decoder, tensors: dict[str, Tensor], tmp_path: Path, name: str
) -> None:
    more = tensors | {name: torch.zeros(WIDTH)}
    with pytest.raises(ModelError, match=f"unexpected tensors: {name}"):
        read(write(tmp_path, more), target)
    checkpoints.write("llama-tied", tmp_path / "model")
    inside = {f"medusa_head.{other}": tensor for other, tensor in more.items()}
    modules.write_into(tmp_path / "model", inside)
    with pytest.raises(ModelError, match=f"unexpected tensors: {name}"):
        read(None, target, tmp_path / "model")


def test_what_holds_no_heads_is_said(target: Decoder, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"neither medusa_lm_head.safetensors nor medusa_lm_head.pt, nor a model"):
        read(tmp_path, target)
    checkpoints.write("llama-tied", tmp_path)
    with pytest.raises(ModelError, match="no Medusa heads"):
        read(None, target, tmp_path)
    with pytest.raises(ModelError, match="no Medusa heads"):
        read(write(tmp_path, {"blocks.0.layers.0.weight": torch.zeros(WIDTH, WIDTH)}), target)


@pytest.mark.parametrize("name", ["medusa_lm_head.safetensors", "medusa_lm_head.pt"])
def test_a_cut_file_is_refused(target: Decoder, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\3\4")
    with pytest.raises(ModelError, match=name):
        read(tmp_path, target)


class Intruder:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_pickle_is_not_let_run_anything(target: Decoder, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(tensors | {"0.0.linear.bias": Intruder(tmp_path / "ran")}, tmp_path / "medusa_lm_head.pt")
    with pytest.raises(ModelError, match="cannot be read"):
        read(tmp_path, target)
    assert not (tmp_path / "ran").exists()
    torch.save({"epoch": 3}, tmp_path / "medusa_lm_head.pt")
    with pytest.raises(ModelError, match="does not hold tensors"):
        read(tmp_path, target)
