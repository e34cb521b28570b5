"""Measures the engine on a GPU, stage by stage: see ``docs/gpu.md``.

    python -m bench.gpu [--stages check,plain,...] [--minutes 9] [--kernels auto|triton|plain] [--out FILE]
        [--after FILE] [--dry-run]

Needs torch and, for the kernels, triton; transformers for the peers; grpc and the service's packages for the stage over
gRPC. Whatever is not there is said. ``--dry-run`` walks every stage on a CPU with tiny shapes, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

import torch

from bench.gpu import BEGUN
from bench.gpu.interpret import interpret_without_gpu

interpret_without_gpu()

from bench.gpu import machine  # noqa: E402
from bench.gpu.registry import STAGES  # noqa: E402
from bench.gpu.sizes import DRY, FULL  # noqa: E402
from bench.gpu.stages import Bench, DeviceLost, Record, run_stage  # noqa: E402
from bench.gpu.targets import verdict  # noqa: E402


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.split("\n")[0])
    names = [stage.name for stage in STAGES]
    parser.add_argument("--stages", type=lambda text: text.split(","), default=names, metavar="A,B,...")
    parser.add_argument(
        "--minutes", type=float, help="of the run: a stage begins where its time box fits (9; a dry run has all day)"
    )
    parser.add_argument("--kernels", choices=("auto", "triton", "plain"), default="auto")
    parser.add_argument("--model", type=Path, default=Path("models/receptionist"))
    parser.add_argument("--out", type=Path, default=Path("build/gpu.json"))
    parser.add_argument(
        "--after", type=Path, help="of an earlier run on the same card: its figures count as this one's"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, on a CPU")
    parser.add_argument("--list", action="store_true", help="print the stages and their time boxes")
    arguments = parser.parse_args()
    if unknown := set(arguments.stages) - set(names):
        parser.error(f"no such stage: {', '.join(sorted(unknown))}; there are: {', '.join(names)}")
    if arguments.minutes is None:
        arguments.minutes = math.inf if arguments.dry_run else 9.0
    if arguments.device == "cpu" and not arguments.dry_run and not arguments.list:
        parser.error("there is no GPU here; --dry-run walks the stages on the CPU")
    return arguments


def main() -> None:
    arguments = parse()
    if arguments.list:
        for stage in STAGES:
            print(f"{stage.name:12} {stage.seconds:5.0f} s")
        return
    device = torch.device("cpu" if arguments.dry_run else arguments.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # streams, events, captures and launches are of the current one
    torch.set_num_threads(1 if arguments.dry_run else torch.get_num_threads())
    dry = arguments.dry_run
    bench = Bench(device, DRY if dry else FULL, arguments.model, arguments.kernels, patience=10.0 if dry else 1.0)
    if arguments.after is not None:
        bench.figures |= json.loads(arguments.after.read_text())["figures"]
        bench.copy_gb_s = bench.figures.get("copy_gb_s", 0.0)
        if bench.figures.get("kernels_correct") is False:
            bench.kernels = "plain"
    facts = machine.facts(device)
    card = str(facts.get("name", device))
    print("# GPU" + (" (dry run: every figure is the CPU's, on tiny shapes)" if arguments.dry_run else ""))
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    record = Record(arguments.out, {"facts": facts, "dry_run": arguments.dry_run, "stages": {}}, bench.figures)
    states = dict.fromkeys(arguments.stages, "no time left")
    bench.ends = BEGUN + 60 * arguments.minutes
    chosen = [stage for stage in STAGES if stage.name in arguments.stages]
    for number, stage in enumerate(chosen):
        if time.monotonic() + stage.seconds > bench.ends:
            continue
        left = [later.name for later in chosen[number + 1 :]]
        try:
            states[stage.name] = run_stage(
                bench, stage, record, lambda name, left=left: _begin_again(arguments, left, bench, f"{name} hangs")
            )
        except DeviceLost as lost:
            bench.kernels = "plain"
            _begin_again(arguments, left, bench, str(lost))
        record.add_targets(verdict(bench.figures, bench.sizes, card))
    targets = verdict(bench.figures, bench.sizes, card)
    record.add_targets(targets)
    print(f"\n## Targets\n\n{targets}")
    print("\n## Stages\n\n" + "\n".join(f"{name}: {state}" for name, state in states.items()))
    print(f"{time.monotonic() - BEGUN:.0f} s; written to {arguments.out}")


def _begin_again(arguments: argparse.Namespace, names: list[str], bench: Bench, why: str) -> None:
    """An error on the device, or a stage that hangs, poisons this process: a fresh one does what is left.

    It takes the kernels that this one would have gone on with; where they were still to be checked, the plain ones.
    """
    kernels = "plain" if bench.kernels == "auto" else bench.kernels
    minutes = arguments.minutes - (time.monotonic() - BEGUN) / 60
    print(f"\nlost to this process: {why}; {len(names)} stages go on with {kernels} kernels", flush=True)
    if not names or minutes <= 0:
        print(f"\n## Targets\n\n{verdict(bench.figures, bench.sizes, str(bench.device))}", flush=True)
        os._exit(1)
    rest = arguments.out.with_name(f"{arguments.out.stem}-rest{arguments.out.suffix}")
    command = [sys.executable, "-m", "bench.gpu", "--stages", ",".join(names), "--minutes", f"{minutes:.2f}"]
    command += ["--after", str(arguments.out), "--out", str(rest), "--model", str(arguments.model)]
    command += ["--device", arguments.device, *(["--dry-run"] if arguments.dry_run else [])]
    os.execv(sys.executable, [*command, "--kernels", kernels])


if __name__ == "__main__":
    main()
