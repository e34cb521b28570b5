"""Writes a Hugging Face Llama as GGUF, the file that llama.cpp loads. Needs the ``gguf`` package.

It holds what token ids need: the vocabulary has its size and no words.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.models.config import DecoderConfig, read_config
from engine.weights import load_tensors

if TYPE_CHECKING:
    from gguf import GGUFWriter


def write_gguf(model: Path, out: Path, dtype: torch.dtype) -> None:
    """Convert the single-file checkpoint in ``model``: matrices in ``dtype``, float32 or bfloat16, norms in float32.

    ModelError where it cannot be read, ValueError where it is more than a plain Llama.
    """
    config = read_config(model)
    _refuse_others(config)
    import gguf

    writer = gguf.GGUFWriter(out, "llama")
    _add_shape(writer, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_layers)
    heads = {"q_proj.weight": config.num_heads, "k_proj.weight": config.num_kv_heads}
    for name, tensor in load_tensors(model / "model.safetensors").items():
        if name == "lm_head.weight" and config.tied:  # llama.cpp takes the embedding where there is no output matrix
            continue
        count = heads.get(".".join(name.split(".")[-2:]))
        turned = tensor if count is None else interleave_rotary(tensor, count)
        _add_tensor(writer, names.get_name(name, try_suffixes=(".weight",)), turned, dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleave_rotary(weight: Tensor, heads: int) -> Tensor:
    """Rows of a query or key projection as llama.cpp's RoPE wants them.

    For this architecture it turns place 2i of a head with 2i + 1, Hugging Face's turns i with i + half.
    """
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def _refuse_others(config: DecoderConfig) -> None:
    if config.architecture != "LlamaForCausalLM" or config.qkv_bias or config.rope["rope_type"] != "default":
        raise ValueError("only a LlamaForCausalLM without biases and with default RoPE is converted to GGUF")


def _add_shape(writer: GGUFWriter, config: DecoderConfig) -> None:
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")


def _add_tensor(writer: GGUFWriter, name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    from gguf import GGMLQuantizationType

    tensor = tensor.to(dtype if tensor.dim() > 1 else torch.float32).contiguous()
    if tensor.dtype == torch.bfloat16:  # numpy has no such type; the writer takes its bytes
        writer.add_tensor(name, tensor.view(torch.uint8).numpy(), raw_dtype=GGMLQuantizationType.BF16)
    else:
        writer.add_tensor(name, tensor.numpy())
