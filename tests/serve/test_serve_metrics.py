"""The metrics as Prometheus reads them, and the files that ask for them."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ltdeploy.classes import ClassTable
from ltdeploy.serve.contracts import BatchReport
from ltdeploy.serve.metrics import Metrics

yaml = pytest.importorskip("yaml")

DEPLOY = Path(__file__).resolve().parents[2] / "serve" / "deploy"
TABLE = ClassTable(("cat", "dog", "fox", "lynx", "wolverine"), (500, 300, 50, 5, 5))
TRITON = {
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_request_duration_us",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_infer_duration_us",
    "nv_inference_pending_request_count",
}


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Return the value of each sample by its name and ``label=value`` texts in order."""
    body, _ = metrics.render()
    return {
        (sample.name, *sorted(f"{k}={v}" for k, v in sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def busy() -> Metrics:
    """Return metrics in which everything has happened once."""
    metrics = Metrics()
    metrics.ready("birds", "1")
    metrics.pending("birds", "1", 3, 2)
    metrics.batch("birds", "1", BatchReport(4, 2, [0.25, 0.5], 0.125))
    metrics.answered("birds", "1", TABLE, np.array([0, 0, 1, 2]))
    metrics.request("birds", "1", {"decode": 0.01, "total": 0.5})
    metrics.refused("birds", "queue_full", "1")
    metrics.reloaded("birds", "taken")
    return metrics


def test_tritons_names_are_exact_and_mean_the_same() -> None:
    got = samples(busy())
    of = ("model=birds", "version=1")
    assert {name for name, *_ in got if name.startswith("nv_")} == TRITON
    assert got["nv_inference_request_success", *of] == 1
    assert got["nv_inference_request_failure", "model=birds", "reason=REJECTED", "version=1"] == 1
    assert got["nv_inference_count", *of] == 4
    assert got["nv_inference_exec_count", *of] == 1
    assert got["nv_inference_request_duration_us", *of] == 500_000
    assert got["nv_inference_queue_duration_us", *of] == 750_000
    assert got["nv_inference_compute_infer_duration_us", *of] == 250_000  # for each request
    assert got["nv_inference_pending_request_count", *of] == 2


def test_own_metrics() -> None:
    got = samples(busy())
    of = ("model=birds", "version=1")
    assert got["ltdeploy_queue_images", *of] == 3
    assert got["ltdeploy_model_ready", *of] == 1
    assert got["ltdeploy_batch_images_sum", *of] == 4
    # Two requests were in the batch, one of them is answered.
    for stage, seconds in {"decode": 0.01, "queue": 0.75, "infer": 0.25, "total": 0.5}.items():
        assert got["ltdeploy_request_seconds_sum", "model=birds", f"stage={stage}"] == seconds
    assert got["ltdeploy_errors_total", "cause=queue_full", "model=birds"] == 1
    assert got["ltdeploy_reloads_total", "model=birds", "outcome=taken"] == 1
    assert not [name for name, *_ in got if name.endswith("_created")]


def test_the_tail_is_shown_beside_what_is_expected() -> None:
    metrics = busy()
    few = ("group=few", "model=birds", "version=1")
    got = samples(metrics)
    assert got["ltdeploy_predictions_total", *few] == 0
    assert got["ltdeploy_tail_share", *few] == 0
    assert got["ltdeploy_tail_expected_share", *few] == pytest.approx(10 / 860)
    assert got["ltdeploy_tail_silent_classes", *few] == 2
    assert got["ltdeploy_tail_expected_silent_classes", *few] == pytest.approx(1.953, abs=1e-3)
    assert got["ltdeploy_tail_window_predictions", *few[1:]] == 4
    assert 0 < got["ltdeploy_label_shift", *few[1:]] < 1
    metrics.answered("birds", "1", TABLE, np.array([3, 4, 4, 4]))
    got = samples(metrics)
    assert got["ltdeploy_predictions_total", *few] == 4
    assert got["ltdeploy_tail_share", *few] == 0.5
    assert got["ltdeploy_tail_silent_classes", *few] == 0


def test_a_new_class_table_begins_a_new_window_and_an_equal_one_does_not() -> None:
    metrics = busy()
    window = ("ltdeploy_tail_window_predictions", "model=birds", "version=1")
    metrics.answered("birds", "1", ClassTable(TABLE.names, TABLE.counts), np.array([0]))
    assert samples(metrics)[window] == 5
    metrics.answered("birds", "1", ClassTable(("cat", "dog"), (9, 1)), np.array([1]))
    assert samples(metrics)[window] == 1


def test_a_failed_batch_is_no_inference() -> None:
    metrics = busy()
    metrics.batch("birds", "1", BatchReport(9, 9, [0.1] * 9, 1.0, failed=True))
    got = samples(metrics)
    assert got["nv_inference_count", "model=birds", "version=1"] == 4
    assert got["nv_inference_exec_count", "model=birds", "version=1"] == 1


def test_no_client_makes_series_by_asking_for_names() -> None:
    metrics = busy()
    before = len(samples(metrics))
    for number in range(1000):
        metrics.refused(f"guess-{number}", "not_found")
        metrics.refused("birds", "not_found", f"{number + 2}")
    metrics.refused(None, "token")
    got = samples(metrics)
    assert got["ltdeploy_errors_total", "cause=not_found", "model="] == 1000
    assert got["ltdeploy_errors_total", "cause=not_found", "model=birds"] == 1000
    assert got["ltdeploy_errors_total", "cause=token", "model="] == 1
    assert len(got) == before + 4
    metrics.ready("guess-1", "1")  # the control: a known name has a series of its own
    metrics.refused("guess-1", "engine", "1")
    of = ("model=guess-1", "reason=BACKEND", "version=1")
    assert samples(metrics)["nv_inference_request_failure", *of] == 1


def test_a_version_that_went_leaves_nothing() -> None:
    metrics = busy()
    metrics.ready("birds", "2")
    metrics.request("birds", "2", {"total": 0.5})
    metrics.forget("birds", "1")
    left = samples(metrics)
    assert not [labels for labels in left if "version=1" in labels]
    assert left["ltdeploy_request_seconds_count", "model=birds", "stage=total"] == 2
    metrics.forget("birds", "2")
    assert not samples(metrics)
    metrics.ready("birds", "2")
    metrics.request("birds", "2", {"total": 0.5})
    assert samples(metrics)["ltdeploy_request_seconds_count", "model=birds", "stage=total"] == 1


def test_two_servers_in_one_process_share_nothing() -> None:
    assert samples(busy())
    assert not samples(Metrics())


def test_recording_and_reading_from_threads() -> None:
    metrics, start = Metrics(), threading.Barrier(4)

    def work(version: str) -> None:
        start.wait()
        for number in range(200):
            metrics.request("birds", version, {"total": 0.001})
            metrics.answered("birds", version, TABLE, np.array([number % 5]))
            if number % 50 == 0:
                metrics.render()

    threads = [threading.Thread(target=work, args=(str(n % 2),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    got = samples(metrics)
    for version in ("version=0", "version=1"):
        assert got["nv_inference_request_success", "model=birds", version] == 400
        assert got["ltdeploy_tail_window_predictions", "model=birds", version] == 400


def test_the_content_type_says_which_format() -> None:
    assert busy().render()[1].startswith("text/plain; version=0.0.4")


def rules() -> list[dict[str, Any]]:
    """Return the alert rules."""
    text = (DEPLOY / "alerts.yml").read_text(encoding="utf-8")
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """Return the dashboard's panels."""
    dashboard = json.loads((DEPLOY / "grafana.json").read_text(encoding="utf-8"))
    return list(dashboard["panels"])


def unexposed(expression: str) -> set[str]:
    """Return the metrics and labels of an expression that are not to be had."""
    got = samples(busy())
    names = {name for name, *_ in got}
    labels = {label.partition("=")[0] for key in got for label in key[1:]} | {"job", "instance"}
    asked = set(re.findall(r"\b(?:nv|ltdeploy)_\w+", expression))
    grouped = re.findall(r"(?:\bby|\bon|group_left)\s*\(([^)]*)\)", expression)
    matched = re.findall(r"[{,]\s*(\w+)\s*[=!]", expression)
    used = {name.strip() for text in grouped for name in text.split(",")} | set(matched)
    return (asked - names) | (used - labels)


def test_every_metric_that_alerts_ask_for_is_exposed() -> None:
    for rule in rules():
        assert not unexposed(rule["expr"]), rule["alert"]
        assert set(rule) >= {"alert", "expr", "labels", "annotations"}
    assert {rule["alert"] for rule in rules()} >= {
        "LtdeployTailQuiet",
        "LtdeployQueueFull",
        "LtdeployErrorRatio",
        "LtdeployModelNotReady",
    }


def test_every_metric_that_the_dashboard_asks_for_is_exposed() -> None:
    expressions = [target["expr"] for panel in panels() for target in panel["targets"]]
    assert len(expressions) >= len(panels())
    for expression in expressions:
        assert not unexposed(expression), expression
    places = [tuple(panel["gridPos"].values()) for panel in panels()]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_a_metric_that_is_not_exposed_would_be_seen() -> None:
    assert unexposed("sum by (model, nonsense) (rate(ltdeploy_nonsense_total{wrong='x'}[5m]))") == {
        "ltdeploy_nonsense_total",
        "nonsense",
        "wrong",
    }
