"""What an operator sees: Prometheus metrics of requests, batches, errors and the tail.

Where a figure means what Triton Inference Server's means it has Triton's name, labels and unit, so
that dashboards carry over; everything else is called ``ltdeploy_…``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    UntypedMetricFamily,
)

from ltdeploy.arrays import IntArray
from ltdeploy.classes import ClassTable

from .contracts import BatchReport
from .tail_watch import TailWatch

__all__ = ["Metrics"]

_OF_VERSION = ("model", "version")
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_US = 1e6
# Triton's words for why a request failed; any other cause is its OTHER.
_TRITON_REASONS = {
    "queue_full": "REJECTED",
    "deadline": "REJECTED",
    "draining": "REJECTED",
    "not_ready": "REJECTED",
    "client_gone": "CANCELED",
    "engine": "BACKEND",
    "internal": "BACKEND",
}


@dataclass(frozen=True)
class _Series:
    """The counters of one version, looked up once: finding them costs more than counting."""

    success: Counter
    inferences: Counter
    executions: Counter
    request_us: Counter
    queue_us: Counter
    infer_us: Counter
    batch_images: Histogram
    queue_images: Gauge
    pending: Gauge
    ready: Gauge


class Metrics:
    """The metrics of one server, in a registry of their own.

    Thread-safe. Recording costs microseconds; shares and totals by group are computed when the
    metrics are read.

    Labels come from the server alone, never from a client: an error for a model that was not made
    known by :meth:`ready` (a client may ask for any name) is counted under the empty model name, so
    that nobody can fill the memory by asking for a million names. A ``cause`` is a word of the
    source code. Versions that went are taken out by :meth:`forget`.

    Parameters
    ----------
    window : predictions that the tail watch of each version looks back on.
    """

    def __init__(self, window: int = 10_000) -> None:
        self._window = window
        self._lock = threading.Lock()
        self._watches: dict[tuple[str, str], TailWatch] = {}
        self._series: dict[tuple[str, str], _Series] = {}
        self._stages: dict[tuple[str, str], Histogram] = {}

        def triton(name: str, text: str, *more: str) -> Counter:
            return Counter(f"nv_inference_{name}", text, (*_OF_VERSION, *more), registry=None)

        self._success = triton("request_success", "Inference requests answered")
        self._failure = triton("request_failure", "Inference requests not answered", "reason")
        self._inferences = triton("count", "Images inferred")
        self._executions = triton("exec_count", "Runs of the engine")
        self._request_us = triton("request_duration_us", "Time of requests, end to end")
        self._queue_us = triton("queue_duration_us", "Time of requests in the queue")
        self._infer_us = triton("compute_infer_duration_us", "Time of requests in the engine")
        self._counters = (
            *(self._success, self._failure, self._inferences, self._executions),
            *(self._request_us, self._queue_us, self._infer_us),
        )

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, _OF_VERSION, registry=None)

        self._pending = gauge("nv_inference_pending_request_count", "Requests that wait")
        self._queue_images = gauge("ltdeploy_queue_images", "Images that wait for the engine")
        self._ready = gauge("ltdeploy_model_ready", "Whether the version answers, 0 or 1")
        self._batch_images = Histogram(
            *("ltdeploy_batch_images", "Images per run of the engine", _OF_VERSION),
            buckets=_IMAGES,
            registry=None,
        )
        self._seconds = Histogram(
            *("ltdeploy_request_seconds", "Time of answered requests", ("model", "stage")),
            buckets=_SECONDS,
            registry=None,
        )
        self._errors = Counter(
            *("ltdeploy_errors", "Requests refused or failed", ("model", "cause")), registry=None
        )
        self._reloads = Counter(
            *("ltdeploy_reloads", "Bundles that were to take over", ("model", "outcome")),
            registry=None,
        )
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def ready(self, model: str, version: str, is_ready: bool = True) -> None:
        """Make a version known, and say whether it answers."""
        self._of(model, version).ready.set(is_ready)

    def forget(self, model: str, version: str) -> None:
        """Take a version out that is served no more."""
        key = (model, version)
        self._series.pop(key, None)
        with self._lock:
            self._watches.pop(key, None)
        gauges_and_more = (self._pending, self._queue_images, self._ready, self._batch_images)
        for family in (*self._counters, *gauges_and_more):
            family.remove_by_labels({"model": model, "version": version})
        if all(known != model for known, _ in self._series):
            for stage in [stage for known, stage in self._stages if known == model]:
                del self._stages[model, stage]
            for by_model in (self._seconds, self._errors, self._reloads):
                by_model.remove_by_labels({"model": model})

    def batch(self, model: str, version: str, report: BatchReport) -> None:
        """Count one run of the engine, and the stages ``queue`` and ``infer`` of its requests.

        Here and not with the request they are the same whichever protocol it came by.
        """
        series = self._of(model, version)
        if report.failed:
            return
        series.inferences.inc(report.images)
        series.executions.inc()
        series.batch_images.observe(report.images)
        series.queue_us.inc(sum(report.queued_s) * _US)
        # As Triton has it: every request of a batch was in the engine for as long as the batch.
        series.infer_us.inc(report.run_s * report.requests * _US)
        queue, infer = self._stage(model, "queue"), self._stage(model, "infer")
        for queued_s in report.queued_s:
            queue.observe(queued_s)
            infer.observe(report.run_s)

    def answered(self, model: str, version: str, table: ClassTable, labels: IntArray) -> None:
        """Show the tail watch what was predicted.

        Parameters
        ----------
        table : of the bundle that predicted; with another one the version's watch begins anew.
        labels : the best label of each image, or of each detection that was shown, shape (N,).
        """
        watch = self._watches.get((model, version))
        if watch is None or watch.table is not table:
            with self._lock:
                watch = self._watches.get((model, version))
                if watch is None or watch.table != table:
                    watch = self._watches[model, version] = TailWatch(table, self._window)
        watch.add(labels)

    def request(self, model: str, version: str, seconds_by_stage: Mapping[str, float]) -> None:
        """Count one answered request.

        Parameters
        ----------
        seconds_by_stage : ``total``, and ``decode`` where there was something to decode;
            :meth:`batch` knows the other stages.
        """
        series = self._of(model, version)
        series.success.inc()
        series.request_us.inc(seconds_by_stage.get("total", 0.0) * _US)
        for stage, seconds in seconds_by_stage.items():
            self._stage(model, stage).observe(seconds)

    def refused(self, model: str | None, cause: str, version: str = "") -> None:
        """Count one request that was refused or failed.

        Parameters
        ----------
        model : as the client said it, or None where the request never came to a model.
        cause : of the :class:`.failures.RequestError`.
        version : which one of the model, where that was clear.
        """
        if model is None or (model, version) not in self._series:
            version = ""
            if all(known != model for known, _ in tuple(self._series)):
                model = ""
        self._errors.labels(model, cause).inc()
        if model:
            reason = _TRITON_REASONS.get(cause, "OTHER")
            self._failure.labels(model, version, reason).inc()

    def reloaded(self, model: str, outcome: str) -> None:
        """Count a new bundle that took over (``"taken"``) or did not (``"refused"``)."""
        self._reloads.labels(model, outcome).inc()

    def pending(self, model: str, version: str, images: int, requests: int | None = None) -> None:
        """Say how much waits for the engine now."""
        series = self._of(model, version)
        series.queue_images.set(images)
        if requests is not None:
            series.pending.set(requests)

    def render(self) -> tuple[bytes, str]:
        """Return everything in Prometheus' text format 0.0.4, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4

    def collect(self) -> Iterator[Metric]:
        """Yield every family; what :mod:`prometheus_client` asks of a collector."""
        for counter in self._counters:
            for family in counter.collect():
                yield _as_triton_names_it(family)
        for metric in (
            *(self._pending, self._queue_images, self._ready, self._batch_images),
            *(self._seconds, self._errors, self._reloads),
        ):
            for family in metric.collect():
                # When a series began is a second series for each; nobody's dashboard has it.
                family.samples = [s for s in family.samples if not s.name.endswith("_created")]
                yield family
        with self._lock:
            watches = sorted(self._watches.items(), key=itemgetter(0))
        yield from _tail_families(watches)

    def _of(self, model: str, version: str) -> _Series:
        series = self._series.get((model, version))
        if series is None:
            series = self._series[model, version] = _Series(
                self._success.labels(model, version),
                self._inferences.labels(model, version),
                self._executions.labels(model, version),
                self._request_us.labels(model, version),
                self._queue_us.labels(model, version),
                self._infer_us.labels(model, version),
                self._batch_images.labels(model, version),
                self._queue_images.labels(model, version),
                self._pending.labels(model, version),
                self._ready.labels(model, version),
            )
        return series

    def _stage(self, model: str, stage: str) -> Histogram:
        found = self._stages.get((model, stage))
        if found is None:
            found = self._stages[model, stage] = self._seconds.labels(model, stage)
        return found


def _as_triton_names_it(family: Metric) -> Metric:
    """Return a counter under its bare name.

    The library writes counters as ``NAME_total`` only. Untyped ones keep their name, and to
    Prometheus itself the two are the same.
    """
    renamed = UntypedMetricFamily(family.name, family.documentation)
    for sample in family.samples:
        if sample.name == f"{family.name}_total":
            renamed.add_sample(family.name, sample.labels, sample.value)
    return renamed


def _tail_families(watches: Sequence[tuple[tuple[str, str], TailWatch]]) -> Iterator[Metric]:
    by_group = (*_OF_VERSION, "group")
    totals = CounterMetricFamily("ltdeploy_predictions", "Predictions by group", labels=by_group)

    def gauge(name: str, text: str, labels: Sequence[str] = by_group) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"ltdeploy_{name}", text, labels=labels)

    share = gauge("tail_share", "Share of the predictions in the window")
    expected = gauge("tail_expected_share", "Share that the training counts say")
    silent = gauge("tail_silent_classes", "Classes never predicted in the window")
    by_chance = gauge("tail_expected_silent_classes", "Silent classes if all were as in training")
    window = gauge("tail_window_predictions", "Predictions in the window", _OF_VERSION)
    shift = gauge("label_shift", "Total variation from the training prior, 0 to 1", _OF_VERSION)
    for key, watch in watches:
        snapshot = watch.snapshot()
        window.add_metric(key, snapshot.predictions)
        if snapshot.shift is not None:
            shift.add_metric(key, snapshot.shift)
        for name, group in snapshot.by_group.items():
            labels = (*key, name)
            totals.add_metric(labels, group.total)
            expected.add_metric(labels, group.expected)
            silent.add_metric(labels, group.silent_classes)
            by_chance.add_metric(labels, group.expected_silent)
            if group.share is not None:
                share.add_metric(labels, group.share)
    yield from (totals, share, expected, silent, by_chance, window, shift)
