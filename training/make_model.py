"""Makes the embedded default model from nothing: data, target, its EAGLE-3 head, evaluation. Owns the order of the
stages and where files go.

`python -m training.make_model`. Every stage is skipped where its result is there and resumes where it was
interrupted; the target and then the head use one core each, so a build of two cores leaves one free. The minutes
of each stage are printed at the end.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from training.data import HEAD_SEED
from training.dialogues import dialogue

WORK = Path("build/model")
MODEL = Path("models/receptionist")
TARGET_MINUTES, HEAD_MINUTES = 60.0, 36.0
EXAMPLE_CALLS = 3


def run(module: str, *arguments: str | Path) -> None:
    """`python -m module arguments` in a process of its own. Raises CalledProcessError when it fails."""
    subprocess.run([sys.executable, "-u", "-m", module, *map(str, arguments)], check=True)


def make_data(work: Path) -> None:
    run("training.data", "--out", work / "data")


def make_target(work: Path, model: Path, minutes: float) -> None:
    run("training.target", "--data", work / "data", "--out", work / "target", "--minutes", str(minutes))
    shutil.copytree(work / "target" / "model", model, dirs_exist_ok=True)
    write_examples(model)


def write_examples(model: Path) -> None:
    """A few whole calls beside the model: system prompts and tools in the form it was trained on, for demos and
    benchmarks.
    """
    examples = [dialogue(seed, intents=2) for seed in range(HEAD_SEED - EXAMPLE_CALLS, HEAD_SEED)]
    lines = [json.dumps({"messages": item.messages, "tools": item.tools}) for item in examples]
    (model / "examples.jsonl").write_text("\n".join(lines) + "\n")


def make_head(work: Path, model: Path, minutes: float) -> None:
    data = work / "data"
    conversations, held_out = data / "conversations.jsonl", data / "valid.npz"
    inputs = ("--target", model, "--conversations", conversations, "--held-out", held_out)
    outputs = ("--work", work / "head", "--out", model / "eagle3")
    run("training.eagle3", *inputs, *outputs, "--minutes", str(minutes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK, help="checkpoints and data; may be deleted afterwards")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--target-minutes", type=float, default=TARGET_MINUTES)
    parser.add_argument("--head-minutes", type=float, default=HEAD_MINUTES)
    arguments = parser.parse_args()
    work, model = arguments.work, arguments.model
    stages = {
        "data": lambda: make_data(work),
        "target": lambda: make_target(work, model, arguments.target_minutes),
        "head": lambda: make_head(work, model, arguments.head_minutes),
        "evaluation": lambda: run("evals.tool_calls", "--model", model),
    }
    done = work / "done"
    done.mkdir(parents=True, exist_ok=True)
    for name, stage in stages.items():
        if (done / name).exists():
            print(f"== {name}: there already ({(done / name).read_text().strip()})", flush=True)
            continue
        print(f"== {name}", flush=True)
        started = time.monotonic()
        stage()
        (done / name).write_text(f"{(time.monotonic() - started) / 60:.1f} min\n")
    print("\n".join(f"{name}: {(done / name).read_text().strip()}" for name in stages))


if __name__ == "__main__":
    main()
