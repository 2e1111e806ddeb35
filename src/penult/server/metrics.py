"""Figures of the server in the text form of Prometheus."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from penult.embedding.shared_batches import BatchNote
from penult.engines.batching import waste

CONTENT_TYPE = CONTENT_TYPE_LATEST
_RECENT = 2000  # requests whose times the percentiles are of
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class _Percentiles(Collector):
    """Percentiles of the times of recent requests, by route."""

    def __init__(self) -> None:
        self.times: dict[str, deque[float]] = {}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        found = GaugeMetricFamily(
            "penult_recent_request_seconds",
            f"Seconds of the last {_RECENT} answered requests of a route, as percentiles.",
            labels=["route", "quantile"],
        )
        for route, times in list(self.times.items()):
            for share in (0.5, 0.95, 0.99):
                found.add_metric([route, f"{share:g}"], float(np.quantile(list(times), share)))
        yield found


class Metrics:
    """Counters and gauges. waiting: seconds of work that wait now."""

    def __init__(self, waiting: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self.requests = Counter(
            "penult_requests", "Requests answered.", ["route", "status"], registry=own
        )
        self.items = Counter(
            "penult_items", "Items, by what became of them.", ["outcome"], registry=own
        )
        self.media = Counter(
            "penult_media_seconds", "Seconds of sound and video that were embedded.", registry=own
        )
        self.batch = Histogram(
            "penult_batch_regions", "Regions that shared a pass.", buckets=_SIZES, registry=own
        )
        self.model = Counter("penult_model_seconds", "Seconds in the model.", registry=own)
        self.padding = Gauge(
            "penult_padding_share", "Share of all positions so far that was padding.", registry=own
        )
        Gauge(
            "penult_waiting_seconds",
            "Seconds of work that was admitted and is not done.",
            registry=own,
        ).set_function(waiting)
        self.regions = Gauge(
            "penult_waiting_regions", "Regions that wait for the model.", registry=own
        )
        self.difference = Gauge(
            "penult_probe_largest_difference",
            "Largest relative difference between a probe's vector alone and in live batches.",
            registry=own,
        )
        self.probes = Counter(
            "penult_probes", "Probes that shared a batch with items of clients.", registry=own
        )
        self._percentiles = _Percentiles()
        self.registry.register(self._percentiles)
        self._padding, self._positions = 0.0, 0.0

    def batch_ended(self, note: BatchNote) -> None:
        """Count a pass."""
        sizes = list(note.sizes)
        self.batch.observe(len(sizes))
        self.model.inc(note.seconds)
        self.regions.set(note.waiting)
        padded = max(sizes) * len(sizes)
        self._padding += padded * waste(sizes, [list(range(len(sizes)))])
        self._positions += padded
        self.padding.set(self._padding / self._positions if self._positions else 0.0)

    def request_ended(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self.requests.labels(route, str(status)).inc()
        if status < 400:
            times = self._percentiles.times.setdefault(route, deque(maxlen=_RECENT))
            times.append(seconds)

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self.registry)
