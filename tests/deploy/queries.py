"""Every query that is checked in: of rules, alerts and panels, and what they name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import promql_parser
import yaml

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy/prometheus/rules.yaml"
DASHBOARDS = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
VARIABLES = {"$__rate_interval": "5m", "$model": ".*"}


@dataclass(frozen=True)
class Query:
    """where: the file, and the rule or panel in it. text: PromQL or TraceQL, with Grafana's variables filled in."""

    where: str
    text: str
    traceql: bool = False


def of_rules() -> list[Query]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [
        Query(f"{rule.get('record') or rule['alert']} {rule.get('labels', {})}", rule["expr"])
        for group in groups
        for rule in group["rules"]
    ]


def recorded() -> set[str]:
    """The names that rules record."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}


def of_dashboards() -> list[Query]:
    return [query for path in DASHBOARDS for query in _of_dashboard(path)]


def _of_dashboard(path: Path) -> Iterator[Query]:
    for panel in json.loads(path.read_text())["panels"]:
        for target in panel.get("targets", ()):
            traceql = "query" in target
            text = target["query" if traceql else "expr"]
            for variable, value in VARIABLES.items():
                text = text.replace(variable, value)
            yield Query(f"{path.stem}: {panel['title']}", text, traceql)


@dataclass(frozen=True)
class Named:
    """A series that a query selects, and the labels by which it matches or sums it."""

    metric: str
    labels: frozenset[str]
    values: frozenset[tuple[str, str]]
    """(label, value) of what must be equal to something."""


def named(text: str) -> set[Named]:
    """What a PromQL expression names. Labels of a grouping are those of every series under it."""
    found: set[Named] = set()
    _walk(promql_parser.parse(text), frozenset(), found)
    return found


def _walk(expr: object, groups: frozenset[str], found: set[Named]) -> None:
    match expr:
        case promql_parser.AggregateExpr():
            modifier = expr.modifier
            by = modifier is not None and modifier.type == promql_parser.AggModifierType.By
            _walk(expr.expr, groups | frozenset(modifier.labels if by and modifier is not None else ()), found)
        case promql_parser.BinaryExpr():
            _walk(expr.lhs, groups, found)
            _walk(expr.rhs, groups, found)
        case promql_parser.Call():
            for argument in expr.args:
                _walk(argument, groups, found)
        case promql_parser.ParenExpr() | promql_parser.UnaryExpr() | promql_parser.SubqueryExpr():
            _walk(expr.expr, groups, found)
        case promql_parser.MatrixSelector():
            _walk(expr.vector_selector, groups, found)
        case promql_parser.VectorSelector():
            matchers = expr.matchers.matchers
            equal = {(m.name, m.value) for m in matchers if m.op == promql_parser.MatchOp.Equal}
            labels = groups | frozenset(m.name for m in matchers)
            found.add(Named(expr.name or "", labels, frozenset(equal)))
        case promql_parser.NumberLiteral() | promql_parser.StringLiteral():
            pass
        case _:
            raise AssertionError(f"{type(expr).__name__} is not looked into")


def trace_attributes(text: str) -> set[str]:
    """The span attributes that a TraceQL query names."""
    return set(re.findall(r"\bspan\.([a-zA-Z0-9_.]+)", text))


def span_names(text: str) -> set[str]:
    """The span names, or expressions for them, in a TraceQL query."""
    return set(re.findall(r'(?<![.\w])name (?:=|=~) "([^"]*)"', text))
