"""Grow a small checkpoint into one that computes the same function at a larger model's cost per step.

    python -m bench.grow --model models/receptionist --out build/grown --layers 24

The width is multiplied by four: the residual stream is padded with zeros that stay zero, because nothing writes there.
RMSNorm averages over four times as many places, so its weights are halved and its epsilon quartered, both exact in
binary. Layers that are added write nothing (zero output projections). What is not multiplied into the answer stays
random rather than zero, since kernels may run faster on zeros. So acceptance is that of the trained pair, and a step
costs what a larger model's step costs: the two can be measured together without downloading anything.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WIDTH_FACTOR = 4  # a power of four keeps the norm's square root, and with it every scaling, exact


@dataclass(frozen=True)
class Padding:
    """How a weight's rows and columns grow: real places keep their value, the others get noise or zeros."""

    scale: float
    generator: torch.Generator

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator) * self.scale

    def reads(self, weight: Tensor, rows: int, blocks: int = 1) -> Tensor:
        """A matrix that reads the padded stream: its own values where the stream is real, noise where it is zero.

        ``blocks``: how many padded streams lie side by side in its input.
        """
        real_rows, columns = weight.shape
        width = columns // blocks
        grown = self.random(rows, columns * WIDTH_FACTOR)
        for block in range(blocks):
            start = block * width * WIDTH_FACTOR
            grown[:real_rows, start : start + width] = weight[:, block * width : (block + 1) * width]
        return grown

    def writes(self, weight: Tensor, columns: int) -> Tensor:
        """A matrix that writes the padded stream: nothing into places that must stay zero, nothing from added units."""
        rows, real_columns = weight.shape
        grown = torch.zeros(rows * WIDTH_FACTOR, columns)
        grown[:rows, :real_columns] = weight
        return grown

    def norm(self, weight: Tensor, blocks: int = 1) -> Tensor:
        """An RMSNorm weight over ``blocks`` padded streams side by side."""
        grown = self.random(weight.numel() * WIDTH_FACTOR)
        width = weight.numel() // blocks
        for block in range(blocks):
            start = block * width * WIDTH_FACTOR
            grown[start : start + width] = weight[block * width : (block + 1) * width] / WIDTH_FACTOR**0.5
        return grown


def grow_block(weights: dict[str, Tensor], old: str, new: str, pad: Padding, *, inputs: int = 1) -> dict[str, Tensor]:
    """One decoder layer, renamed from ``old`` to ``new``. ``inputs``: streams that attention reads side by side."""
    grown: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if not name.startswith(old):
            continue
        part = name.removeprefix(old)
        if part.endswith("norm.weight"):
            value = pad.norm(weight)
        elif part in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
            value = pad.writes(weight, weight.shape[1] * WIDTH_FACTOR)
        elif part.startswith("self_attn."):
            value = pad.reads(weight, weight.shape[0] * WIDTH_FACTOR, inputs)
        else:
            value = pad.reads(weight, weight.shape[0] * WIDTH_FACTOR)
        grown[new + part] = value
    return grown


def identity_block(template: dict[str, Tensor], old: str, new: str, pad: Padding) -> dict[str, Tensor]:
    """A layer of the same shape that adds nothing: its output projections are zero, the rest is noise."""
    layer = grow_block(template, old, new, pad)
    for name in layer:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            layer[name] = torch.zeros_like(layer[name])
        else:
            layer[name] = pad.random(*layer[name].shape)
    return layer


def spread(num_real: int, num_layers: int) -> list[int]:
    """Where the real layers stand among the grown model's, first and last included."""
    return [round(i * (num_layers - 1) / (num_real - 1)) for i in range(num_real)]


def grow_target(source: Path, out: Path, num_layers: int, dtype: torch.dtype, pad: Padding) -> list[int]:
    """Write the grown target; returns where the real layers stand in it."""
    config = json.loads((source / "config.json").read_text())
    weights = {name: tensor.float() for name, tensor in load_file(source / "model.safetensors").items()}
    num_real = config["num_hidden_layers"]
    places = spread(num_real, num_layers)
    width = config["hidden_size"]
    grown = {"model.norm.weight": pad.norm(weights["model.norm.weight"])}
    embedding = torch.zeros(config["vocab_size"], width * WIDTH_FACTOR)
    embedding[:, :width] = weights["model.embed_tokens.weight"]
    grown["model.embed_tokens.weight"] = embedding
    if "lm_head.weight" in weights and not config.get("tie_word_embeddings", False):
        grown["lm_head.weight"] = pad.reads(weights["lm_head.weight"], config["vocab_size"])
    for layer in range(num_layers):
        new = f"model.layers.{layer}."
        if layer in places:
            grown |= grow_block(weights, f"model.layers.{places.index(layer)}.", new, pad)
        else:
            grown |= identity_block(weights, "model.layers.0.", new, pad)
    config |= {
        "num_hidden_layers": num_layers,
        "head_dim": config.get("head_dim") or width // config["num_attention_heads"],
        **{
            key: config[key] * WIDTH_FACTOR
            for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
        },
        "rms_norm_eps": config["rms_norm_eps"] / WIDTH_FACTOR,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    config.pop("layer_types", None)
    _write(out, config, grown, dtype)
    return places


def grow_head(source: Path, out: Path, places: list[int], dtype: torch.dtype, pad: Padding) -> None:
    """Write the EAGLE-3 head grown in proportion, its taps moved to where the real layers now stand."""
    config = json.loads((source / "config.json").read_text())
    weights = load_file(source / "model.safetensors")
    grown: dict[str, Tensor] = {}
    real = {name: tensor.float() for name, tensor in weights.items() if tensor.is_floating_point()}
    taps = weights["fc.weight"].shape[1] // config["hidden_size"]
    for name, weight in weights.items():
        if not weight.is_floating_point():
            grown[name] = weight
        elif name == "fc.weight":
            padded = torch.zeros(weight.shape[0] * WIDTH_FACTOR, weight.shape[1] * WIDTH_FACTOR)
            padded[: weight.shape[0]] = pad.reads(real[name], weight.shape[0], taps)
            grown[name] = padded
        elif name == "norm.weight":
            grown[name] = pad.norm(real[name])
        elif name == "lm_head.weight":
            grown[name] = pad.reads(real[name], weight.shape[0])
    grown |= grow_block(real, "midlayer.", "midlayer.", pad, inputs=2)
    config |= {
        "head_dim": config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        **{
            key: config[key] * WIDTH_FACTOR
            for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
        },
        "rms_norm_eps": config["rms_norm_eps"] / WIDTH_FACTOR,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    _move_taps(config, places)
    _write(out, config, grown, dtype)


def _move_taps(config: dict[str, object], places: list[int]) -> None:
    """Layer ids mean "input to layer i", which is the output of layer i - 1, so i - 1 is what moved."""
    for holder in (config, config.get("eagle_config")):
        if isinstance(holder, dict) and isinstance(holder.get("eagle_aux_hidden_state_layer_ids"), list):
            ids = holder["eagle_aux_hidden_state_layer_ids"]
            holder["eagle_aux_hidden_state_layer_ids"] = [places[i - 1] + 1 if i > 0 else 0 for i in ids]


def _write(out: Path, config: dict[str, object], weights: dict[str, Tensor], dtype: torch.dtype) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {n: (w.to(dtype) if w.is_floating_point() else w).contiguous() for n, w in weights.items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def grow(model: Path, out: Path, *, num_layers: int = 24, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> None:
    """Grow the target in ``model`` and, where there is one, its head in ``model/eagle3``."""
    pad = Padding(0.02, torch.Generator().manual_seed(seed))
    places = grow_target(model, out, num_layers, dtype, pad)
    for file in model.iterdir():
        if file.is_file() and file.name not in ("config.json", "model.safetensors"):
            shutil.copy(file, out / file.name)
    if (model / "eagle3").is_dir():
        grow_head(model / "eagle3", out / "eagle3", places, dtype, pad)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("models/receptionist"))
    parser.add_argument("--out", type=Path, default=Path("build/grown"))
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    arguments = parser.parse_args()
    grow(arguments.model, arguments.out, num_layers=arguments.layers, dtype=getattr(torch, arguments.dtype))
    parameters = sum(t.numel() for t in load_file(arguments.out / "model.safetensors").values())
    print(f"{arguments.out}: {parameters / 1e6:.0f}M parameters, {arguments.layers} layers")


if __name__ == "__main__":
    main()
