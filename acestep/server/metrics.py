"""Figures for Prometheus: requests, tasks, how long they wait and take."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from acestep.server.store import SUCCEEDED, Store, Task

_SONG_SECONDS = (0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The figures of one service.

    Args:
        store: is asked for its tasks whenever the figures are read.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._requests = Counter(
            "acestep_http_requests", "Requests answered.", ("method", "route", "status"),
            registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "acestep_http_request_seconds", "From request to answer.", ("route",),
            registry=self._registry,
        )  # fmt: skip
        self._ended = Counter(
            "acestep_tasks_ended", "Tasks by how they ended.", ("kind", "state"),
            registry=self._registry,
        )  # fmt: skip
        self._waited = Histogram(
            "acestep_task_waiting_seconds", "From asking to the beginning.", ("kind",),
            buckets=_SONG_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._took = Histogram(
            "acestep_task_seconds", "From the beginning to the end.", ("kind",),
            buckets=_SONG_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._audio = Counter(
            "acestep_audio_seconds", "Seconds of music made.", registry=self._registry
        )

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Note a request that was answered."""
        known = method if method in ("GET", "HEAD", "POST", "OPTIONS") else "other"
        self._requests.labels(known, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def task(self, task: Task) -> None:
        """Note a task that ended."""
        self._ended.labels(task.kind, task.state).inc()
        if task.started is not None and task.ended is not None:
            self._waited.labels(task.kind).observe(max(task.started - task.created, 0.0))
            self._took.labels(task.kind).observe(max(task.ended - task.started, 0.0))
        if task.state == SUCCEEDED and task.result:
            self._audio.inc(sum(song["seconds"] for song in task.result.get("songs", ())))

    def collect(self) -> Iterable[Metric]:
        """What the database says now; called when the figures are read."""
        tasks = GaugeMetricFamily("acestep_tasks", "Tasks by state.", labels=["state"])
        for state, count in self._store.counts().items():
            tasks.add_metric([state], count)
        files, size = self._store.usage()
        yield tasks
        yield GaugeMetricFamily("acestep_results", "Files that are kept.", value=files)
        yield GaugeMetricFamily("acestep_results_bytes", "Their size.", value=size)

    def text(self) -> bytes:
        """All of it, in Prometheus' own format."""
        return generate_latest(self._registry)
