"""How Prometheus writes what OpenTelemetry calls by other names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from service.telemetry.names import BUCKETS


def label(attribute: str) -> str:
    """An attribute as a label."""
    return re.sub(r"[^a-zA-Z0-9_]", "_", attribute)


def histogram(metric: str) -> str:
    """A histogram's name, without ``_bucket``, ``_count`` or ``_sum``. Raises ValueError for one that is not ours."""
    if metric not in BUCKETS:
        raise ValueError(f"{metric} is no histogram of the service")
    return label(metric) + ("" if metric.endswith("_per_step") else "_seconds")


def counter(metric: str) -> str:
    """A counter's name; one of times counts seconds."""
    return f"{label(metric)}{'_seconds' if metric.endswith('_time') else ''}_total"


def matchers(where: Mapping[str, str]) -> str:
    """Attributes and the expressions that they must match, between braces."""
    return ", ".join(f'{label(attribute)}=~"{pattern}"' for attribute, pattern in where.items())
