"""What the benchmarks share: prompts from held-out calls, timed turns, statistics, and where results are written."""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from engine.engine import Engine, Work
from engine.sampling import Sampling
from engine.session import Session, Turn
from training.dialogues import Dialogue, Split, dialogue

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RESULTS = Path(__file__).parent / "results"
IN_DOMAIN = Split()
HELD_OUT = Split(names=True, paraphrases=True)
SEED = 50_000_000
"""First seed of the calls that benchmarks use: apart from those of training, validation and evaluation."""


REPLY_ROOM = 128
FINAL_TOKENS = 16
"""Tokens of a prompt that come with the committed turn; a caller's line in the calls here has about so many."""


@dataclass(frozen=True)
class Prompt:
    """Everything before one reply of a gold call, as ids, and whether the gold reply is a tool call."""

    ids: list[int]
    tool: bool


def load_tokenizer(model: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer  # most of what is measured on a GPU does without it

    return AutoTokenizer.from_pretrained(model)


def prompts(tokenizer: PreTrainedTokenizerBase, split: Split, calls: int, *, seed: int = SEED) -> list[Prompt]:
    """Every reply of ``calls`` calls of the split, in order, whose prompt leaves room for it in the context."""
    return prompts_of(tokenizer, (dialogue(seed + number, split) for number in range(calls)))


def prompts_of(tokenizer: PreTrainedTokenizerBase, calls: Iterable[Dialogue]) -> list[Prompt]:
    """The same of any calls."""
    longest = tokenizer.model_max_length - REPLY_ROOM
    found = []
    for call in calls:
        for at, message in enumerate(call.messages):
            if message["role"] != "assistant":
                continue
            ids = tokenizer.apply_chat_template(
                call.messages[:at], tools=call.tools, add_generation_prompt=True, return_dict=False
            )
            if FINAL_TOKENS < len(ids) <= longest:
                found.append(Prompt(list(ids), "tool_calls" in message))
    return found


def stop_tokens(model: Path) -> frozenset[int]:
    """The ids that end a reply, from the model's generation config."""
    eos = json.loads((model / "generation_config.json").read_text())["eos_token_id"]
    return frozenset(eos if isinstance(eos, list) else [eos])


def warm(engine: Engine, prompt: Sequence[int], *, seed: int = 0, name: str = "bench") -> Session:
    """A session that has read all of the prompt but its last token, its drafter too."""
    session = engine.open(name, prompt, seed=seed)
    while session.num_pending > 1:
        engine.step([Work(session, max_tokens=4096)])
    while engine.catch_up(session):
        pass
    return session


@dataclass(frozen=True)
class Run:
    """One reply: its tokens, the seconds from the first token to the last, and the turn's own statistics."""

    tokens: list[int]
    first_seconds: float
    decode_seconds: float
    turn: Turn


def run_turn(
    engine: Engine,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    stop: frozenset[int],
    max_tokens: int = 128,
    seed: int = 0,
) -> Run:
    """One reply of a warm call, timed from the moment at which the last tokens of its prompt were committed.

    What came before them was computed, and the drafter has caught up with it, as it does while a caller speaks.
    """
    session = warm(engine, prompt[:-FINAL_TOKENS], seed=seed)
    engine.append(session, prompt[-FINAL_TOKENS:])
    turn = engine.submit(session, sampling, max_tokens=max_tokens, stop_tokens=stop)
    work = [Work(session, max_tokens=4096)]
    started = time.perf_counter()
    engine.step(work)
    first = time.perf_counter()
    while turn.finish is None:
        engine.step(work)
    ended = time.perf_counter()
    tokens = turn.tokens
    engine.close(session)
    return Run(tokens, first - started, ended - first, turn)


def interval(values: Sequence[float], *, draws: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Median with a 95 % bootstrap interval."""
    rng = random.Random(seed)
    n = len(values)
    medians = sorted(statistics.median(rng.choices(values, k=n)) for _ in range(draws))
    return statistics.median(values), medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "revision": _revision(),
    }


def _revision() -> str:
    """Of the code that was measured; with a + where files were changed since, empty without git."""
    try:
        asked = ["git", "describe", "--always", "--dirty=+"]
        return subprocess.run(asked, cwd=RESULTS.parent, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def where(found: dict[str, Any]) -> str:
    """The machine in a line."""
    return (
        f"{found['cpu']}, {found['cores']} cores, {found['threads']} thread(s), torch {found['torch']}, "
        f"load at the end {found['load']:.1f}" + (f", revision {found['revision']}" if found["revision"] else "")
    )


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; floats to three significant places."""
    text = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    lines = [header, ["---"] * len(header), *text]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def save(name: str, title: str, body: str, data: dict[str, Any], *, show: bool = True) -> None:
    """Print the table, unless it is not to be shown, and write it beside its raw figures under ``bench/results/``."""
    RESULTS.mkdir(exist_ok=True)
    data = {"machine": machine(), **data}
    text = f"# {title}\n\n{where(data['machine'])}\n\n{body}\n"
    (RESULTS / f"{name}.md").write_text(text)
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    if show:
        print(text)
