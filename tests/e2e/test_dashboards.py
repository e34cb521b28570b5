"""Everything that rules, alerts and panels name is there: in a scrape, or among the spans, of a server that runs."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from service.security.api_keys import new_key
from tests.deploy import queries
from tests.e2e.observed import Observed, scrape
from tests.e2e.server import ROOT, ServiceProcess
from tests.service.security.authority import Authority
from tests.service.security.doors import answer
from tests.service.security.test_api_keys import write

BY_RULES = {"objective"}
"""Labels that our recording rules add."""


@dataclass(frozen=True)
class Series:
    """What a metric has: its labels, and the values of each."""

    labels: Mapping[str, set[str]]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What a server with TLS and API keys says that has let somebody in and turned somebody away."""
    authority = Authority(directory := tmp_path_factory.mktemp("guarded"))
    own, (key, entry) = authority.pair(), new_key("acme")
    write(keys := directory / "keys.toml", entry)
    process = ServiceProcess(
        {
            "FIRSTWORD_TLS__CERTIFICATE": str(own.certificate),
            "FIRSTWORD_TLS__KEY": str(own.key),
            "FIRSTWORD_AUTH__API_KEYS_FILE": str(keys),
            "OTEL_METRICS_EXPORTER": "prometheus",
            "OTEL_EXPORTER_PROMETHEUS_PORT": "0",
        }
    )
    try:
        metrics_port = int(process.wait_for("metrics served")["port"])
        address = f"127.0.0.1:{process.wait_for('listening')['port']}"
        for credential in (key, None):
            asyncio.run(answer(address, credential, authority.channel()))
        yield scrape(metrics_port)
    finally:
        process.stop()


@pytest.fixture(scope="module")
def known(observed: Observed, guarded: str) -> dict[str, Series]:
    """Every metric by name: scraped, recorded by our rules, or made of spans by the collector."""
    found: dict[str, dict[str, set[str]]] = {}
    scraped = [family for text in (observed.scrape(), guarded) for family in text_string_to_metric_families(text)]
    for family in scraped:
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    for name in queries.recorded():
        found[name] = {"objective": objectives(), "gen_ai_request_model": {"receptionist"}}
    for suffix in ("bucket", "count", "sum"):
        found[f"traces_span_metrics_duration_seconds_{suffix}"] = of_spans(observed)
    return {name: Series(labels) for name, labels in found.items()}


def objectives() -> set[str]:
    groups = yaml.safe_load(queries.RULES.read_text())["groups"]
    return {
        rule["labels"]["objective"]
        for group in groups
        for rule in group["rules"]
        if "objective" in rule.get("labels", {})
    }


def of_spans(observed: Observed) -> dict[str, set[str]]:
    """The labels that the span metrics connector gives: its own four, and the attributes it is told to take."""
    connector = yaml.safe_load((ROOT / "deploy/collector.yaml").read_text())["connectors"]["spanmetrics"]
    own = {"service_name": {"firstword"}, "span_name": {span.name for span in observed.receiver.spans}, "le": set()}
    taken = {
        dimension["name"].replace(".", "_"): {
            str(span.attributes[dimension["name"]]).lower()
            for span in observed.receiver.spans
            if dimension["name"] in span.attributes
        }
        for dimension in connector["dimensions"]
    }
    assert all(taken.values()), "every dimension is an attribute of some span"
    return own | taken


PROMQL = [*queries.of_rules(), *(query for query in queries.of_dashboards() if not query.traceql)]
TRACEQL = [query for query in queries.of_dashboards() if query.traceql]


def test_every_name_and_label_of_a_query_exists(known: dict[str, Series]) -> None:
    missing = []
    for query in PROMQL:
        for named in queries.named(query.text):
            series = known.get(named.metric)
            if series is None:
                missing.append(f"{query.where}: {named.metric}")
                continue
            missing += [f"{query.where}: {named.metric} {label}" for label in named.labels - set(series.labels)]
            missing += [
                f"{query.where}: {named.metric} {label}={value}"
                for label, value in named.values
                if label in ("le", "objective", "service_name") and value not in series.labels[label]
            ]
    assert not missing
    assert len({named.metric for query in PROMQL for named in queries.named(query.text)}) > 40


@pytest.mark.parametrize("query", TRACEQL, ids=lambda query: query.where)
def test_every_span_and_attribute_of_a_traceql_query_exists(observed: Observed, query: queries.Query) -> None:
    names = queries.span_names(query.text)
    assert names
    for name in names:
        spans = [span for span in observed.receiver.spans if re.fullmatch(name, span.name)]
        assert spans, name
        for attribute in queries.trace_attributes(query.text):
            assert any(attribute in span.attributes for span in spans), attribute


def test_a_name_that_is_not_there_would_be_found(known: dict[str, Series]) -> None:
    (named,) = queries.named('sum by (nothing) (rate(firstword_turns_total{nowhere="x"}[5m]))')
    assert named.labels - set(known[named.metric].labels) == {"nothing", "nowhere"}
    assert "firstword_turn_total" not in known


def test_the_images_health_check_asks_the_service(observed: Observed) -> None:
    def status(port: int) -> int:
        environment = {"FIRSTWORD_SERVER__PORT": str(port), "PATH": "/usr/bin"}
        return subprocess.run([sys.executable, ROOT / "deploy/healthcheck.py"], env=environment, timeout=60).returncode

    assert status(observed.process.port) == 0
    assert status(1) == 1
