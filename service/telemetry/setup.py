"""Installs the OpenTelemetry SDK with the exporters that the configuration names. The only importer of the SDK.

Endpoints, headers, samplers and resource attributes come from the standard ``OTEL_*`` variables, which the SDK reads.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

from service.config import TelemetryConfig
from service.telemetry.names import BUCKETS


def install(config: TelemetryConfig) -> Callable[[], None]:
    """Make the providers global. Returns what flushes and ends them; with no exporter nothing is installed. Raises
    OSError for a port of the Prometheus endpoint that is taken.
    """
    own = Resource.create({"service.name": "firstword", "service.instance.id": str(uuid.uuid4())})
    resource = own.merge(Resource.create())
    endings: list[Callable[[], object]] = []
    if config.traces:
        tracers = TracerProvider(resource=resource)
        for name in config.traces:
            tracers.add_span_processor(BatchSpanProcessor(_span_exporter(name, config)))
        trace.set_tracer_provider(tracers)
        endings.append(tracers.shutdown)
    if config.metrics:
        readers = [_metric_reader(name, config) for name in config.metrics]
        meters = MeterProvider(metric_readers=readers, resource=resource, views=views())
        metrics.set_meter_provider(meters)
        endings.append(meters.shutdown)

    def end() -> None:
        for ending in endings:
            ending()

    return end


def views() -> list[View]:
    """Bucket bounds per histogram. The conventions' own are too coarse for a voice agent: see ``BUCKETS``."""
    return [
        View(
            instrument_type=Histogram,
            instrument_name=name,
            aggregation=ExplicitBucketHistogramAggregation(boundaries=bounds),
        )
        for name, bounds in BUCKETS.items()
    ]


def _span_exporter(name: str, config: TelemetryConfig) -> SpanExporter:
    if name == "console":
        return ConsoleSpanExporter()
    if config.otlp_protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpanExporter

    return HttpSpanExporter()


def _metric_reader(name: str, config: TelemetryConfig) -> MetricReader:
    if name == "prometheus":
        from service.telemetry.prometheus import serve

        return serve(config.prometheus_host, config.prometheus_port)
    if name == "console":
        return PeriodicExportingMetricReader(ConsoleMetricExporter())
    if config.otlp_protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

        return PeriodicExportingMetricReader(OTLPMetricExporter())
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetricExporter

    return PeriodicExportingMetricReader(HttpMetricExporter())
