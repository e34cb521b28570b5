"""What panels ask of Prometheus."""

from __future__ import annotations

from deploy.generate import naming
from deploy.generate.panels import ENGINE, MODEL, RATE

SPANS = "traces_span_metrics_duration_seconds_bucket"
"""What the collector's span metrics connector makes of our spans (``deploy/collector.yaml``)."""


def quantile(percent: int, histogram: str, by: str = "") -> str:
    """A percentile of a histogram, perhaps by an attribute."""
    labels = ", ".join(filter(None, ("le", naming.label(by) if by else "")))
    return f"histogram_quantile({percent / 100:g}, sum by ({labels}) ({rate_of(histogram + '.bucket')}))"


def rate_of(histogram_part: str) -> str:
    histogram, _, part = histogram_part.rpartition(".")
    return f"rate({naming.histogram(histogram)}_{part}{{{MODEL}}}[{RATE}])"


def count(counter: str, where: str = "") -> str:
    """A counter's growth a second."""
    return f"rate({naming.counter(counter)}{{{', '.join(filter(None, (MODEL, where)))}}}[{RATE}])"


def count_by(counter: str, attribute: str, where: str = "") -> str:
    return f"sum by ({naming.label(attribute)}) ({count(counter, where)})"


def of_engines(gauge: str) -> str:
    return f"sum by (gen_ai_response_model) ({naming.label(gauge)}{{{ENGINE}}})"


def of_engines_rate(counter: str) -> str:
    return f"sum (rate({naming.counter(counter)}{{{ENGINE}}}[{RATE}]))"


def span_quantile(quantile: float, spans: str, *, ahead: bool) -> str:
    """Of span durations. ahead: of what was done before the turn was committed."""
    where = f'service_name="firstword", span_name=~"{spans}", firstword_ahead!="{str(not ahead).lower()}"'
    return f"histogram_quantile({quantile:g}, sum by (le, span_name) (rate({SPANS}{{{where}}}[{RATE}])))"
