"""The Prometheus endpoint. OpenTelemetry's exporter leaves exemplars out; here they are put back on the buckets.

A scraper that asks for OpenMetrics gets them; the plain text format has no place for them.
"""

from __future__ import annotations

import logging
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import Exemplar as Measured
from opentelemetry.sdk.metrics.export import HistogramDataPoint, MetricsData
from prometheus_client import REGISTRY, CollectorRegistry, start_http_server
from prometheus_client.core import Exemplar, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

log = logging.getLogger(__name__)

Series = tuple[str, frozenset[tuple[str, str]]]
"""A histogram's name and its labels, as Prometheus has them."""


class ExemplarReader(PrometheusMetricReader):
    """Collects as its base does, into families of its own, and keeps the newest exemplar of each bucket: the SDK tells
    each of them once, to whoever collects first.

    on_shutdown: called once it is shut down.
    """

    def __init__(self, on_shutdown: Callable[[], None] = lambda: None) -> None:
        self.families = CollectorRegistry()
        self.exemplars: dict[Series, dict[int, Measured]] = {}
        """By series, and by number of the bucket."""
        self._on_shutdown = on_shutdown
        super().__init__(registry=self.families, scope_info_enabled=False)

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        if metrics_data is not None:
            for metric in (m for r in metrics_data.resource_metrics for s in r.scope_metrics for m in s.metrics):
                for point in metric.data.data_points:
                    if isinstance(point, HistogramDataPoint):
                        self._keep(metric.name, point)
        super()._receive_metrics(metrics_data, timeout_millis, **kwargs)

    def _keep(self, name: str, point: HistogramDataPoint) -> None:
        kept = self.exemplars.setdefault((_legal(name), _labels(point.attributes or {})), {})
        for new in sorted(point.exemplars, key=lambda one: one.time_unix_nano):
            if new.trace_id is not None and new.span_id is not None:
                kept[bisect_left(point.explicit_bounds, new.value)] = new

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        super().shutdown(timeout_millis, **kwargs)
        self._on_shutdown()


class Exposition(Collector):
    """What the endpoint shows: the reader's families, each bucket with its newest exemplar."""

    def __init__(self, reader: ExemplarReader) -> None:
        self._reader = reader

    def describe(self) -> Iterable[Metric]:
        """Asked on registration, before there is anything to collect."""
        return []

    def collect(self) -> Iterable[Metric]:
        for family in self._reader.families.collect():
            if family.type == "histogram":
                family.samples = list(self._with_exemplars(family))
            yield family

    def _with_exemplars(self, family: Metric) -> Iterable[Sample]:
        """A series' buckets follow each other, smallest first."""
        name, bucket = family.name.removesuffix(f"_{family.unit}"), -1
        for sample in family.samples:
            if not sample.name.endswith("_bucket"):
                bucket = -1
                yield sample
                continue
            bucket += 1
            series = frozenset((label, value) for label, value in sample.labels.items() if label != "le" and value)
            measured = self._reader.exemplars.get((name, series), {}).get(bucket)
            yield sample if measured is None else sample._replace(exemplar=_exemplar(measured))


def serve(host: str, port: int) -> ExemplarReader:
    """A reader behind an endpoint at ``host:port``, any free port for 0. Raises OSError for one that is taken."""
    exposition: Exposition

    def close() -> None:
        REGISTRY.unregister(exposition)
        server.shutdown()
        server.server_close()

    reader = ExemplarReader(close)
    exposition = Exposition(reader)
    server, _ = start_http_server(port, addr=host)
    REGISTRY.register(exposition)
    log.info("metrics served", extra={"host": host, "port": server.server_port})
    return reader


def _exemplar(measured: Measured) -> Exemplar:
    assert measured.trace_id is not None and measured.span_id is not None
    labels = {"trace_id": f"{measured.trace_id:032x}", "span_id": f"{measured.span_id:016x}"}
    return Exemplar(labels, measured.value, measured.time_unix_nano / 1e9)


def _labels(attributes: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    texts = ((key, value if isinstance(value, str) else str(value).lower()) for key, value in attributes.items())
    return frozenset((_legal(key), text) for key, text in texts if text)


def _legal(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]", "_", name)
