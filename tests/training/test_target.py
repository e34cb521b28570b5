"""The training-side Llama, its attention, its initialisation and its optimiser."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, LlamaForCausalLM

from training import tokenizer as tokens
from training.attention import BLOCK, CausalAttention
from training.corpus import TARGET_SHARE, Corpus, batches, collate, repeats
from training.data import _plain
from training.dialogues import dialogue
from training.induction import induction_init
from training.llama import Llama, Shape, rotary, rotate
from training.optimiser import optimisers, orthogonalise
from training.parallel import Ranks
from training.target import save_model

SMALL = Shape(vocab=300, hidden=192, layers=3, heads=4, kv_heads=2, head_dim=64, intermediate=128, max_positions=512)


@pytest.mark.parametrize("length", [7, BLOCK, BLOCK + 45])
def test_attention_has_the_gradients_of_pytorch(length):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, length, 64, requires_grad=True) for _ in range(3))
    grad = torch.randn(2, 4, length, 64)
    ours, theirs = CausalAttention.apply(q, k, v), F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(ours, theirs)
    for got, want in zip(
        torch.autograd.grad(ours, (q, k, v), grad), torch.autograd.grad(theirs, (q, k, v), grad), strict=True
    ):
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)


def test_a_saved_model_loads_strictly_in_transformers(tmp_path):
    tokens.train(_plain(dialogue(seed) for seed in range(100))).save_pretrained(tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    torch.manual_seed(0)
    model = Llama(Shape(vocab=len(tokenizer), layers=2))
    induction_init(model)
    save_model(model, tokenizer, tmp_path / "model")
    loaded, info = LlamaForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours = Llama(model.shape)
    ours.load_state_dict({name: value.bfloat16().float() for name, value in model.state_dict().items()})
    ids = torch.randint(0, len(tokenizer), (2, 70))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), loaded(ids).logits, atol=1e-4, rtol=1e-4)
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id


def attention_to_what_followed(model):
    """Mean attention of layer 1, to the token after the current token's earlier places in a repeated sequence."""
    shape, period, length = model.shape, 40, 120
    ids = torch.randint(0, shape.vocab, (4, period), generator=torch.Generator().manual_seed(1)).repeat(1, 3)
    cos, sin = rotary(shape, length)
    with torch.no_grad():
        x = model.model.layers[0](model.model.embed_tokens(ids), cos, sin)
        layer = model.model.layers[1]
        x = layer.input_layernorm(x)
        q = rotate(layer.self_attn.q_proj(x).view(4, length, shape.heads, -1).transpose(1, 2), cos, sin)
        k = rotate(layer.self_attn.k_proj(x).view(4, length, shape.kv_heads, -1).transpose(1, 2), cos, sin)
        scores = q @ k.repeat_interleave(shape.heads // shape.kv_heads, 1).mT / shape.head_dim**0.5
        weights = scores.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf")).softmax(-1)
    at = torch.arange(2 * period, length)
    return float((weights[:, :, at, at - period + 1] + weights[:, :, at, at - 2 * period + 1]).mean())


def test_the_induction_initialisation_finds_what_followed_before_any_training():
    torch.manual_seed(0)
    plain, copying = Llama(Shape()), Llama(Shape())
    induction_init(copying)
    assert attention_to_what_followed(plain) < 0.03, "about 2 of 120 positions"
    assert attention_to_what_followed(copying) > 0.1


def test_the_first_layers_head_looks_one_position_back():
    torch.manual_seed(0)
    model = Llama(SMALL)
    induction_init(model)
    ids = torch.randint(0, SMALL.vocab, (1, 60))
    layer, size = model.model.layers[0], SMALL.head_dim
    x = layer.input_layernorm(model.model.embed_tokens(ids))
    cos, sin = rotary(SMALL, 60)
    q = rotate(layer.self_attn.q_proj(x)[..., :size], cos, sin)
    k = rotate(layer.self_attn.k_proj(x)[..., :size], cos, sin)
    scores = (q @ k.mT)[0] / size**0.5
    scores = scores.masked_fill(torch.ones(60, 60).triu(1).bool(), float("-inf"))
    assert (scores.argmax(-1)[1:] == torch.arange(59)).float().mean() > 0.95


def test_orthogonalise_flattens_the_singular_values():
    torch.manual_seed(0)
    for shape in ((3, 40, 20), (2, 16, 64)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert values.min() > 0.5 and values.max() < 1.4


@pytest.mark.parametrize("muon", [True, False])
def test_the_optimisers_lower_the_loss(muon):
    torch.manual_seed(0)
    model = Llama(Shape(vocab=64, hidden=64, layers=2, heads=2, kv_heads=1, head_dim=32, intermediate=64))
    used = optimisers(model, muon)
    covered = [p for optimiser in used for group in optimiser.param_groups for p in group["params"]]
    assert {id(p) for p in covered} == {id(p) for p in model.parameters()} and len(covered) == len(
        list(model.parameters())
    )
    ids = torch.randint(0, 64, (4, 32))
    losses = []
    for _ in range(25):
        loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        for optimiser in used:
            for group in optimiser.param_groups:
                group["lr"] = 3e-3
            optimiser.step()
            optimiser.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.5


def test_a_batch_points_at_the_tokens_that_are_learned():
    rows = [
        (np.arange(10, 40, dtype=np.uint16), np.r_[np.zeros(5), np.ones(25)]),
        (np.arange(50, 60, dtype=np.uint16), np.r_[np.zeros(8), 3, 3]),
    ]
    batch = collate(rows, 64, pad=1)
    assert batch.ids.shape == (2, 64) and len(batch.at) == int(2 * 64 * TARGET_SHARE)
    learned = batch.weight > 0
    assert learned.sum() == 27
    assert torch.equal(batch.target[learned], batch.ids.flatten()[batch.at[learned] + 1])
    assert batch.weight.sum() == 25 + 6


def test_batches_show_every_conversation_once_a_pass():
    lengths = [100] * 48 + [300] * 16
    offsets = np.cumsum([0, *lengths])
    ids = np.concatenate([np.full(length, index) for index, length in enumerate(lengths)]).astype(np.uint16)
    stream = batches(Corpus(ids, np.ones(len(ids), np.float16), offsets), 0, pad=999)
    seen = [int(row[0]) for _ in range(6) for row in next(stream).ids]
    assert sorted(seen) == list(range(64)), "four batches of 12 short ones and two of 8 long ones"


def test_the_ranks_of_a_step_share_its_rows():
    lengths = [100] * 48 + [300] * 32
    offsets = np.cumsum([0, *lengths])
    ids = np.concatenate([np.full(length, index) for index, length in enumerate(lengths)]).astype(np.uint16)
    corpus = Corpus(ids, np.ones(len(ids), np.float16), offsets)
    streams = [batches(corpus, 0, pad=999, ranks=Ranks(rank, 2)) for rank in range(2)]
    seen = []
    for _ in range(4):
        first, second = (next(stream).ids for stream in streams)
        assert first.shape == second.shape
        seen += [int(row[0]) for row in torch.cat([first, second])]
    assert sorted(seen) == list(range(80)), "two steps of 24 short ones and two of 16 long ones"


def test_repeats_are_known_from_their_context():
    batch = next(repeats(300, list(range(20, 30)), seed=0))
    flat = batch.ids.flatten()
    for at, target in list(zip(batch.at.tolist(), batch.target.tolist(), strict=True))[:500]:
        row, column = divmod(at, batch.ids.shape[1])
        assert target in batch.ids[row, : column + 1], "the target stood before"
        assert flat[at + 1] == target
