"""Examples of a property are not timed: the machine that runs them may be busy with something else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.telemetry.setup import views
from tests.service.calls import CallUnderTest, exact_target, target
from tests.service.recorded import Recorded

settings.register_profile("service", deadline=None)
settings.load_profile("service")


@pytest.fixture(autouse=True)
def ended_calls() -> Iterator[None]:
    """Every call that a test has opened ends with it: they share one pool of pages, to which all of theirs return."""
    yield
    CallUnderTest.end_all()
    for loaded in (target, exact_target):
        assert not loaded.cache_info().currsize or loaded().pool.pages_in_use == 0


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(), MeterProvider([reader], views=views())
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(trace, "get_tracer", tracers.get_tracer)
    monkeypatch.setattr(metrics, "get_meter", meters.get_meter)
    yield Recorded(spans, reader)
    tracers.shutdown()
    meters.shutdown()
