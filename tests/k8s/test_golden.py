"""What is rendered does not change by accident: each set of values has a golden file, and the schema one source."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.k8s.charts import SETS, gen_chart


def test_six_sets_are_rendered() -> None:
    assert SETS == ("default", "everything", "gateway", "keda", "laptop", "production")


def test_nothing_is_stale() -> None:
    """``make chart`` makes the golden files and the schema's part about firstword.toml anew; look at the diff."""
    assert gen_chart.stale_files() == [], "where the change is meant: make chart"


@pytest.mark.parametrize("name", SETS)
def test_a_changed_line_is_noticed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = gen_chart.rendered_text(gen_chart.values_of(name))
    changed = text.replace("failureThreshold: 6", "failureThreshold: 7")
    assert changed != text
    golden = gen_chart.ROOT / "tests" / "k8s" / "golden"
    for path in golden.glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / f"{name}.yaml").write_text(changed)
    (tmp_path / "left_over.yaml").write_text("")
    monkeypatch.setattr(gen_chart, "GOLDEN", tmp_path)
    monkeypatch.setattr(gen_chart, "ROOT", tmp_path.anchor)
    complaints = gen_chart.stale_files()
    assert len(complaints) == 2
    assert f"{name}.yaml is not what" in complaints[0]
    assert "left_over.yaml belongs to no set" in complaints[1]
