"""Makes the embedded default model from nothing: data, target, its EAGLE-3 head, the other drafters, evaluation. Owns
the order of the stages and where files go.

`python -m training.make_model`. Every stage is skipped where its result is there and resumes where it was
interrupted, but starts over where an earlier stage has made something else since; the target and then the drafters
train on RANKS cores. The minutes of each stage are printed at the end.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from training.data import HEAD_SEED
from training.dialogues import dialogue

WORK = Path("build/model")
MODEL = Path("models/receptionist")
TARGET_MINUTES, HEAD_MINUTES = 55.0, 16.0
MEDUSA_MINUTES, MTP_MINUTES, DRAFT_MINUTES = 10.0, 10.0, 20.0
RANKS = 2
EXAMPLE_CALLS = 3
RESULTS = Path("evals/results")


@dataclass(frozen=True)
class Stage:
    """run makes the files in `made`. stale: folders that must go before it starts over."""

    name: str
    run: Callable[[], None]
    made: Path
    stale: tuple[Path, ...] = ()


def run(module: str, *arguments: str | Path) -> None:
    """`python -m module arguments` in a process of its own. Raises CalledProcessError when it fails."""
    subprocess.run([sys.executable, "-u", "-m", module, *map(str, arguments)], check=True)


def make_data(work: Path) -> None:
    run("training.data", "--out", work / "data")


def make_target(work: Path, model: Path, minutes: float) -> None:
    files = ("--data", work / "data", "--out", work / "target")
    run("training.target", *files, "--minutes", str(minutes), "--ranks", str(RANKS))
    shutil.copytree(work / "target" / "model", model, dirs_exist_ok=True)
    write_examples(model)


def write_examples(model: Path) -> None:
    """A few whole calls beside the model: system prompts and tools in the form it was trained on, for demos and
    benchmarks. The first is what `firstword demo` plays.
    """
    examples = [dialogue(HEAD_SEED - 1 - number, intents=2) for number in range(EXAMPLE_CALLS)]
    lines = [json.dumps({"messages": item.messages, "tools": item.tools}) for item in examples]
    (model / "examples.jsonl").write_text("\n".join(lines) + "\n")


def make_head(kind: str, work: Path, model: Path, minutes: float) -> None:
    """kind: of the head, which is also its trainer's name and its directory's."""
    inputs = ("--target", model, "--conversations", work / "data" / "conversations.jsonl")
    outputs = ("--work", work / kind, "--out", model / kind)
    run(f"training.{kind}", *inputs, *outputs, "--minutes", str(minutes), "--ranks", str(RANKS))


def make_draft_model(work: Path, model: Path, minutes: float) -> None:
    files = ("--data", work / "data", "--out", work / "draft")
    run("training.draft_model", *files, "--minutes", str(minutes), "--ranks", str(RANKS))
    shutil.copytree(work / "draft" / "model", model / "draft", dirs_exist_ok=True)


def drafters(work: Path, model: Path, head_minutes: float) -> list[Stage]:
    """EAGLE-3, which the model is served with, and those that it is compared with."""
    minutes = {"eagle3": head_minutes, "medusa": MEDUSA_MINUTES, "mtp": MTP_MINUTES}
    stages = [
        Stage(kind, partial(make_head, kind, work, model, spent), model / kind, (work / kind, model / kind))
        for kind, spent in minutes.items()
    ]
    draft = partial(make_draft_model, work, model, DRAFT_MINUTES)
    return [*stages, Stage("draft", draft, model / "draft", (work / "draft", model / "draft"))]


def digest(folder: Path) -> str:
    """Of the names and contents of the files in a folder."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.glob("*") if path.is_file()):
        found.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()[:16]


def run_stage(stage: Stage, source: str, done: Path) -> str:
    """Run the stage unless it is done; returns the digest of what it and all before it made.

    source: that of the stages before it. What was begun with another source is thrown away, whether it was finished or
    not: a head drafts for the target that it was trained with.
    """
    marker, begun = done / stage.name, done / f"{stage.name}.from"
    if begun.exists() and begun.read_text() != source:
        marker.unlink(missing_ok=True)
        for folder in stage.stale:
            shutil.rmtree(folder, ignore_errors=True)
    begun.write_text(source)
    if marker.exists():
        print(f"== {stage.name}: there already ({marker.read_text().strip()})", flush=True)
    else:
        print(f"== {stage.name}", flush=True)
        started = time.monotonic()
        stage.run()
        marker.write_text(f"{(time.monotonic() - started) / 60:.1f} min, made {digest(stage.made)}\n")
    return hashlib.sha256(f"{source} {marker.read_text().split()[-1]}".encode()).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK, help="checkpoints and data; may be deleted afterwards")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--target-minutes", type=float, default=TARGET_MINUTES)
    parser.add_argument("--head-minutes", type=float, default=HEAD_MINUTES, help="of EAGLE-3")
    arguments = parser.parse_args()
    work, model = arguments.work, arguments.model
    stages = (
        Stage("data", lambda: make_data(work), work / "data"),
        Stage("target", lambda: make_target(work, model, arguments.target_minutes), model, (work / "target",)),
        *drafters(work, model, arguments.head_minutes),
        Stage("evaluation", lambda: run("evals.tool_calls", "--model", model, "--out", RESULTS), RESULTS),
    )
    done = work / "done"
    done.mkdir(parents=True, exist_ok=True)
    source = ""
    for stage in stages:
        source = run_stage(stage, source, done)
    print("\n".join(f"{stage.name}: {(done / stage.name).read_text().strip()}" for stage in stages))


if __name__ == "__main__":
    main()
