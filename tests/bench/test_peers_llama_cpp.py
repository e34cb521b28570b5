"""llama.cpp computes what transformers computes from a checkpoint. Skipped in part where it is not installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench import harness
from bench.peers import LlamaCppPeer, TransformersPeer, llama_cpp, load_llama_cpp
from bench.peers.gguf_file import interleave_rotary, write_gguf
from tests.engine import checkpoints
from tests.engine.embedded import MODEL

STOP = harness.stop_tokens(MODEL)


def halves(x: Tensor, angles: Tensor) -> Tensor:
    """RoPE that turns place i with i + half. x: [heads, head_dim]."""
    one, other = x.chunk(2, dim=-1)
    return torch.cat((one * angles.cos() - other * angles.sin(), other * angles.cos() + one * angles.sin()), dim=-1)


def pairs(x: Tensor, angles: Tensor) -> Tensor:
    """RoPE that turns place 2i with 2i + 1, as a product of complex numbers."""
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten(-2)


def test_interleaved_rows_turn_to_the_same_scores() -> None:
    torch.manual_seed(0)
    heads, size, width = 3, 8, 5
    query, key = (torch.randn(heads * size, width, dtype=torch.float64) for _ in range(2))
    x, y = torch.randn(2, width, dtype=torch.float64)
    frequencies = 100.0 ** (-torch.arange(size // 2, dtype=torch.float64) / (size // 2))
    plain = [halves((w @ v).view(heads, size), at * frequencies) for w, v, at in ((query, x, 7), (key, y, 3))]
    turned = [
        pairs((interleave_rotary(w, heads) @ v).view(heads, size), at * frequencies)
        for w, v, at in ((query, x, 7), (key, y, 3))
    ]
    torch.testing.assert_close((plain[0] * plain[1]).sum(-1), (turned[0] * turned[1]).sum(-1))


def test_other_models_are_refused(tmp_path: Path) -> None:
    checkpoints.write("llama-untied-llama3-rope", tmp_path)
    with pytest.raises(ValueError, match="default RoPE"):
        write_gguf(tmp_path, tmp_path / "model.gguf", torch.float32)


def test_a_line_says_what_is_not_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: None)
    assert load_llama_cpp(MODEL, torch.float32, STOP) is None
    assert "pip install llama-cpp-python gguf" in capsys.readouterr().out


def needs_llama_cpp() -> None:
    for module in llama_cpp.NEEDED:
        pytest.importorskip(module)


def test_both_modes_say_what_transformers_says() -> None:
    needs_llama_cpp()
    prompts = [prompt.ids for prompt in harness.prompts(harness.load_tokenizer(MODEL), harness.IN_DOMAIN, 1)][:3]
    reference, peer = TransformersPeer(MODEL, torch.float32, STOP), LlamaCppPeer(MODEL, torch.float32, STOP)
    for prompt in prompts:
        expected = reference.reply(prompt, 24)
        for lookup in (None, 10):
            reply = peer.reply(prompt, 24, prompt_lookup=lookup)
            assert reply.tokens == expected.tokens
            assert reply.first_tokens == 1
            assert reply.first_seconds > 0


def test_an_output_matrix_of_its_own_is_carried_over(tmp_path: Path) -> None:
    needs_llama_cpp()
    checkpoints.write("llama-tied", tmp_path, tie_word_embeddings=False)
    prompt = [(7 * i) % checkpoints.VOCAB for i in range(20)]
    expected = TransformersPeer(tmp_path, torch.float32, frozenset({2})).reply(prompt, 16)
    assert LlamaCppPeer(tmp_path, torch.float32, frozenset({2})).reply(prompt, 16).tokens == expected.tokens
