"""Suppression inside the graph gives what the predictor makes of the raw outputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from box_samples import write_boxes, write_detector
from detector_samples import SIZE, exported, images
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ltdeploy
from ltdeploy.boxes import Detections
from ltdeploy.canvas import Canvas
from ltdeploy.datasets import open_boxes
from ltdeploy.detection_rules import KeepRule, ScoreRule
from ltdeploy.engines.one_by_one import any_batch
from ltdeploy.errors import ExportError, UsageError
from ltdeploy.export.detection import kept_export
from ltdeploy.export.detection.detector_checks import detections_of
from ltdeploy.export.detection.detector_export import export_detector
from ltdeploy.export.detection.foreign_batch import for_one_image
from ltdeploy.export.detection.kept_detections import KEPT, KeptDetections, keep_inside, rule_inside
from ltdeploy.export.precision.gate_run import on_onnxruntime
from ltdeploy.models.loading import load_model

CANVAS = Canvas(*SIZE)
SIGMOID, SOFTMAX = ScoreRule("sigmoid"), ScoreRule("softmax", background=0)
FAMILIES = {
    "fcos": (ScoreRule("sigmoid", quality="sqrt"), KeepRule()),
    "rcnn": (SOFTMAX, KeepRule(class_agnostic=True, top_k=20)),
    "rt_detr_v2": (SIGMOID, KeepRule(suppression="none", top_k=30)),
}


def assert_same(ours: Detections, theirs: Detections) -> None:
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-6)
    np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_keeps_what_the_predictor_keeps(family: str) -> None:
    scores, rule = FAMILIES[family]
    keep = rule_inside(rule)
    raw = exported(family)
    kept = keep_inside(raw, KeptDetections(scores, keep, CANVAS))
    onnx.checker.check_model(kept, full_check=True)
    assert [value.name for value in kept.graph.output] == list(KEPT)
    feeds = {"images": images(3).numpy()}
    expected = detections_of(on_onnxruntime(raw).run(feeds), scores, keep, CANVAS)
    engine = on_onnxruntime(kept)
    outputs = engine.run(feeds)
    assert outputs["labels"].dtype == np.int64
    for ours, theirs in zip(expected, detections_of(outputs, scores, keep, CANVAS), strict=True):
        assert len(ours) > 5
        assert_same(ours, theirs)
    alone = engine.run({"images": feeds["images"][1:2]})
    np.testing.assert_array_equal(alone["labels"][0], outputs["labels"][1])
    padding = outputs["scores"] == 0
    assert (outputs["labels"][padding] == -1).all()
    assert not outputs["boxes"][padding].any()


RULES = st.sampled_from(
    [
        SOFTMAX,
        ScoreRule("softmax", background=3),
        SIGMOID,
        ScoreRule("sigmoid", quality="product"),
        ScoreRule("softmax", quality="powers", powers=(0.4, 0.6)),
        ScoreRule("seesaw"),
        ScoreRule("eqlv2", background=3),
    ]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 10**6),
    rule=RULES,
    own_boxes=st.booleans(),
    top_k=st.sampled_from([3, 50]),
    threshold=st.sampled_from([1e-4, 0.2]),
    iou=st.sampled_from([0.3, 0.7]),
    agnostic=st.booleans(),
)
def test_it_is_the_rule_of_the_predictor(
    seed: int,
    rule: ScoreRule,
    own_boxes: bool,
    top_k: int,
    threshold: float,
    iou: float,
    agnostic: bool,
) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = 40, 4
    classes = len(rule.foreground(columns))
    shape = (2, rows, classes) if own_boxes else (2, rows)
    corner = rng.uniform(-10, 70, (*shape, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 40, (*shape, 2))], -1)
    boxes[:, ::7] = 0  # padding
    outputs = {
        "boxes": boxes.astype(np.float32),
        "logits": rng.normal(0, 2, (2, rows, columns)).astype(np.float32),
    }
    if rule.quality != "none":
        outputs["quality"] = rng.normal(0, 2, (2, rows)).astype(np.float32)
    keep = rule_inside(
        KeepRule(score_threshold=threshold, top_k=top_k, iou=iou, class_agnostic=agnostic)
    )
    module = KeptDetections(rule, keep, CANVAS)
    found = module(*(torch.from_numpy(values) for values in outputs.values()))
    kept = {name: values.numpy() for name, values in zip(KEPT, found, strict=True)}
    expected = detections_of(outputs, rule, keep, CANVAS)
    for ours, theirs in zip(expected, detections_of(kept, rule, keep, CANVAS), strict=True):
        assert_same(ours, theirs)


def test_rules_that_no_graph_follows_are_refused() -> None:
    with pytest.raises(UsageError, match="is soft, which takes one box after the other"):
        rule_inside(KeepRule(suppression="soft"))
    with pytest.raises(UsageError, match=r"at most 2,000 boxes.*rule 5,000"):
        rule_inside(KeepRule(top_k=5000))
    assert rule_inside(KeepRule()).candidates == 2000
    assert rule_inside(KeepRule(candidates=500)).candidates == 500
    assert rule_inside(KeepRule(suppression="none")).candidates is None


def test_a_graph_for_one_photograph_stays_one() -> None:
    keep = rule_inside(KeepRule(top_k=10))
    kept = keep_inside(for_one_image(exported("rcnn")), KeptDetections(SOFTMAX, keep, CANVAS))
    for value in (*kept.graph.input, *kept.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_value == 1
    outputs = any_batch(on_onnxruntime(kept)).run({"images": images(3).numpy()})
    assert outputs["labels"].shape == (3, 10)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a checkpoint, two data sets and a bundle that suppresses itself."""
    folder = tmp_path_factory.mktemp("suppression")
    write_detector(folder / "det.pt")
    write_boxes(folder, seed=0)
    write_boxes(folder, seed=1)
    model = load_model(folder / "det.pt")
    data = open_boxes(str(folder / "boxes-0.json"))
    done = export_detector(model, [], folder / "det.ltd", images=data, nms_in_graph=True)  # type: ignore[arg-type]
    assert done.inside is not None
    assert done.inside.checks.detections > 20
    assert done.inside.checks.score_difference < 1e-6
    return folder


def test_a_bundle_predicts_and_replays_its_golden_samples(made: Path) -> None:
    with ltdeploy.load_detector(made / "det.ltd", engine="onnxruntime", verify=True) as predictor:
        assert [one.name for one in predictor.bundle.manifest.graphs[0].outputs] == list(KEPT)
        assert predictor.keep_rule.candidates == 2000
        answer = predictor(made / "images" / "0-1.png", min_score=0.0)
    assert len(answer.found) > 5
    assert max(one.box[2] for one in answer.found) <= 160  # the photograph's pixels


Cli = Callable[..., tuple[int, str, str]]


def test_verify_takes_it(cli: Cli, made: Path) -> None:
    data = made / "boxes-1.json"
    code, said, _ = cli("verify", made / "det.ltd", "--data", data, "--json", "v.json")
    assert (code, json.loads(Path("v.json").read_text())["verdict"]) == (0, "pass")
    assert "PASS" in said


def test_export_says_so(cli: Cli, made: Path) -> None:
    data = made / "boxes-0.json"
    code, said, _ = cli(
        "export", made / "det.pt", "--nms-in-graph", "--val", data, "--out", "d.ltd", "--json", "-"
    )
    told = json.loads(said)
    assert code == 0
    assert told["nms_in_graph"]["detections"] > 20


def test_a_wrong_suppression_is_noticed(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(graph: onnx.ModelProto, behind: KeptDetections, *rest: Any) -> onnx.ModelProto:
        behind.keep = replace(behind.keep, iou=0.05)
        return keep_inside(graph, behind, *rest)

    monkeypatch.setattr(kept_export, "keep_inside", other)
    model = load_model(made / "det.pt")
    data = open_boxes(str(made / "boxes-0.json"))
    with pytest.raises(ExportError, match="differs from"):
        export_detector(model, [], tmp_path / "x.ltd", images=data, nms_in_graph=True)  # type: ignore[arg-type]
    assert not (tmp_path / "x.ltd").exists()


def test_classifiers_are_refused(cli: Cli, tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.ones(3, 4), "fc.bias": torch.zeros(3)}, tmp_path / "c.pt")
    code, _, said = cli("export", tmp_path / "c.pt", "--nms-in-graph")
    assert code == 2
    assert said
