"""The chart's own alerts, run by Prometheus' own tool over figures of pods."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.charts import manifests, the, values

pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool comes with Prometheus, not with pip")

POD = '{{namespace="voice",service="firstword-headless",pod="{}"}}'
OTHER = '{namespace="voice",service="another-headless",pod="c"}'


def promtool(directory: Path, calls: dict[str, str], alerts: dict[str, int]) -> None:
    """Fails unless exactly so many alerts of each name fire after ten minutes. calls: by labels, a figure a minute."""
    groups = the("PrometheusRule", manifests(values("production")))["spec"]["groups"]
    (directory / "rules.yaml").write_text(yaml.safe_dump({"groups": groups[:1]}))
    expected: list[dict[str, Any]] = []
    for rule in groups[0]["rules"]:
        labels = {
            **rule["labels"],
            **({"namespace": "voice", "service": "firstword-headless"} if "absent" in rule["expr"] else {}),
        }
        fires = [{"exp_labels": labels, "exp_annotations": rule["annotations"]}] * alerts.get(rule["alert"], 0)
        expected.append({"eval_time": "10m", "alertname": rule["alert"], "exp_alerts": fires})
    series = [{"series": f"firstword_calls_active{labels}", "values": figures} for labels, figures in calls.items()]
    test = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "alert_rule_test": expected}],
    }
    (directory / "test.yaml").write_text(yaml.safe_dump(test))
    done = subprocess.run(
        ["promtool", "test", "rules", "test.yaml"], cwd=directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_pods_that_are_nearly_full_are_told(tmp_path: Path) -> None:
    full = {POD.format("a"): "64x15", POD.format("b"): "54x15", OTHER: "0x15"}
    promtool(tmp_path, full, {"FirstwordNearCallLimit": 1})


def test_pods_with_room_are_not(tmp_path: Path) -> None:
    promtool(tmp_path, {POD.format("a"): "64x15", POD.format("b"): "51x15", OTHER: "64x15"}, {})
    promtool(tmp_path, {POD.format("a"): "0x15"}, {})


def test_a_release_that_shows_nothing_is_told_though_others_do(tmp_path: Path) -> None:
    promtool(tmp_path, {OTHER: "1x15"}, {"FirstwordReleaseGone": 1})
