"""Recording rules and alerts for Prometheus.

Names are ``level:metric:operation``: ``firstword_slo:error_ratio:rate1h`` is the share of bad events of the last hour.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import promql_parser

from deploy.generate.objectives import Alert, Burn, Objective, Objectives, Severity, seconds

Rule = dict[str, Any]

RUNBOOK = "deploy/runbook.md"


def error_ratio(window: str) -> str:
    return f"firstword_slo:error_ratio:rate{window}"


def events(window: str) -> str:
    return f"firstword_slo:events:rate{window}"


TARGET = "firstword_slo:target"
BUDGET_LEFT = "firstword_slo:budget_left:period"


def rules(objectives: Objectives) -> dict[str, Any]:
    """The content of a rule file."""
    period = f"{objectives.period_days}d"
    return {
        "groups": [
            *(
                {"name": f"firstword-slo-{one.name}", "rules": _recorded(one, objectives.windows)}
                for one in objectives.objective
            ),
            {
                "name": "firstword-slo-period",
                "interval": "5m",
                "rules": [_budget_left(one, period) for one in objectives.objective],
            },
            {
                "name": "firstword-slo-alerts",
                "rules": [rule for one in objectives.objective for rule in _burning(one, objectives.burn)],
            },
            {"name": "firstword-alerts", "rules": [_alert(alert) for alert in objectives.alert]},
        ]
    }


def _recorded(objective: Objective, windows: list[str]) -> list[Rule]:
    labels = {"objective": objective.name}
    found = [{"record": TARGET, "expr": f"vector({objective.target})", "labels": labels}]
    for window in windows:
        found.append({"record": error_ratio(window), "expr": objective.error_ratio(window), "labels": labels})
        found.append({"record": events(window), "expr": objective.total(window), "labels": labels})
    return found


def _budget_left(objective: Objective, period: str) -> Rule:
    """1: untouched; 0: spent; below: overspent."""
    expr = f"1 - ({objective.error_ratio(period)}) / {objective.budget}"
    return {"record": BUDGET_LEFT, "expr": expr, "labels": {"objective": objective.name}}


def _burning(objective: Objective, burns: tuple[Burn, ...]) -> list[Rule]:
    """One alert for each severity: whichever of its pairs of windows burns."""
    severities: dict[Severity, list[Burn]] = {}
    for burn in burns:
        severities.setdefault(burn.severity, []).append(burn)
    return [
        {
            "alert": objective.alert,
            "expr": "\nor\n".join(_condition(objective, burn) for burn in of_severity),
            "labels": {"severity": severity, "objective": objective.name},
            "annotations": {
                "summary": f"{objective.title}: the error budget burns too fast",
                "description": f"Too seldom of late {objective.summary}. "
                f"Bad now: {{{{ $value | humanizePercentage }}}}, allowed: {objective.budget:.2%}.",
                "runbook": f"{RUNBOOK}#{objective.alert.lower()}",
            },
        }
        for severity, of_severity in severities.items()
    ]


def _condition(objective: Objective, burn: Burn) -> str:
    bad = f"{burn.burn * objective.budget:.6g}"
    where = f'{{objective="{objective.name}"}}'
    parts = [f"{error_ratio(burn.long)}{where} > {bad}", f"{error_ratio(burn.short)}{where} > {bad}"]
    if objective.minimum:
        parts.append(f"{events(burn.long)}{where} * {seconds(burn.long)} >= {objective.minimum}")
    return "(\n  " + "\n  and\n  ".join(parts) + "\n)"


def _alert(alert: Alert) -> Rule:
    return {
        "alert": alert.name,
        "expr": alert.expr.strip(),
        "for": alert.wait,
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "runbook": f"{RUNBOOK}#{alert.name.lower()}"},
    }


def scoped(made: dict[str, Any], scope: Mapping[str, str]) -> dict[str, Any]:
    """The same rules about the series with these labels alone, which what they record and tell has too: so that two
    releases under one Prometheus are told apart.
    """
    return {
        "groups": [{**group, "rules": [_scoped(rule, scope) for rule in group["rules"]]} for group in made["groups"]]
    }


def _scoped(rule: Rule, scope: Mapping[str, str]) -> Rule:
    selected: set[str] = set()

    def look(part: object) -> bool:
        if isinstance(part, promql_parser.VectorSelector):
            selected.add(str(part.name))
        return True

    promql_parser.walk(promql_parser.parse(rule["expr"]), look)
    where = ", ".join(f'{label}="{value}"' for label, value in scope.items())
    expr = rule["expr"]
    for name in selected:
        expr = re.sub(
            rf"(?<![\w:]){re.escape(name)}(?![\w:])(\{{?)",
            lambda found: found[0] + f"{where}, " if found[1] else f"{found[0]}{{{where}}}",
            expr,
        )
    return {**rule, "expr": expr, "labels": {**rule["labels"], **scope}}
