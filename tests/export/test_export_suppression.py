"""Suppression inside the graph gives what the predictor makes of the raw outputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_detector_samples as samples
import pytest
import torch
from detector_samples import SIZE, exported, images
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ltdeploy
from ltdeploy.boxes import Detections
from ltdeploy.canvas import Canvas
from ltdeploy.datasets import open_boxes
from ltdeploy.datasets.labels import read_class_csv
from ltdeploy.detection_rules import KeepRule, ScoreRule
from ltdeploy.engines.one_by_one import any_batch
from ltdeploy.errors import DataError, ExportError, UsageError
from ltdeploy.export.detection import kept_export
from ltdeploy.export.detection.detector_checks import detections_of
from ltdeploy.export.detection.detector_export import export_detector
from ltdeploy.export.detection.foreign_batch import for_one_image
from ltdeploy.export.detection.kept_detections import KEPT, KeptDetections, keep_inside, rule_inside
from ltdeploy.export.precision.gate_run import on_onnxruntime
from ltdeploy.models.detectors.onnx_detector import OnnxDetector
from ltdeploy.models.detectors.onnx_mapping import read_mapping
from ltdeploy.models.loading import load_model
from ltdeploy.models.options import LoadOptions
from ltdeploy.pairing import pair

CANVAS = Canvas(*SIZE)
SIGMOID, SOFTMAX = ScoreRule("sigmoid"), ScoreRule("softmax", background=0)
FAMILIES = {
    "fcos": (ScoreRule("sigmoid", quality="sqrt"), KeepRule()),
    "rcnn": (SOFTMAX, KeepRule(class_agnostic=True, top_k=20)),
    "rt_detr_v2": (SIGMOID, KeepRule(suppression="none", top_k=30)),
}


def assert_same(ours: Detections, theirs: Detections) -> None:
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5)
    np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_keeps_what_the_predictor_keeps(family: str) -> None:
    scores, rule = FAMILIES[family]
    keep = rule_inside(rule)
    raw = exported(family)
    kept = keep_inside(raw, KeptDetections(scores, keep, CANVAS))
    onnx.checker.check_model(kept, full_check=True)
    assert not kept.graph.value_info
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
    candidates=st.sampled_from([None, 30]),
)
def test_it_is_the_rule_of_the_predictor(
    seed: int,
    rule: ScoreRule,
    own_boxes: bool,
    top_k: int,
    threshold: float,
    iou: float,
    agnostic: bool,
    candidates: int | None,
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
        KeepRule(
            score_threshold=threshold,
            top_k=top_k,
            iou=iou,
            class_agnostic=agnostic,
            candidates=candidates,
        )
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
    assert rule_inside(KeepRule()) == KeepRule()
    assert rule_inside(KeepRule(), masks=True).top_k == 100


def run_module(
    rule: ScoreRule, keep: KeepRule, outputs: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    module = KeptDetections(rule, keep, CANVAS)
    found = module(*(torch.from_numpy(values) for values in outputs.values()))
    return {name: values.numpy() for name, values in zip(KEPT, found, strict=True)}


@pytest.mark.parametrize("boxes_in_a_row", [33, 34, 60, 200])
def test_no_box_comes_twice_from_a_long_chain(boxes_in_a_row: int) -> None:
    """Each box overlaps the next by more than the rule allows, and no other."""
    left = 3.5 * np.arange(boxes_in_a_row)
    row = np.stack([left, 0 * left, left + 12, 0 * left + 12], axis=-1)
    logits = (4 - 0.02 * np.arange(boxes_in_a_row))[:, None]
    outputs = {"boxes": row[None].astype(np.float32), "logits": logits[None].astype(np.float32)}
    canvas = Canvas(32, 1024)
    (expected,) = detections_of(outputs, SIGMOID, KeepRule(), canvas)
    module = KeptDetections(SIGMOID, KeepRule(), canvas)
    boxes, scores, _ = (v.numpy()[0] for v in module(*map(torch.from_numpy, outputs.values())))
    kept = boxes[scores > 0]
    theirs = {tuple(box) for box in expected.boxes.round(3).tolist()}
    assert {tuple(box) for box in kept.round(3).tolist()} <= theirs
    assert len(kept) >= min(len(expected), 33)


def lvis_like(seed: int, classes: int = 1203, objects: int = 10) -> dict[str, np.ndarray]:
    """Return 1,000 proposals around a few objects, confident of one class and vague of many."""
    rng = np.random.default_rng(seed)
    rows = 1000
    centre, side = rng.uniform(8, 56, (objects, 2)), rng.uniform(6, 30, (objects, 2))
    of = rng.integers(0, objects, rows)
    low = centre[of] + rng.normal(0, 3, (rows, 2)) - side[of] / 2
    boxes = np.concatenate([low, low + side[of] * rng.uniform(0.8, 1.2, (rows, 2))], axis=-1)
    logits = rng.normal(0, 1, (rows, classes + 1)) + rng.normal(0, 1.5, (objects, classes + 1))[of]
    logits[np.arange(rows), 1 + of] += 6
    logits[:, 0] += 5
    return {"boxes": boxes[None].astype(np.float32), "logits": logits[None].astype(np.float32)}


@pytest.mark.parametrize("seed", range(3))
def test_confident_classes_leave_room_for_the_rare(seed: int) -> None:
    """Of 1.2 million candidates 2,000 are looked at: those of rare classes must be among them."""
    outputs = lvis_like(seed)
    (expected,) = detections_of(outputs, SOFTMAX, KeepRule(), CANVAS)
    kept = run_module(SOFTMAX, KeepRule(), outputs)
    (found,) = detections_of(kept, SOFTMAX, KeepRule(), CANVAS)
    missing = expected.scores[pair(expected, found) < 0]
    print(len(expected), len(missing), missing.max(initial=0))
    assert len(expected) == 300
    assert len(missing) <= 6
    assert missing.max(initial=0.0) < 0.01


@pytest.mark.parametrize(
    ("name", "wrong"), [("logits", np.nan), ("boxes", np.nan), ("boxes", np.inf)]
)
def test_what_is_not_finite_is_not_taken_for_nothing(name: str, wrong: float) -> None:
    outputs = lvis_like(0, classes=12)
    outputs[name][0, 700, 1] = wrong
    kept = run_module(SOFTMAX, KeepRule(), outputs)
    with pytest.raises(DataError, match="not finite"):
        detections_of(kept, SOFTMAX, KeepRule(), CANVAS)


def test_a_graph_for_one_photograph_stays_one() -> None:
    keep = rule_inside(KeepRule(top_k=10))
    kept = keep_inside(for_one_image(exported("rcnn")), KeptDetections(SOFTMAX, keep, CANVAS))
    for value in (*kept.graph.input, *kept.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_value == 1
    outputs = any_batch(on_onnxruntime(kept)).run({"images": images(3).numpy()})
    assert outputs["labels"].shape == (3, 10)


@pytest.fixture(scope="module")
def made(module_folder: Path) -> Path:
    """Return a folder with an ONNX detector, photographs and a bundle that suppresses itself."""
    samples.write_all(module_folder, batch="n")
    data = open_boxes(str(module_folder / "boxes-0.json"))
    done = export_detector(
        detector(module_folder), [], module_folder / "det.ltd", images=data, nms_in_graph=True
    )
    assert done.inside is not None
    assert done.inside.checks.detections > 20
    assert done.inside.checks.score_difference < 1e-6
    return module_folder


def detector(folder: Path) -> OnnxDetector:
    options = LoadOptions(classes=read_class_csv(folder / "classes.csv"))
    model = load_model(
        folder / "y.onnx", options=options, outputs=read_mapping(folder / "outputs.json")
    )
    assert isinstance(model, OnnxDetector)
    return model


def test_a_bundle_predicts_and_replays_its_golden_samples(made: Path) -> None:
    with ltdeploy.load_detector(made / "det.ltd", engine="onnxruntime", verify=True) as predictor:
        assert [one.name for one in predictor.bundle.manifest.graphs[0].outputs] == list(KEPT)
        onnx.checker.check_model(str(made / "det.ltd" / "model.onnx"), full_check=True)
        answer = predictor(made / "images" / "0-1.png", min_score=0.0)
    assert len(answer.found) > 5
    assert max(one.box[2] for one in answer.found) <= 160  # the photograph's pixels


Cli = Callable[..., tuple[int, str, str]]


def test_verify_takes_it(cli: Cli, made: Path) -> None:
    data = made / "boxes-0.json"
    # Another engine may order equal scores otherwise, at the cut behind the best 300.
    how = ("--data", data, "--engine", "onnxruntime", "--json", "v.json")
    code, said, _ = cli("verify", made / "det.ltd", *how)
    assert (code, json.loads(Path("v.json").read_text())["verdict"]) == (0, "pass")
    assert "PASS" in said


def test_export_says_so(cli: Cli, made: Path) -> None:
    data = made / "boxes-0.json"
    code, said, _ = cli(
        "export", made / "y.onnx", "--outputs", made / "outputs.json", "--nms-in-graph",
        "--classes", made / "classes.csv", "--val", data, "--out", "d.ltd", "--json", "-",
    )  # fmt: skip
    told = json.loads(said)
    assert code == 0
    assert told["nms_in_graph"]["detections"] > 20


def test_a_graph_of_low_precision_suppresses_too(cli: Cli, made: Path) -> None:
    """One detection of these changes places at fp16's last digit: no reason to refuse the graph."""
    code, said, error = cli(
        "export", made / "y.onnx", "--outputs", made / "outputs.json", "--classes",
        made / "classes.csv", "--precision", "fp16", "--engine", "openvino", "--nms-in-graph",
        "--out", "low.ltd", "--json", "-",
    )  # fmt: skip
    assert code == 0, error
    told = json.loads(said)
    assert told["precision"] == "fp16"
    assert told["nms_in_graph"]["detections"] > 20


def test_a_wrong_suppression_is_noticed(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(graph: onnx.ModelProto, behind: KeptDetections, *rest: Any) -> onnx.ModelProto:
        behind.keep = replace(behind.keep, iou=0.05)
        return keep_inside(graph, behind, *rest)

    monkeypatch.setattr(kept_export, "keep_inside", other)
    model = detector(made)
    data = open_boxes(str(made / "boxes-0.json"))
    with pytest.raises(ExportError, match="differs from the predictor's"):
        export_detector(model, [], tmp_path / "x.ltd", images=data, nms_in_graph=True)
    assert not (tmp_path / "x.ltd").exists()


def test_classifiers_are_refused(cli: Cli, tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.ones(3, 4), "fc.bias": torch.zeros(3)}, tmp_path / "c.pt")
    code, _, said = cli("export", tmp_path / "c.pt", "--nms-in-graph")
    assert code == 2
    assert said
