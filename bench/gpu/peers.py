"""transformers' own ``generate`` on the same grown weights, in the same run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from bench.gpu.calls import asked
from bench.gpu.grown import grown_draft, grown_pair
from bench.gpu.stages import Bench, NotRun, Table, in_words
from bench.gpu.targets import SMALL
from bench.harness import stop_tokens
from engine.models.decoder import Decoder

PROMPT_LOOKUP = 10


def peers(bench: Bench) -> Iterator[Table]:
    """Dynamic cache, static cache, static cache compiled, prompt lookup, and assisted by the grown draft model."""
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise NotRun(f"transformers: {error}") from error
    grown, _ = grown_pair(bench)
    model, assistant = same_weights(grown.target), same_weights(grown_draft(bench))
    real = OnlyReal(grown.small.vocab_size)
    # The longest first: a static cache is made for it, and a longer one behind it would be compiled for while timed.
    questions = [prompt.ids for prompt in asked(bench, 6 if bench.device.type == "cuda" else 1)]
    questions.sort(key=len, reverse=True)
    ways: list[tuple[str, dict[str, Any]]] = [
        ("greedy", {}),
        ("prompt lookup", {"prompt_lookup_num_tokens": PROMPT_LOOKUP}),
        ("assisted", {"assistant_model": assistant}),
        ("static cache", {"cache_implementation": "static", "disable_compile": True}),
    ]
    if bench.device.type == "cuda":
        ways.append(("static cache, compiled", {"cache_implementation": "static"}))
    header = ["transformers generate", "tokens/s", "", "x our plain, graphs"]
    yield (table := Table("Peers on the same grown weights", header))
    ours = bench.figures.get(f"grown {SMALL} tokens_s plain, graphs", float("nan"))
    for name, options in ways:
        if bench.left < 0:
            table.rows.append([name, float("nan"), "no time left", float("nan")])
            continue
        try:
            rate = _tokens_per_second(model, questions, bench, {**options, "logits_processor": [real]})
        except Exception as error:
            table.rows.append([name, float("nan"), in_words(error), float("nan")])
            continue
        table.rows.append([name, rate, "", rate / ours])


class OnlyReal:
    """A logits processor: tokens that were added to the vocabulary do not come, as in the grown model of ours."""

    def __init__(self, vocab_size: int) -> None:
        self._real = vocab_size

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        scores[:, self._real :] = -torch.inf
        return scores


def same_weights(target: Decoder) -> Any:
    """transformers' Llama over the very tensors of ``target``: its merged matrices, cut into views. Without its mask of
    what was added to the vocabulary.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = target.config
    with torch.device("meta"):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                num_key_value_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                rms_norm_eps=config.rms_norm_eps,
                max_position_embeddings=config.max_positions,
                rope_parameters=dict(config.rope),
                tie_word_embeddings=False,
            )
        )
    tensors = {"model.embed_tokens.weight": target.embedding, "lm_head.weight": target.lm_head_weight}
    tensors["model.norm.weight"] = target.norm_weight
    q_rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    for index, layer in enumerate(target.layers):
        prefix = f"model.layers.{index}."
        assert isinstance(layer.qkv, torch.Tensor)
        assert isinstance(layer.gate_up, torch.Tensor)
        for name, part in zip("qkv", layer.qkv.split([q_rows, kv_rows, kv_rows]), strict=True):
            tensors[f"{prefix}self_attn.{name}_proj.weight"] = part
        for name, part in zip(("gate", "up"), layer.gate_up.chunk(2), strict=True):
            tensors[f"{prefix}mlp.{name}_proj.weight"] = part
        tensors[f"{prefix}self_attn.o_proj.weight"] = layer.output
        tensors[f"{prefix}mlp.down_proj.weight"] = layer.down
        tensors[f"{prefix}input_layernorm.weight"] = layer.attention_norm
        tensors[f"{prefix}post_attention_layernorm.weight"] = layer.mlp_norm
    model.requires_grad_(False)
    with torch.inference_mode():
        model.load_state_dict(tensors, strict=True, assign=True)
    # Computed, and in no checkpoint.
    with target.device:
        model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config)
    return model.eval()


@torch.inference_mode()
def _tokens_per_second(model: Any, questions: list[list[int]], bench: Bench, options: dict[str, Any]) -> float:
    """Of whole replies less their first token, which is a reply of one token's time."""
    tokens, seconds = 0, 0.0
    for number, ids in enumerate(questions):
        for timed in (False, True) if number == 0 else (True,):
            whole, length = _generate(model, ids, bench.sizes.reply_tokens, bench, options)
            one, _ = _generate(model, ids, 1, bench, options)
            if timed:
                tokens += length - 1
                seconds += whole - one
        if bench.left < 0:
            break
    return tokens / seconds if tokens else float("nan")


def _generate(model: Any, ids: list[int], most: int, bench: Bench, options: dict[str, Any]) -> tuple[float, int]:
    prompt = torch.tensor([ids], device=bench.device)
    if bench.device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=most,
        do_sample=False,
        eos_token_id=sorted(stop_tokens(bench.model)),  # whole replies, as ours
        pad_token_id=0,
        **options,
    )
    if bench.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, output.shape[1] - len(ids)
