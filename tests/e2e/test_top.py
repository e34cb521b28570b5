"""``firstword top`` on the metrics of a real server: as a command, and as the application."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from firstword.top.app import TopApp
from firstword.top.figures import LATENCIES, figures
from firstword.top.scrape import scrape
from tests.e2e.observed import Observed
from tests.e2e.server import ROOT


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "140"}
    program = [sys.executable, "-m", "firstword.cli", "top", *arguments]
    return subprocess.run(program, cwd=cwd, env=environment, capture_output=True, text=True, timeout=100)


def text(app: TopApp) -> str:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(app.shown)
    return console.export_text()


def test_its_figures_are_those_of_the_server(observed: Observed) -> None:
    found = figures(scrape(f"127.0.0.1:{observed.metrics_port}"))
    turns = [span for span in observed.receiver.spans if span.name == "chat receptionist"]
    assert found.turns == len(turns)
    assert found.ends["interrupted"] == 1
    assert found.errors == {"OUT_OF_PAGES": 1}
    assert found.refused["TOO_MANY_CALLS"] >= 1
    assert found.ahead.part == sum(span.attributes["firstword.answer.ahead"] for span in turns) == 1
    assert all(found.latencies[name].count > 0 for name in LATENCIES)
    drafted = sum(span.attributes.get("firstword.draft.drafted", 0) for span in turns)
    assert sum(share.whole for share in found.drafters.values()) == drafted > 0
    assert sum(share.part for share in found.positions) == sum(share.part for share in found.drafters.values()) > 0
    assert set(found.drafters) <= {"suffix", "eagle3"}
    assert {name for name, share in found.prompt.items() if share.part} == {"cached", "ahead", "computed"}
    engine = found.engines["receptionist"]
    assert engine.serving and engine.restarts == 0 and engine.pages.whole == 64
    store = found.store
    assert store is not None and not store.behind and store.append.count > 0
    assert store.memory.part > 0 and store.failures == store.fenced == store.leases_lost == 0


def test_the_command_prints_them_once(observed: Observed, tmp_path: Path) -> None:
    done = command(f"127.0.0.1:{observed.metrics_port}", "--once", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for name in LATENCIES:
        assert any(re.match(rf"{name}\s+\d", line) for line in lines), name
    assert any("receptionist serving" in line for line in lines)
    assert any(re.match(r"store keeps up .* append p95 \d", line) for line in lines)
    assert any(line.startswith("failed OUT_OF_PAGES 1") for line in lines)


def test_the_command_says_where_there_is_nothing(tmp_path: Path) -> None:
    done = command("127.0.0.1:1", "--once", cwd=tmp_path)
    assert done.returncode == 1
    assert "no metrics at http://127.0.0.1:1/metrics" in done.stderr and "OTEL_METRICS_EXPORTER" in done.stderr


async def test_the_application_shows_the_start_then_the_last_minute(observed: Observed) -> None:
    app = TopApp(f"127.0.0.1:{observed.metrics_port}", every_s=3600)
    async with app.run_test(size=(140, 50)) as pilot:
        assert "since the instance started" in text(app)
        assert re.search(r"first token\s+\d", text(app))
        await app.read()
        assert re.search(r"the last \d+ s", text(app))
        assert re.search(r"first token\s+-", text(app)), "nothing was said between the two looks"
        await pilot.press("w")
        assert re.search(r"first token\s+\d", text(app))


async def test_the_application_says_where_there_is_nothing_and_goes_on() -> None:
    app = TopApp("127.0.0.1:1", every_s=3600)
    async with app.run_test():
        assert "no metrics" in text(app)
