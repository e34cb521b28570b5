"""The command line: see the package."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file

from bench.grow.directory import DRAFTERS, grow


def drafter(spec: str) -> tuple[str, Path]:
    """``medusa:DIR`` as (kind, directory)."""
    kind, _, path = spec.partition(":")
    if kind not in DRAFTERS or not path:
        raise argparse.ArgumentTypeError(f"{spec!r}; KIND:DIR was expected, where KIND is one of {', '.join(DRAFTERS)}")
    return kind, Path(path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.grow", description="Grow a target and its drafters.")
    parser.add_argument("--model", type=Path, default=Path("models/receptionist"))
    parser.add_argument("--out", type=Path, default=Path("build/grown"))
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--draft-layers", type=int, help="of the draft model; by default in the target's proportion")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--drafter", type=drafter, action="append", default=[], metavar="KIND:DIR")
    arguments = parser.parse_args()
    grow(
        arguments.model,
        arguments.out,
        num_layers=arguments.layers,
        draft_layers=arguments.draft_layers,
        dtype=getattr(torch, arguments.dtype),
        drafters=dict(arguments.drafter),
    )
    for file in sorted(arguments.out.glob("**/*.safetensors")):
        parameters = sum(tensor.numel() for tensor in load_file(file).values())
        print(f"{file.parent}: {parameters / 1e6:.0f}M parameters")


if __name__ == "__main__":
    main()
