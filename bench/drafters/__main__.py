"""Every way of drafting on the same calls, in one table and one picture.

    python -m bench.drafters [--model DIR] [--joint DIR] [--calls N] [--resume]

Acceptance is counted under fixed trees; speed is measured as served, on the embedded model and on its grown copy
(``bench.grow``: real acceptance, a large model's step cost). ``--joint`` names a target that was trained with its MTP
module from the start (``training.mtp_target``); its acceptance stands beside the others'. The page is written after
each part; ``--resume`` takes the parts that an earlier run has finished as they are.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch

from bench import harness
from bench.drafters import counts, page, times
from bench.drafters.methods import Method, methods
from bench.drafters.parts import PartFiles
from bench.drafters.times import Times
from bench.grow import grow
from training.precision import matrix_dtype


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/receptionist"))
    parser.add_argument("--joint", type=Path, help="a target with its module in `mtp`")
    parser.add_argument("--grown", type=Path, default=Path("build/grown"))
    parser.add_argument("--calls", type=int, default=4, help="of each kind; each has several replies")
    parser.add_argument("--embedded-replies", type=int, default=40)
    parser.add_argument("--grown-replies", type=int, default=16)
    parser.add_argument("--parts", type=Path, default=Path("build/drafters"), help="where finished parts are kept")
    parser.add_argument("--resume", action="store_true", help="take finished parts from there")
    parser.add_argument("--processes", type=int, default=2, help="for the counts; times are taken alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    compared = methods(arguments.model)
    parts = PartFiles(arguments.parts, resume=arguments.resume)
    counted = parts.counted("counts", lambda: counts.count_all(compared, arguments.calls, arguments.processes))
    joint = []
    if arguments.joint:
        module = arguments.joint / "mtp"
        joint = [Method("MTP, trained with its target", f"mtp:{module}", arguments.joint, module)]
        counted += parts.counted("joint", lambda: counts.count_all(joint, arguments.calls, 1))
    measured: dict[str, Times] = {}
    write([*compared, *joint], counted, measured, parts.machines)
    measured["embedded"] = parts.times(
        "embedded", lambda: times.measure(arguments.model, compared, torch.float32, arguments.embedded_replies)
    )
    write([*compared, *joint], counted, measured, parts.machines)

    def measure_grown() -> Times:
        grow(arguments.model, arguments.grown, dtype=matrix_dtype())
        return times.measure(arguments.grown, methods(arguments.grown), matrix_dtype(), arguments.grown_replies)

    measured["grown"] = parts.times("grown", measure_grown)
    write([*compared, *joint], counted, measured, parts.machines)


def write(
    compared: list[Method], counted: list[counts.Counted], measured: dict[str, Times], machines: dict[str, str]
) -> None:
    """The page, its picture and its figures, as far as there are any."""
    found = page.by_setting(counted)
    harness.RESULTS.mkdir(exist_ok=True)
    page.plot(compared, found, measured, harness.RESULTS / "drafters.svg")
    replies = {one.setting.split: one.replies for one in counted}
    parts = [
        "; ".join(f"{part}: {machine}" for part, machine in machines.items()),
        f"Replies counted: {', '.join(f'{count} {split}' for split, count in replies.items())}. Grown model in "
        f"{str(matrix_dtype()).removeprefix('torch.')}. pos 1 to 6: of the steps of a chain whose tokens before were "
        f"accepted, those in which this one was drafted and accepted too. Draft and verify ms: of {counts.TREE} nodes, "
        f"behind {times.SHORT} tokens of context and behind {times.LONG:,}. Late replies are those behind more than "
        f"{counts.LATE} tokens.",
        page.main_table(compared, found, measured),
        "![](drafters.svg)",
        "## Acceptance by position, greedy, chains",
        page.position_table(compared, found),
        "## Temperatures, tokens per forward",
        page.temperature_table(compared, found),
        "## Spoken text and tool calls, early and late replies: greedy, tokens per forward",
        page.kind_table(compared, found),
    ]
    both, alone = "self-speculation + EAGLE-3", ("EAGLE-3", "self-speculation")
    for size, one in measured.items():
        parts += [f"## Speed, {size}", page.speed_table(one)]
        if all(name in one.runs for name in (both, *alone)):
            parts.append("; ".join(f"{both} over {name} alone: {page.ratio(one, both, name)}" for name in alone))
    runs = {
        size: {mode: [[run.timed, run.seconds] for run in timed] for mode, timed in one.runs.items()}
        for size, one in measured.items()
    }
    data = {"machines": machines, "counted": [asdict(one) for one in counted], "tokens_and_seconds": runs}
    harness.save("drafters", "Every way of drafting", "\n\n".join(parts), data)


if __name__ == "__main__":
    main()
