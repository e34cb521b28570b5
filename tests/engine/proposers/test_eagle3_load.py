"""Every published layout is computed as its definition says, and every known trap of the checkpoints is caught."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.errors import ModelError
from engine.models.decoder import Decoder
from engine.proposers.eagle3 import load_eagle3
from engine.proposers.pairs.proposer import PairProposer
from tests.engine import checkpoints
from tests.engine.proposers import heads
from tests.engine.proposers.test_eagle3 import features, path_to

TOKENS, ROOT = [5, 17, 101, 3, 44, 201], 9
WIDTH, LAYERS, HEAD_DIM = 48, 8, 16
LAYER_IDS = "eagle_aux_hidden_state_layer_ids"
DEFAULT = (2, 4, 5)


def eagle(target: Decoder, **changes: Any) -> dict[str, Any]:
    return heads.head_config(target.config, **changes)


def speculators(target: Decoder, *, layer: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """The same shape in speculators' layout. ``layer`` changes the nested layer's settings."""
    nested = {**eagle(target), "head_dim": HEAD_DIM, **(layer or {})}
    return {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "transformer_layer_config": nested,
        **changes,
    }


def layered(tensors: dict[str, Tensor], layer: int = 0) -> dict[str, Tensor]:
    """Speculators' names."""
    return {name.replace("midlayer.", f"layers.{layer}."): tensor.clone() for name, tensor in tensors.items()}


def without(tensors: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def norm(size: int = WIDTH) -> Tensor:
    return 1 + 0.3 * torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))


def read(directory: Path, target: Decoder, **options: Any) -> PairProposer:
    return load_eagle3(directory, target, pool_tokens=1024, **options)


def drafts_like(
    proposer: PairProposer,
    slow: heads.SlowHead,
    target: Decoder,
    tokens: list[int] = TOKENS,
    *,
    within: float = 1e-5,
) -> None:
    """Every node of a tree drafted behind ``tokens`` scores what the slow head gives its path."""
    known, draft = features(target, tokens), proposer.start()
    proposer.observe(draft, torch.tensor(tokens), known, None)
    tree = proposer.propose([draft], [ROOT], [None], 16)[0]
    draft.close()
    tree.check()
    assert len(tree) == 16
    for node in range(1, 16):
        wanted = slow.log_prob(known, tokens, ROOT, path_to(tree, node))
        assert math.log(float(tree.score[node])) == pytest.approx(wanted, abs=within)


def test_eagle_layout(tmp_path: Path, target: Decoder, tensors: dict[str, Tensor]) -> None:
    """Heads times head_dim is not the width here, and the config names no head_dim."""
    proposer = read(heads.write(tmp_path, tensors, eagle(target)), target)
    assert proposer.taps == DEFAULT
    drafts_like(proposer, heads.SlowHead(tensors, target.embedding), target)


def test_pickled_weights(tmp_path: Path, target: Decoder, tensors: dict[str, Tensor]) -> None:
    heads.write(tmp_path, tensors, eagle(target))
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    drafts_like(read(tmp_path, target), heads.SlowHead(tensors, target.embedding), target)


@pytest.mark.parametrize("stated", [None, False, True])
def test_speculators_layout_norms_before_the_residual_unless_told_not_to(
    tmp_path: Path, target: Decoder, tensors: dict[str, Tensor], stated: bool | None
) -> None:
    changes = {} if stated is None else {"norm_before_residual": stated}
    head = heads.write(tmp_path, layered(tensors), speculators(target, **changes))
    slow = heads.SlowHead(tensors, target.embedding, norm_before_residual=stated is not False)
    drafts_like(read(head, target), slow, target)


def test_its_own_embeddings_and_head_norms(tmp_path: Path, target: Decoder, tensors: dict[str, Tensor]) -> None:
    own = torch.randn(target.vocab_size, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    more = tensors | {
        "embed_tokens.weight": own,
        "midlayer.self_attn.q_norm.weight": norm(HEAD_DIM),
        "midlayer.self_attn.k_norm.weight": norm(HEAD_DIM) ** 2,
    }
    head = heads.write(tmp_path, layered(more), speculators(target))
    drafts_like(read(head, target), heads.SlowHead(more, own, norm_before_residual=True), target)


def test_eagle_3_1_norms_every_tap_and_feeds_the_norm_back(
    tmp_path: Path, target: Decoder, tensors: dict[str, Tensor]
) -> None:
    more = tensors | {f"fc_norm.{tap}.weight": norm() + tap for tap in range(3)}
    head = heads.write(tmp_path, layered(more), speculators(target, fc_norm=True, norm_output=True))
    slow = heads.SlowHead(more, target.embedding, norm_before_residual=True, feed_normed=True)
    drafts_like(read(head, target), slow, target)


def test_norm_before_fc(tmp_path: Path, target: Decoder, tensors: dict[str, Tensor]) -> None:
    more = tensors | {"input_norm.weight": norm(3 * WIDTH)}
    head = heads.write(tmp_path, layered(more), speculators(target, norm_before_fc=True))
    drafts_like(read(head, target), heads.SlowHead(more, target.embedding, norm_before_residual=True), target)


@pytest.mark.parametrize(
    ("fields", "theta"),
    [
        ({}, 10_000.0),  # absent: not the target's 500000
        ({"rope_theta": 70.0}, 70.0),
        ({"rope_scaling": {"rope_type": "default", "rope_theta": 80.0}}, 80.0),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 90.0}}, 90.0),
    ],
)
def test_rope_theta_wherever_it_is_written(
    tmp_path: Path, target: Decoder, tensors: dict[str, Tensor], fields: dict[str, Any], theta: float
) -> None:
    slow = heads.SlowHead(tensors, target.embedding, theta=theta)
    head = heads.write(tmp_path, tensors, eagle(target, **fields))
    drafts_like(read(head, target), slow, target)
    overridden = heads.SlowHead(tensors, target.embedding, theta=60.0)
    drafts_like(read(head, target, rope_theta=60.0), overridden, target)
    nested = speculators(target, layer=fields, norm_before_residual=False)
    drafts_like(read(heads.write(tmp_path, layered(tensors), nested), target), slow, target)


def test_no_d2t_means_the_targets_own_ids(tmp_path: Path, target: Decoder) -> None:
    whole = without(heads.random_head(target.config, draft_vocab=checkpoints.VOCAB), "d2t", "t2d")
    head = heads.write(tmp_path, whole, eagle(target))
    drafts_like(read(head, target), heads.SlowHead(whole, target.embedding), target)
    bare = heads.write(tmp_path, without(whole, "lm_head.weight"), eagle(target))
    slow = heads.SlowHead(whole | {"lm_head.weight": target.lm_head_weight}, target.embedding)
    drafts_like(read(bare, target), slow, target)


@pytest.mark.parametrize(
    ("fields", "taps"),
    [
        ({}, DEFAULT),
        ({LAYER_IDS: None}, DEFAULT),
        ({LAYER_IDS: [1, 3, 7]}, (1, 3, 7)),  # at the top: inputs of layers
        ({LAYER_IDS: [1, 3, 4]}, DEFAULT),  # EAGLE's choice as outputs of layers
        ({"eagle_config": {LAYER_IDS: [0, 3, 7]}}, (1, 4, 8)),  # nested: outputs of layers
        ({"eagle_config": {LAYER_IDS: [1, 3, 4]}}, DEFAULT),
        ({"eagle_config": {LAYER_IDS: [2, 4, 5]}}, DEFAULT),  # EAGLE's choice as inputs of layers
        ({"eagle_config": {LAYER_IDS: None}}, DEFAULT),
    ],
)
def test_layer_ids_in_either_convention(
    tmp_path: Path, target: Decoder, tensors: dict[str, Tensor], fields: dict[str, Any], taps: tuple[int, ...]
) -> None:
    head = heads.write(tmp_path, tensors, eagle(target, **fields))
    assert read(head, target).taps == taps
    assert read(head, target, taps=(0, 1, 8)).taps == (0, 1, 8)


def test_the_number_of_taps_is_what_fc_takes(tmp_path: Path, target: Decoder, tensors: dict[str, Tensor]) -> None:
    two = tensors | {"fc.weight": tensors["fc.weight"][:, : 2 * WIDTH]}
    head = heads.write(tmp_path, two, eagle(target, **{LAYER_IDS: [2, 5]}))
    assert read(head, target).taps == (2, 5)
    with pytest.raises(ModelError, match="fuses 2 states"):
        read(head, target, taps=(2, 9))
    with pytest.raises(ModelError, match="fuses 2 states"):
        read(heads.write(tmp_path, two, eagle(target, **{LAYER_IDS: [2, 5, 6]})), target)
    with pytest.raises(ModelError, match="does not say which"):
        read(heads.write(tmp_path, two, eagle(target)), target)


def test_layers_are_counted_not_believed(tmp_path: Path, target: Decoder, tensors: dict[str, Tensor]) -> None:
    head = heads.write(tmp_path, tensors, eagle(target, num_hidden_layers=36))
    drafts_like(read(head, target), heads.SlowHead(tensors, target.embedding), target)
    with pytest.raises(ModelError, match="2 layers"):
        read(heads.write(tmp_path, layered(tensors) | layered(tensors, 1), speculators(target)), target)


def test_what_does_not_fit_is_said_by_name(tmp_path: Path, target: Decoder, tensors: dict[str, Tensor]) -> None:
    def refuse(message: str, tensors: dict[str, Tensor], config: dict[str, Any] | None = None) -> None:
        with pytest.raises(ModelError, match=message):
            read(heads.write(tmp_path, tensors, config or eagle(target)), target)

    offsets = tensors["d2t"]
    refuse("no EAGLE-3 head: fc.weight", without(tensors, "fc.weight"))
    refuse("norm.weight is missing", without(tensors, "norm.weight"))
    refuse("hidden_norm.weight is missing", without(tensors, "midlayer.hidden_norm.weight"))
    refuse("d2t is missing", without(tensors, "d2t", "t2d"))
    refuse("d2t maps 3", tensors | {"d2t": offsets[:3]})
    refuse("d2t leads outside", tensors | {"d2t": offsets + checkpoints.VOCAB})
    refuse("twice to one", tensors | {"d2t": -torch.arange(len(offsets))})
    refuse("k_proj.weight has shape", tensors | {"midlayer.self_attn.k_proj.weight": torch.zeros(3, 2 * WIDTH)})
    refuse("another target", tensors | {"fc.weight": torch.zeros(WIDTH, 3 * 40)})
    narrow = {name: value for name, value in eagle(target).items() if name != "num_attention_heads"}
    refuse("lacks num_attention_heads", tensors, narrow)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"neither model.safetensors nor pytorch_model.bin"):
        read(tmp_path, target)
