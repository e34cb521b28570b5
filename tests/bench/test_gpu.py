"""The measuring script runs its stages one by one, whatever becomes of each. ``--dry-run`` walks what they measure."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu.check import _kernels
from bench.gpu.grown import PLAIN, Decoding
from bench.gpu.large import large, quality
from bench.gpu.registry import STAGES
from bench.gpu.sizes import DRY, FULL, random_head, random_target, step_bytes
from bench.gpu.stages import Bench, NotRun, Record, Stage, Table, run_stage
from bench.gpu.steps import forced, led_by, verify
from bench.gpu.targets import TARGETS, context_of, tree_of, verdict
from bench.harness import Prompt, stop_tokens
from engine.kernels.plain import PlainOps
from engine.models.decoder import load_target
from engine.proposers.eagle3 import load_eagle3
from engine.proposers.none import NoProposer
from engine.quantize import ScaledMatrix
from tests.engine.embedded import MODEL
from tests.engine.equal import embedded_prompts

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def bench() -> Bench:
    return Bench(CPU, DRY, MODEL, "plain")


def test_a_stage_that_fails_harms_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def good(bench: Bench) -> list[Table]:
        assert 0 < bench.left <= 5
        bench.figures["found"] = 3.5
        return [Table("A table", ["a", "b"], [[1, 2.0]])]

    def bad(bench: Bench) -> list[Table]:
        raise RuntimeError("broken kernel")

    def absent(bench: Bench) -> list[Table]:
        raise NotRun("grpc is not there")

    shared = bench()
    record = Record(tmp_path / "out" / "gpu.json", {"stages": {}}, shared.figures)
    states = [run_stage(shared, Stage(f.__name__, 5, f), record) for f in (bad, good, absent)]
    assert states == ["failed", "done", "not run"]
    whole = json.loads((tmp_path / "out" / "gpu.json").read_text())
    written = whole["stages"]
    assert "broken kernel" in written["bad"]["traceback"]
    assert written["good"]["tables"] == [{"title": "A table", "header": ["a", "b"], "rows": [[1, 2.0]]}]
    assert whole["figures"] == {"found": 3.5}
    assert written["absent"]["reason"] == "grpc is not there"
    printed = capsys.readouterr().out
    assert "RuntimeError: broken kernel" in printed
    assert "| 1 | 2 |" in printed


def test_one_thing_is_held_at_a_time() -> None:
    shared, made = bench(), []

    def make(what: str) -> str:
        made.append(what)
        return what

    assert [shared.held(key, lambda key=key: make(key)) for key in ("8B", "8B", "70B", "8B")] == [
        "8B",
        "8B",
        "70B",
        "8B",
    ]
    assert made == ["8B", "70B", "8B"]


def test_what_a_step_reads_is_counted() -> None:
    """All weights but the table of embeddings; in eight bits a quarter of float32, and the scales."""
    config = DRY.small
    full = random_target(config, DRY, CPU, pool_tokens=64, kernels="plain")
    head = random_head(full, pool_tokens=64)
    assert head.taps == (2, config.num_layers // 2, config.num_layers - 3)
    rows = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    matrices = config.hidden_size * (rows + config.num_heads * config.head_dim + 3 * config.intermediate_size)
    around = config.vocab_size * config.hidden_size
    assert step_bytes(full) == 4 * (config.num_layers * (matrices + 2 * config.hidden_size) + around)
    small = random_target(config, DRY, CPU, pool_tokens=64, kernels="plain", precision="fp8")
    assert isinstance(small.layers[0].down, ScaledMatrix)
    assert step_bytes(small) < step_bytes(full) * 0.4


def test_the_command_walks_stages_and_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bench.gpu", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)

    out = tmp_path / "gpu.json"
    done = run("--dry-run", "--stages", "device,forced", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "every figure is the CPU's" in done.stdout
    found = json.loads(out.read_text())
    assert found["dry_run"] is True
    assert {name: stage["state"] for name, stage in found["stages"].items()} == {"device": "done", "forced": "done"}
    assert [target["measured"] for target in found["targets"]] == ["not measured"] * len(TARGETS)
    found["figures"]["plain_ms 70B fp8 48"] = 20.0
    out.write_text(json.dumps(found))
    done = run("--dry-run", "--stages", "forced", "--after", str(out), "--out", str(tmp_path / "second.json"))
    assert "at least 54 tok/s | 50 tok/s | NOT met |" in done.stdout
    refused = run("--dry-run", "--stages", "device,warp")
    assert refused.returncode == 2
    assert "no such stage: warp" in refused.stderr


def test_targets_are_met_or_not_or_not_measured() -> None:
    figures = {
        "kernels_correct": True,
        "graph_text_equals_eager": False,
        "graph_steps": 1.0,
        "plain_share 8B bf16 4096": 86.0,
        "plain_ms 8B bf16 4096": 4.0,
        "verify_ms 8B bf16 4096 32": 4.5,
        "cycle_ms 8B bf16 4096 32": 8.4,
        "cycle_ms 8B bf16 4096 60": 7.0,
        "cycle_ms 8B bf16 1024 8": 1.0,
        "cycle_ms 8B bf16 4096 8": 5.0,
        "cycle_ms 8B bf16 4096 24": 6.0,
        "first_p95_ms 4096": 10.0,
        "first_p95_ms 16384": 12.5,
        "grown 8B bf16 tokens_s plain, graphs": 100.0,
        "grown 8B bf16 tokens_s eagle3, graphs, 8 nodes": 180.0,
        "grown 8B bf16 tokens_s eagle3, graphs, 60 nodes": float("nan"),
    }
    said = {row[0]: row[3:] for row in verdict(figures, FULL, "a card").rows}
    assert list(said.values()) == [
        ["yes", "met"],
        ["no", "NOT met"],
        ["1 x", "met"],
        ["not measured", ""],
        ["86 %", "met"],
        ["1.12 x", "NOT met"],
        ["not measured", ""],
        ["600 tok/s", "met"],
        ["10 ms", "met"],
        ["1.25 x", "met"],
        ["1.8 x", "NOT met"],
        *[["not measured", ""]] * 3,
    ]


def test_nothing_is_projected_that_a_tree_cannot_bring() -> None:
    """Eight nodes stand in four levels: with the target's own token that is five at most."""
    shared = bench()
    shared.figures |= {"cycle_ms 8B bf16 48 8": 5.0, "cycle_ms 8B bf16 48 24": 6.0}
    (table,) = forced(shared)
    lengths = {nodes: {row[3] for row in table.rows if row[0] == nodes} for nodes in ("8", "24")}
    assert lengths == {"8": {4.2, 5.0, 4.24}, "24": {4.2, 5.0, 6.13, 6.23, 5.34, 4.24}}


def test_what_came_before_a_failure_is_kept(tmp_path: Path) -> None:
    def broken(bench: Bench) -> Iterator[Table]:
        yield Table("First", ["a"], [[1]])
        raise RuntimeError("later")

    def short(bench: Bench) -> Iterator[Table]:
        yield Table("First", ["a"], [[1]])
        raise NotRun("no prompts")

    shared = bench()
    record = Record(tmp_path / "gpu.json", {"stages": {}}, shared.figures)
    states = [run_stage(shared, Stage(f.__name__, 5, f), record) for f in (broken, short)]
    assert states == ["failed", "done in part"]
    written = json.loads((tmp_path / "gpu.json").read_text())["stages"]
    assert [[table["title"] for table in written[name]["tables"]] for name in ("broken", "short")] == [["First"]] * 2


def test_rows_that_came_before_a_failure_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(bench: Bench) -> Iterator[Table]:
        yield (table := Table("Filled later", ["a"]))
        table.rows.append([17])
        raise RuntimeError("at the second row")

    shared = bench()
    record = Record(tmp_path / "gpu.json", {"stages": {}}, shared.figures)
    assert run_stage(shared, Stage("broken", 5, broken), record) == "failed"
    written = json.loads((tmp_path / "gpu.json").read_text())["stages"]["broken"]
    assert written["tables"] == [{"title": "Filled later", "header": ["a"], "rows": [[17]]}]
    assert "| 17 |" in capsys.readouterr().out


HANGS = """
import sys, time
from pathlib import Path
import torch
from bench.gpu import stages
from bench.gpu.sizes import DRY

def hangs(bench):
    yield (table := stages.Table("Filled later", ["a"]))
    table.rows.append([17])
    bench.figures["found"] = 3.5
    time.sleep(600)

stages.OVERTIME_S = 0.5
bench = stages.Bench(torch.device("cpu"), DRY, Path("."), "plain", ends=time.monotonic())
record = stages.Record(Path(sys.argv[1]), {"stages": {}}, bench.figures)
hanging = stages.Stage("hangs", 5, hangs)
stages.run_stage(bench, hanging, record, lambda name: print("goes on without", name, flush=True))
"""


def test_a_stage_that_hangs_loses_nothing(tmp_path: Path) -> None:
    """What it has measured is printed and written, and the stages behind it get their turn in another process."""
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-c", HANGS, str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1, done.stderr
    assert "| 17 |" in done.stdout and "goes on without hangs" in done.stdout
    assert "in hangs" in done.stderr, "where it stood"
    found = json.loads(out.read_text())
    assert found["stages"]["hangs"]["state"] == "did not end"
    assert found["stages"]["hangs"]["tables"][0]["rows"] == [[17]]
    assert found["figures"] == {"found": 3.5}


def test_a_way_that_fails_harms_no_other_and_replies_end_where_they_end() -> None:
    """On the embedded model itself, which ends its replies well before the room that they have."""
    target = load_target(MODEL, pool_tokens=2048, max_context_tokens=1024)
    shared = bench()
    shared.deadline = math.inf
    shared.sizes = replace(DRY, reply_tokens=100)
    ways = Decoding(shared, "8B bf16", target, [Prompt(embedded_prompts(1)[0], tool=False)])
    ways.graphs(PLAIN, NoProposer, 1)
    ways.graphs("broken", lambda: load_eagle3(Path("nowhere"), target, pool_tokens=64), 8)
    ways.eagle3(load_eagle3(MODEL / "eagle3", target, pool_tokens=2048), [8])
    rows = {row[0]: row[1:] for row in ways.table.rows}
    (said,) = ways.ways[0].said
    assert said[-1] in stop_tokens(MODEL) and len(said) < 100
    assert rows["broken"][3].startswith("ModelError")
    assert rows["eagle3, graphs, 8 nodes"][-1] == "1/1"
    assert rows["eagle3, graphs, 8 nodes"][1] > 1.2 and rows[PLAIN][1] == 1.0
    assert set(shared.figures) == {f"grown 8B bf16 tokens_s {name}" for name in (PLAIN, "eagle3, graphs, 8 nodes")}


def test_wrong_kernels_and_products_are_remembered() -> None:
    class Wrong(PlainOps):
        name = "triton"

        def gate(self, gate_up: torch.Tensor) -> torch.Tensor:
            return super().gate(gate_up) + 1

    shared = bench()
    shared.deadline = math.inf
    rows: list[list[Any]] = []
    _kernels(shared, Wrong(), rows)
    assert {row[0] for row in rows if not row[-1]} == {"SwiGLU"}
    assert shared.figures == {"kernels_correct": False, "products_correct": True}
    shared = bench()
    shared.deadline = math.inf
    _kernels(shared, PlainOps(), rows)
    assert "kernels_correct" not in shared.figures, "plain operations say nothing of the kernels"
    shared.figures["products_correct"] = False
    for stage in (large, quality):
        with pytest.raises(NotRun, match="products with weights in eight bits are wrong"):
            next(iter(stage(shared)))


def test_a_run_ends_in_its_time(tmp_path: Path) -> None:
    """A stage whose box does not fit is left out, and a shorter one behind it is not."""
    command = [sys.executable, "-m", "bench.gpu", "--dry-run", "--minutes", "0.5", "--stages", "forced,check"]
    command += ["--out", str(tmp_path / "gpu.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert "check: no time left\nforced: done" in done.stdout or "forced: done\ncheck: no time left" in done.stdout


@pytest.mark.timeout(900)
def test_the_dry_run_walks_every_stage(tmp_path: Path) -> None:
    """What a card will be asked, on tiny shapes: whatever fails here would have cost a part of its lease."""
    pytest.importorskip("triton", reason="Triton has no wheels for this platform")
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "bench.gpu", "--dry-run", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=880, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(out.read_text())
    assert {name: stage["state"] for name, stage in found["stages"].items()} == {stage.name: "done" for stage in STAGES}
    unmeasured = {target["what"] for target in found["targets"] if target["measured"] == "not measured"}
    assert unmeasured == {"the same at 16k over 4k"}, "a dry run has one history"
    assert found["figures"]["kernels_correct"] and found["figures"]["products_correct"]
    assert found["figures"]["graph_text_equals_eager"] and found["figures"]["graph_steps"] == 1.0
    for name in ("grown", "grown_large"):
        ((_, *ways),) = [part["rows"] for part in found["stages"][name]["tables"]]
        assert len(ways) >= 2 and all(way[-1] == "1/1" for way in ways), "a drafter failed, or changed what is said"


def test_every_target_stands_in_the_page_with_its_stage() -> None:
    page, stages = (ROOT / "docs" / "gpu.md").read_text(), {stage.name for stage in STAGES}
    for target in TARGETS:
        assert target.stage in stages
        assert f"| {target.name} | `{target.stage}` | {target.aim} | " in page, target.name


def test_what_targets_speak_of_comes_first_and_fits_one_call() -> None:
    """A lease of ten minutes, of which nine are the run's: whatever else there is comes behind it."""
    names, needed = [stage.name for stage in STAGES], {target.stage for target in TARGETS}
    last = max(names.index(name) for name in needed)
    assert set(names[: last + 1]) == needed | {"device"}
    assert sum(stage.seconds for stage in STAGES[: last + 1]) < 9 * 60 - 30


def test_what_targets_speak_of_is_measured_first_within_a_stage() -> None:
    """Where its time box ends early, that is what is there."""
    assert led_by(context_of(FULL), FULL.contexts) == [4096, 1024, 16_384]
    assert led_by(tree_of(FULL), FULL.budgets) == [32, 8, 16, 24, 60]
    shared = bench()
    shared.deadline = math.inf
    target = random_target(DRY.small, DRY, CPU, pool_tokens=1024, kernels="plain")
    shared.sizes = replace(DRY, contexts=(16, 48), nodes=(1, 8))
    (table,) = verify(shared, target)
    assert [row[:2] for row in table.rows] == [[1, 48], [8, 48], [1, 16], [8, 16]]
