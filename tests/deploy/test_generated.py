"""What is checked in is what the objectives make, and every expression in it is PromQL."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from deploy.generate import naming
from deploy.generate.__main__ import ROOT, files, stale
from deploy.generate.objectives import Objectives, load
from service.telemetry import names
from tests.deploy import queries


def test_nothing_is_stale() -> None:
    assert stale(load()) == [], "make observability"


def test_the_chart_has_the_same_rules_about_one_release() -> None:
    """Another one may be scraped by the same Prometheus."""
    scope = {"namespace": "@namespace@", "service": "@service@"}
    groups = yaml.safe_load((ROOT / "k8s/firstword/files/rules.yaml").read_text())["groups"]
    for rule in (rule for group in groups for rule in group["rules"]):
        named = queries.named(rule["expr"])
        assert named or rule["expr"].startswith("vector(")
        assert all(set(scope.items()) <= series.values for series in named), rule["expr"]
        for label in scope:
            assert rule["labels"].pop(label) == scope[label]
        rule["expr"] = rule["expr"].replace('namespace="@namespace@", service="@service@"', "").replace("{, ", "{")
        rule["expr"] = rule["expr"].replace("{}", "")
    assert groups == yaml.safe_load(queries.RULES.read_text())["groups"]


def test_another_objective_makes_other_files() -> None:
    """So that the test above can fail."""
    changed = _changed(lambda raw: raw["objective"][0] | {"target": 0.96})
    assert {path.name for path, text in files(changed).items() if path.read_text() != text} >= {
        "rules.yaml",
        "objectives.json",
    }


@pytest.mark.parametrize(
    "query",
    [*queries.of_rules(), *(query for query in queries.of_dashboards() if not query.traceql)],
    ids=lambda query: query.where,
)
def test_every_expression_is_promql(query: queries.Query) -> None:
    assert isinstance(promql_parser.parse(query.text), promql_parser.Expr)
    assert queries.named(query.text) or query.text.startswith("vector(")


@pytest.mark.parametrize("path", queries.DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_are_whole(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert dashboard["uid"] == f"firstword-{path.stem}"
    assert len({panel["title"] for panel in panels}) == len(panels)
    assert all(panel["description"] for panel in panels)
    for panel in panels:
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs) > 0
        assert {target["datasource"]["uid"] for target in panel["targets"]} <= {"${prometheus}", "${tempo}"}
    boxes = [panel["gridPos"] for panel in dashboard["panels"]]
    cells = [
        (x, y)
        for box in boxes
        for x in range(box["x"], box["x"] + box["w"])
        for y in range(box["y"], box["y"] + box["h"])
    ]
    assert len(set(cells)) == len(cells), "panels lie on each other"
    assert max(x for x, _ in cells) < 24


def test_every_alert_has_its_section_in_the_runbook() -> None:
    headings = {
        line.removeprefix("## ").strip().lower()
        for line in (ROOT / "deploy/runbook.md").read_text().splitlines()
        if line.startswith("## ")
    }
    alerts = [rule for group in yaml.safe_load(queries.RULES.read_text())["groups"] for rule in group["rules"]]
    for alert in (rule for rule in alerts if "alert" in rule):
        path, _, anchor = alert["annotations"]["runbook"].partition("#")
        assert path == "deploy/runbook.md" and anchor == alert["alert"].lower()
        assert anchor in headings


def test_every_metric_of_the_service_is_shown_somewhere() -> None:
    """All that names.py has, also what a server without TLS, credentials or a store never tells."""
    metrics, attributes, _ = inspect.getsource(names).partition("# What they are told apart by.")
    assert attributes
    ours = set(re.findall(r'^[A-Z_]+ = "((?:firstword|gen_ai\.server)\..+)"$', metrics, re.MULTILINE)) - {names.SCOPE}
    assert {names.CERTIFICATE_EXPIRES, names.SLOWED_CALLS, names.TURNED_AWAY} < ours
    shown = {
        re.sub(r"(_seconds|_bytes)?(_total|_bucket|_sum|_count)?$", "", named.metric)
        for query in queries.of_dashboards()
        if not query.traceql
        for named in queries.named(query.text)
    }
    assert not {metric for metric in ours if naming.label(metric) not in shown}


def test_every_metric_is_in_the_documentation() -> None:
    text = (ROOT / "docs/observability.md").read_text()
    metrics = [value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)]
    assert len(metrics) > 40
    ours = {value for value in metrics if value.startswith(("firstword.", "gen_ai.server."))} - {names.SCOPE}
    assert not {value for value in ours if f"`{value}`" not in text}


def test_burn_rules_use_only_what_is_recorded() -> None:
    names = {named.metric for query in queries.of_rules() for named in queries.named(query.text)}
    assert {name for name in names if ":" in name} <= queries.recorded()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"within_s": 0.16}, "no bucket"),
        ({"within_s": 1.0}, "whole number"),
        ({"histogram": "gen_ai.server.time_to_first_byte"}, "no bucket"),
        ({"target": 0.92}, "can never burn"),
        ({"target": 1.0}, "less than 1"),
        ({"events": "firstword.turns", "bad": "firstword.turns"}, "either a histogram"),
        ({"treshold": 1}, "Extra inputs"),
    ],
)
def test_what_cannot_be_meant_is_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        _changed(lambda raw: raw["objective"][0] | change)


def _changed(change: Any) -> Objectives:
    raw = load().model_dump(by_alias=True)
    return Objectives.model_validate(raw | {"objective": [change(raw), *raw["objective"][1:]]})
