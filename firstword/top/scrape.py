"""Reads an instance's metrics: what it has counted so far, and what it has counted since."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from firstword.access import PLAIN, Access

TIMEOUT_S = 5.0

Labels = frozenset[tuple[str, str]]


class ScrapeError(Exception):
    """The endpoint could not be read; the message says why."""


@dataclass(frozen=True)
class Snapshot:
    """All samples of one moment, by name and labels. at: ``time.monotonic()`` seconds."""

    at: float
    samples: Mapping[tuple[str, Labels], float]

    def of(self, name: str, **where: str) -> Iterator[tuple[dict[str, str], float]]:
        """(labels, value) of each series of that name whose labels are these."""
        wanted = where.items()
        for (found, labels), value in self.samples.items():
            if found == name and wanted <= dict(labels).items():
                yield dict(labels), value

    def since(self, earlier: Snapshot | None) -> Snapshot:
        """What was counted since then: of all counters and histograms; gauges are as they are now. A counter that went
        back belongs to another process, and all it says is new.
        """
        if earlier is None or any(earlier.samples.get(key, 0.0) > now for key, now in self._counted()):
            return self
        grown = {key: now - earlier.samples.get(key, 0.0) for key, now in self._counted()}
        return Snapshot(self.at, {**self.samples, **grown})

    def _counted(self) -> Iterator[tuple[tuple[str, Labels], float]]:
        for (name, labels), value in self.samples.items():
            if name.endswith(("_total", "_bucket", "_count", "_sum")):
                yield (name, labels), value


def parse(text: str, at: float) -> Snapshot:
    """What an exposition in Prometheus' text format says."""
    return Snapshot(
        at,
        {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        },
    )


def scrape(address: str, access: Access = PLAIN) -> Snapshot:
    """What the endpoint at ``HOST:PORT`` says now. Raises ScrapeError."""
    url = f"{'http' if access.tls is None else 'https'}://{address}/metrics"
    try:
        request = urllib.request.Request(url, headers=access.headers)
        context = None if access.tls is None else access.ssl_context
        with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context) as response:
            return parse(response.read().decode(), time.monotonic())
    except (OSError, urllib.error.URLError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ScrapeError(f"no metrics at {url}: {reason}") from None
