"""An OTLP receiver that keeps what it gets: what a collector would have been sent, for tests and pictures."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(frozen=True)
class Received:
    """One span as it arrived. Times are nanoseconds since the epoch. links: ids of the spans it points to."""

    name: str
    trace: str
    span: str
    parent: str
    start: int
    end: int
    attributes: Mapping[str, Any]
    links: tuple[str, ...]
    error: str
    events: tuple[str, ...]


class Receiver:
    """Listens on a free port of this machine while it is entered. ``environment`` points a service at it."""

    def __init__(self) -> None:
        self._server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
        self._news = threading.Condition()
        self._spans: list[Received] = []
        self._metrics: dict[str, Metric] = {}
        self.exemplars: dict[str, list[tuple[str, str]]] = {}
        """(trace, span) of each exemplar, by the metric's name: each is sent once."""
        self.raw = b""
        """All that arrived, as it came over the wire."""

    def __enter__(self) -> Self:
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(_Traces(self), self._server)
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(_Metrics(self), self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(1.0).wait()

    @property
    def endpoint(self) -> dict[str, str]:
        """What a service needs to export here, as often as it does by default."""
        return {
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "OTEL_EXPORTER_OTLP_INSECURE": "true",
        }

    @property
    def environment(self) -> dict[str, str]:
        """What a service needs to export here, and soon."""
        return self.endpoint | {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_METRIC_EXPORT_INTERVAL": "500"}

    @property
    def spans(self) -> list[Received]:
        with self._news:
            return self._spans.copy()

    @property
    def metrics(self) -> dict[str, Metric]:
        """The newest state of each metric, by name."""
        with self._news:
            return self._metrics.copy()

    def wait(self, until: Callable[[Receiver], Any], timeout_s: float = 60.0) -> Any:
        """What ``until`` says, as soon as that is true. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        with self._news:
            while not (found := until(self)):
                if not self._news.wait(deadline - time.monotonic()):
                    raise TimeoutError(f"not in {timeout_s} s; received {sorted({span.name for span in self._spans})}")
        return found

    def take(self, raw: bytes, spans: list[Received], metrics: Mapping[str, Metric]) -> None:
        with self._news:
            self.raw += raw
            self._spans += spans
            self._metrics |= metrics
            for name, metric in metrics.items():
                for point in metric.histogram.data_points:
                    found = [(one.trace_id.hex(), one.span_id.hex()) for one in point.exemplars]
                    self.exemplars.setdefault(name, []).extend(found)
            self._news.notify_all()


class _Traces(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        spans = [span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans]
        self._receiver.take(request.SerializeToString(), [_received(span) for span in spans], {})
        return trace_service_pb2.ExportTraceServiceResponse()


class _Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        found = (
            metric
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        )
        self._receiver.take(request.SerializeToString(), [], {metric.name: metric for metric in found})
        return metrics_service_pb2.ExportMetricsServiceResponse()


def _received(span: Span) -> Received:
    return Received(
        name=span.name,
        trace=span.trace_id.hex(),
        span=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        attributes=attributes(span.attributes),
        links=tuple(link.span_id.hex() for link in span.links),
        error=span.status.message,
        events=tuple(event.name for event in span.events),
    )


def attributes(pairs: Any) -> dict[str, Any]:
    """Attributes of a span or of a data point, as plain values."""
    return {pair.key: _value(pair.value) for pair in pairs if isinstance(pair, KeyValue)}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return None if kind is None else getattr(value, kind)
