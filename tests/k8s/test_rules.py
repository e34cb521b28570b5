"""The chart's own alerts, run by Prometheus' own tool over figures of pods."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import queries
from tests.k8s.charts import manifests, the, values

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not here: make test-alerts")

RUNBOOK = queries.ROOT / "deploy/runbook.md"
POD = '{{namespace="voice",service="firstword-headless",pod="{}"}}'
OTHER = '{namespace="voice",service="another-headless",pod="c"}'


def promtool(directory: Path, calls: dict[str, str], alerts: dict[str, int]) -> None:
    """Fails unless exactly so many alerts of each name fire after ten minutes. calls: by labels, a figure a minute."""
    groups = the("PrometheusRule", manifests(values("production")))["spec"]["groups"]
    (directory / "rules.yaml").write_text(yaml.safe_dump({"groups": groups[:1]}))
    assert alerts.keys() <= {rule["alert"] for rule in groups[0]["rules"]}
    expected: list[dict[str, Any]] = []
    for rule in groups[0]["rules"]:
        fires = [{"exp_labels": rule["labels"], "exp_annotations": rule["annotations"]}] * alerts.get(rule["alert"], 0)
        expected.append({"eval_time": "10m", "alertname": rule["alert"], "exp_alerts": fires})
    series = [{"series": f"firstword_calls_active{labels}", "values": figures} for labels, figures in calls.items()]
    evaluate(directory, {"input_series": series, "alert_rule_test": expected})


def evaluate(directory: Path, test: dict[str, Any]) -> None:
    """Run a test in promtool's terms on the rules that lie in the directory."""
    whole = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [{"interval": "1m", **test}]}
    (directory / "test.yaml").write_text(yaml.safe_dump(whole))
    done = subprocess.run(
        ["promtool", "test", "rules", "test.yaml"], cwd=directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_pods_that_are_nearly_full_are_told(tmp_path: Path) -> None:
    full = {POD.format("a"): "64x15", POD.format("b"): "54x15", OTHER: "0x15"}
    promtool(tmp_path, full, {"FirstwordNearCallLimit": 1})


@needs_promtool
def test_pods_with_room_are_not(tmp_path: Path) -> None:
    promtool(tmp_path, {POD.format("a"): "64x15", POD.format("b"): "51x15", OTHER: "64x15"}, {})
    promtool(tmp_path, {POD.format("a"): "0x15"}, {})


def rules_of(release: str) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = the("PrometheusRule", manifests(values("production"), release))["spec"]["groups"]
    return groups


def selector(release: str) -> dict[str, str]:
    """The labels that a ServiceMonitor gives a release's series."""
    return {"namespace": "voice", "service": f"{release}-firstword-headless"}


@pytest.mark.parametrize("release", ["sales", "support"])
def test_every_rule_is_about_its_own_release(release: str) -> None:
    headless = {one["metadata"]["name"] for one in manifests(values("production"), release) if one["kind"] == "Service"}
    assert selector(release)["service"] in headless
    rules = [rule for group in rules_of(release) for rule in group["rules"]]
    assert len(rules) > 50
    for rule in rules:
        assert "@" not in rule["expr"]
        assert all(set(selector(release).items()) <= series.values for series in queries.named(rule["expr"])), rule
    for rule in rules:
        assert selector(release).items() <= rule["labels"].items(), rule


def test_alerts_are_of_two_severities_and_have_a_section_in_the_runbook() -> None:
    headings = [line[3:].lower() for line in RUNBOOK.read_text().splitlines() if line.startswith("## ")]
    alerts = [rule for group in rules_of("firstword") for rule in group["rules"] if "alert" in rule]
    assert {rule["labels"]["severity"] for rule in alerts} == {"page", "ticket"}
    for rule in alerts:
        path, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert path == "deploy/runbook.md" and anchor == rule["alert"].lower()
        assert anchor in headings


@needs_promtool
def test_two_releases_under_one_prometheus_are_told_apart(tmp_path: Path) -> None:
    """One has lost its engine and half of its turns, another one shows nothing, and a third is well."""
    releases = {"sales": 0, "support": None, "staging": 1}
    groups = [{**group, "name": f"{release} {group['name']}"} for release in releases for group in rules_of(release)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    series: dict[str, str] = {}
    for release, well in releases.items():
        if well is not None:
            labels = ",".join(f'{label}="{value}"' for label, value in selector(release).items())
            series |= {
                f"firstword_calls_active{{{labels}}}": "1x20",
                f'firstword_turns_open{{{labels},gen_ai_response_model="m"}}': "1x20",
                f'firstword_engine_serving{{{labels},gen_ai_response_model="m"}}': f"{well}x20",
                f'firstword_turns_total{{{labels},gen_ai_request_model="m"}}': "0+1x20",
                f'firstword_turns_total{{{labels},gen_ai_request_model="m",error_type="INTERNAL"}}': f"0+{1 - well}x20",
            }
    told = 'count by (alertname, service) (ALERTS{alertstate="firing", alertname=~"Firstword(NoMetrics|EngineDown)"})'
    bad = 'firstword_slo:error_ratio:rate5m{objective="answered"}'
    named = ", ".join((f'{label}="{value}"' for label, value in selector("sales").items()))
    model = 'gen_ai_request_model="m", objective="answered"'
    wanted = {
        told: {
            f'{{alertname="FirstwordEngineDown", service="{selector("sales")["service"]}"}}': 1,
            f'{{alertname="FirstwordNoMetrics", service="{selector("support")["service"]}"}}': 1,
        },
        bad: {
            f"{bad.partition('{')[0]}{{{model}, {named}}}": 0.5,
            f"{bad.partition('{')[0]}{{{model}, {named.replace('sales', 'staging')}}}": 0,
        },
    }
    evaluate(
        tmp_path,
        {
            "input_series": [{"series": name, "values": figures} for name, figures in series.items()],
            "promql_expr_test": [
                {
                    "expr": expr,
                    "eval_time": "15m",
                    "exp_samples": [{"labels": labels, "value": value} for labels, value in samples.items()],
                }
                for expr, samples in wanted.items()
            ],
        },
    )
