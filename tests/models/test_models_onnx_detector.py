"""ONNX detectors by a mapping: what is read, where the classes are found, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_detector_samples as samples
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from ltdeploy.arrays import sigmoid
from ltdeploy.canvas import Canvas
from ltdeploy.classes import ClassTable
from ltdeploy.engines.onnx_detector_reference import OnnxDetectorReference, detector_reference
from ltdeploy.engines.onnxruntime_engine import OnnxRuntimeEngine
from ltdeploy.errors import CheckpointError, EngineError, UsageError
from ltdeploy.models.detectors.onnx_decode import decode
from ltdeploy.models.detectors.onnx_detector import OnnxDetector, load_onnx_detector
from ltdeploy.models.detectors.onnx_guess import look_at
from ltdeploy.models.detectors.onnx_mapping import EXAMPLE, OutputMapping, read_mapping
from ltdeploy.models.detectors.onnx_rows import fold_rows
from ltdeploy.models.loading import load_model
from ltdeploy.models.onnx_classifier import OnnxClassifier
from ltdeploy.models.options import LoadOptions

BUILDERS = {"yolov5": samples.yolov5, "yolov8": samples.yolov8, "detr": samples.detr}
CANVAS = {"fit": "squash", "channels": "rgb", "mean": [0, 0, 0], "std": [1, 1, 1]}


def mapping(layout: str, **changes: Any) -> OutputMapping:
    told = {**samples.MAPPINGS[layout], **changes}
    return OutputMapping.model_validate_json(json.dumps(told))


def loaded(model: onnx.ModelProto, told: OutputMapping, folder: Path) -> OnnxDetector:
    path = samples.write(model, folder / "detector.onnx")
    return load_onnx_detector(path, told, LoadOptions())


@pytest.fixture(params=list(BUILDERS))
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def detector(layout: str, tmp_path: Path) -> OnnxDetector:
    return loaded(BUILDERS[layout](), mapping(layout), tmp_path)


def outputs_of(model: onnx.ModelProto, images: int = 1) -> dict[str, Any]:
    engine = OnnxRuntimeEngine(model.SerializeToString())
    rng = np.random.default_rng(3)
    side = samples.SIZE
    return engine.run({"pixels": rng.normal(size=(images, 3, side, side)).astype(np.float32)})


# What a mapping may say.


def test_the_example_of_the_errors_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text(EXAMPLE)
    told = read_mapping(path)
    assert told.score_rule(5).activation == "sigmoid"
    assert told.keep_rule().iou == 0.7
    again = tmp_path / "again.json"
    again.write_text(told.to_json())
    assert read_mapping(again) == told


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"canvas": CANVAS}, "lacks 'layout'; expected for example"),
        ({"layout": "yolov8"}, "lacks 'canvas'"),
        (
            {"layout": "yolov8", "canvas": {"channels": "rgb", "mean": [0, 0, 0]}},
            r"lacks 'canvas\.fit', 'canvas\.std'",
        ),
        (
            {"layout": "yolov8", "canvas": CANVAS, "activaton": "softmax"},
            "unknown key 'activaton'.*Did you mean 'activation'",
        ),
        (
            {"layout": "yolov8", "canvas": {**CANVAS, "chanels": "bgr"}},
            r"unknown key 'canvas\.chanels'.*Did you mean 'channels'",
        ),
        ({"layout": "yolo8", "canvas": CANVAS}, "layout.*'yolo8'.*Did you mean 'yolov8'"),
        ({"layout": "yolov8", "canvas": CANVAS, "powers": [1, 1]}, "'yolov8' has no 'powers'"),
        ({"layout": "yolov5", "canvas": CANVAS, "boxes": "b"}, "'yolov5' has no 'boxes'"),
        ({"layout": "detr", "canvas": CANVAS, "output": "b"}, "'detr' has no 'output'"),
        ({"layout": "yolov5", "canvas": CANVAS, "powers": [0, 1]}, "powers are"),
        ({"layout": "yolov8", "canvas": CANVAS, "keep": {"iou": 2}}, r"keep\.iou \(2\)"),
        ({"layout": "yolov8", "canvas": {**CANVAS, "mean": ["0", 0, 0]}}, r"canvas\.mean\.0"),
        ([1], "no JSON object"),
    ],
)
def test_what_is_wrong_in_a_mapping_is_named(
    content: object, complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=complaint):
        read_mapping(path)


def test_a_mapping_that_is_no_file_or_no_json(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_mapping(tmp_path / "absent.json")
    (tmp_path / "m.json").write_text("{")
    with pytest.raises(UsageError, match="is not JSON"):
        read_mapping(tmp_path / "m.json")


def test_mean_and_std_come_as_the_training_wrote_them() -> None:
    canvas = mapping("yolov8").canvas_for(64, 64)
    np.testing.assert_allclose(canvas.mean, np.array([120, 110, 100]) / 255)
    np.testing.assert_allclose(canvas.std, np.array([50, 55, 60]) / 255)


def test_the_size_comes_from_the_graph_or_the_mapping() -> None:
    told = mapping("detr", canvas={**CANVAS, "height_px": 64})
    assert told.canvas_for(64, 96).width_px == 96
    with pytest.raises(UsageError, match="lacks 'width_px'"):
        told.canvas_for(None, None)
    with pytest.raises(UsageError, match=r"canvas\.height_px is 64, and the graph takes 32"):
        told.canvas_for(32, 96)


# Where the classes are.


def test_the_layers_of_the_classes_are_found(detector: OnnxDetector, layout: str) -> None:
    layers = detector.layers
    assert [len(layer.rows) for layer in layers] == {
        "yolov5": [3, 3],  # anchors
        "yolov8": [1, 1],
        "detr": [1],
    }[layout]
    columns = samples.CLASSES + (layout == "detr")
    assert detector.head.classes == columns
    assert detector.head.weight.shape[1] == {"yolov5": 3 * 20, "yolov8": 20, "detr": 12}[layout]
    assert detector.head.background == (4 if layout == "detr" else None)
    if layout == "yolov5":  # box 4, objectness 1, classes: only the classes' rows
        assert layers[0].rows.tolist() == [[5, 6, 7, 8], [14, 15, 16, 17], [23, 24, 25, 26]]


def test_a_batch_norm_is_folded_before_norms_are_taken(tmp_path: Path) -> None:
    with_norm = loaded(samples.yolov8(norm=True), mapping("yolov8"), tmp_path)
    first = with_norm.layers[0]
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in with_norm.model.graph.initializer}
    norm = next(n for n in with_norm.model.graph.node if n.op_type == "BatchNormalization")
    gamma, beta, mean, variance = (stored[name] for name in norm.input[1:])
    conv = next(n for n in with_norm.model.graph.node if n.output[0] == norm.input[0])
    factor = gamma / np.sqrt(variance + 1e-3)
    weight, bias = stored[conv.input[1]].reshape(4, -1), stored[conv.input[2]]
    np.testing.assert_allclose(first.weight, weight * factor[:, None], rtol=1e-6)
    assert first.bias is not None
    np.testing.assert_allclose(first.bias, (bias - mean) * factor + beta, rtol=1e-5)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16), full=st.booleans(), named=st.sampled_from([*BUILDERS, "bare"]))
def test_a_folded_fix_is_the_fix_of_the_logits(seed: int, full: bool, named: str) -> None:
    import tempfile

    layout = "detr" if named == "bare" else named
    built = samples.detr(bias=False) if named == "bare" else BUILDERS[layout]()
    with tempfile.TemporaryDirectory() as folder:
        model = loaded(built, mapping(layout), Path(folder))
    rng, columns = np.random.default_rng(seed), model.head.classes
    scale = rng.normal(1, 0.3, (columns, columns) if full else columns)
    shift = rng.normal(0, 2, columns)
    before = model.bare()
    after = model.bare()
    fold_rows(after, model.layers, scale, shift)
    plain = decode(model.mapping, named_outputs(model, before), model.canvas)
    fixed = decode(model.mapping, named_outputs(model, after), model.canvas)
    matrix = scale if full else np.diag(scale)
    np.testing.assert_allclose(
        fixed.pop("logits"), plain.pop("logits") @ matrix.T + shift, rtol=1e-4, atol=1e-4
    )
    for name, values in plain.items():  # boxes and objectness stay as they were
        np.testing.assert_allclose(fixed[name], values, rtol=1e-5, atol=1e-5)


def named_outputs(model: OnnxDetector, graph: onnx.ModelProto) -> dict[str, Any]:
    found = outputs_of(graph)
    return {ours: found[theirs] for ours, theirs in model.names.items()}


def test_without_activations_the_graph_gives_logits(detector: OnnxDetector, layout: str) -> None:
    with_them = named_outputs(detector, detector.model)
    without = named_outputs(detector, detector.bare())
    if layout == "detr":
        assert not detector.trace.activations
    else:
        first, axis = (4, 2) if layout == "yolov5" else (4, 1)
        cut = (slice(None),) * axis
        logits = without["predictions"][(*cut, slice(first, None))]
        assert np.abs(logits).max() > 1  # no probabilities
        np.testing.assert_allclose(
            sigmoid(logits), with_them["predictions"][(*cut, slice(first, None))], atol=1e-6
        )
        boxes = (*cut, slice(0, 4))
        np.testing.assert_allclose(
            without["predictions"][boxes], with_them["predictions"][boxes], rtol=1e-6
        )


# Decoding, by hand.


def test_a_cell_of_fastestdet_by_hand() -> None:
    values = np.zeros((1, 5 + 2, 2, 4), np.float32)
    values[0, :, 1, 2] = [0.3, np.arctanh(0.5), 0.0, 0.0, np.log(3), 7, 8]
    told = OutputMapping.model_validate_json(json.dumps({"layout": "fastestdet", "canvas": CANVAS}))
    found = decode(told, {"predictions": values}, Canvas(100, 200))
    cell = 1 * 4 + 2  # row by row
    # centre ((2 + 0.5) / 4 · 200, (1 + 0) / 2 · 100), sides σ(0) · 200 and σ(log 3) · 100
    expected = [125 - 50, 50 - 37.5, 125 + 50, 50 + 37.5]
    np.testing.assert_allclose(found["boxes"][0, cell], expected, rtol=1e-6)
    assert found["logits"][0, cell].tolist() == [7, 8]
    assert found["quality"][0, cell] == np.float32(0.3)
    assert found["boxes"].shape == (1, 8, 4)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [10 * 2 - 3 * 2, 20 - 2, 10 * 2 + 3 * 2, 20 + 2]),
        ({"box_format": "xyxy"}, [20, 20, 12, 4]),
        ({"box_unit": "pixels"}, [0.1 - 0.03, 0.2 - 0.02, 0.1 + 0.03, 0.2 + 0.02]),
    ],
)
def test_a_box_of_detr_by_hand(changes: dict[str, str], expected: list[float]) -> None:
    boxes = np.array([[[0.1, 0.2, 0.06, 0.04]]], np.float32)
    logits = np.zeros((1, 1, 4), np.float32)
    found = decode(mapping("detr", **changes), {"boxes": boxes, "logits": logits}, Canvas(100, 200))
    np.testing.assert_allclose(found["boxes"][0, 0], expected, rtol=1e-5)


# The reference.


def test_the_reference_gives_the_networks_own_numbers(detector: OnnxDetector, layout: str) -> None:
    reference = detector_reference(detector)
    assert isinstance(reference, OnnxDetectorReference)
    side = samples.SIZE
    image = np.random.default_rng(1).integers(0, 256, (2, side, side, 3)).astype(np.uint8)
    found = reference.run({"images": image})
    told = samples.MAPPINGS[layout]["canvas"]
    pixels = image[1].astype(np.float64) * (told.get("white", 1) / 255)
    pixels = pixels[..., ::-1] if told["channels"] == "bgr" else pixels
    planes = ((pixels - told["mean"]) / told["std"]).transpose(2, 0, 1)[None].astype(np.float32)
    own = OnnxRuntimeEngine(detector.model.SerializeToString()).run({"pixels": planes})
    if layout == "detr":
        np.testing.assert_allclose(found["logits"][1], own["logits"][0], atol=1e-5)
        centres = found["boxes"][1].reshape(-1, 2, 2).mean(axis=1) / side
        np.testing.assert_allclose(centres, own["pred_boxes"][0, :, :2], atol=1e-6)
        return
    values = own["output0"][0] if layout == "yolov5" else own["output0"][0].T
    np.testing.assert_allclose(sigmoid(found["logits"][1]), values[:, -4:], atol=1e-6)
    sides = found["boxes"][1][:, 2:] - found["boxes"][1][:, :2]
    np.testing.assert_allclose(sides, values[:, 2:4], atol=1e-3)
    assert ("quality" in found) == (layout == "yolov5")
    assert set(found) == {spec.name for spec in reference.outputs}
    reference.close()
    with pytest.raises(EngineError, match="closed"):
        reference.run({"images": image})


def test_a_wrong_idea_of_the_activation_is_noticed(tmp_path: Path) -> None:
    model = loaded(samples.yolov8(), mapping("yolov8"), tmp_path)
    one = model.trace.activations[0]
    model.trace.activations[0] = replace(one, kind="softmax")
    with pytest.raises(EngineError, match="not what was understood of it"):
        detector_reference(model)


# What is refused.


def test_what_does_not_fit_the_file_is_refused(tmp_path: Path) -> None:
    path = samples.write(samples.yolov8(), tmp_path / "d.onnx")

    def refused(error: type[Exception], match: str, layout: str = "yolov8", **changes: Any) -> None:
        with pytest.raises(error, match=match):
            load_onnx_detector(path, mapping(layout, **changes), LoadOptions())

    refused(UsageError, r"no output 'output1'.*Did you mean 'output0'", output="output1")
    refused(UsageError, "has a sigmoid behind its classes.*says 'softmax'", activation="softmax")
    refused(UsageError, "cannot be told from 'output0'", "detr")
    refused(CheckpointError, "met the Mul .*Look at the mapping's layout", "yolov5")
    grid = {"layout": "fastestdet", "canvas": CANVAS}
    told = OutputMapping.model_validate_json(json.dumps(grid))
    with pytest.raises(UsageError, match=r"shape \[1, 8, 80\]; the layout 'fastestdet' is"):
        load_onnx_detector(path, told, LoadOptions())
    with pytest.raises(UsageError, match="says what an ONNX file gives"):
        load_model(tmp_path / "d.pt", outputs=mapping("yolov8"))
    model = load_onnx_detector(path, mapping("yolov8"), LoadOptions())
    with pytest.raises(CheckpointError, match="takes canvases of 64×64 pixels, and 96×64"):
        replace(model, canvas=replace(model.canvas, height_px=96))
    with pytest.raises(CheckpointError, match=r"tells 4 classes apart.*has 2"):
        replace(model, classes=ClassTable(("a", "b"), (3, 1))).require_complete()
    with pytest.raises(CheckpointError, match="--classes FILE"):
        model.require_complete()


def test_several_outputs_must_be_told_apart(tmp_path: Path) -> None:
    model = samples.yolov8()
    model.graph.output.append(helper.make_tensor_value_info("Concat_7.0", 1, None))
    with pytest.raises(UsageError, match=r'has 2 outputs.*"output": "output0"'):
        loaded(model, mapping("yolov8"), tmp_path)
    assert loaded(model, mapping("yolov8", output="output0"), tmp_path).head.classes == 4


def test_as_many_columns_as_a_box_has_numbers_must_be_told_apart(tmp_path: Path) -> None:
    model = samples.detr(classes=3)  # and the background
    with pytest.raises(UsageError, match=r"which outputs hold boxes.*cannot be told"):
        loaded(model, mapping("detr"), tmp_path)
    found = loaded(model, mapping("detr", boxes="pred_boxes"), tmp_path)
    assert found.names == {"boxes": "pred_boxes", "logits": "logits"}


def test_what_computes_with_the_classes_is_named(tmp_path: Path) -> None:
    model = samples.yolov8()
    (activation,) = (node for node in model.graph.node if node.op_type == "Sigmoid")
    place = list(model.graph.node).index(activation)
    logits, activation.input[0] = activation.input[0], "changed"
    model.graph.node.insert(place, helper.make_node("Mul", [logits, logits], ["changed"], "square"))
    with pytest.raises(CheckpointError, match=r"Passed Sigmoid.*met the Mul 'square'|'square'"):
        loaded(model, mapping("yolov8"), tmp_path)


def test_classes_that_the_graph_itself_reads_are_refused(tmp_path: Path) -> None:
    model = samples.yolov8()
    (activation,) = (node for node in model.graph.node if node.op_type == "Sigmoid")
    node = helper.make_node("ReduceMax", [activation.input[0]], ["best"], "choose", axes=[1])
    model.graph.node.append(node)
    with pytest.raises(CheckpointError, match="ReduceMax 'choose' too"):
        loaded(model, mapping("yolov8"), tmp_path)


def test_quantised_and_shared_batches_are_refused(tmp_path: Path) -> None:
    model = samples.yolov8()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    with pytest.raises(CheckpointError, match="batches of 4 images only"):
        loaded(model, mapping("yolov8"), tmp_path)


# What a file looks like.


def test_a_file_is_looked_at(layout: str, tmp_path: Path) -> None:
    path = samples.write(BUILDERS[layout](), tmp_path / "d.onnx")
    seen = look_at(path)
    assert seen.is_detector
    assert seen.layout == layout
    start = seen.mapping()
    assert start is not None
    told = OutputMapping.model_validate_json(json.dumps(start))
    assert load_onnx_detector(path, told, LoadOptions()).head.classes >= 4
    with pytest.raises(CheckpointError, match=f'looks like a detector.*"layout": "{layout}"'):
        load_model(path)


def test_a_classifier_is_not_taken_for_a_detector(tmp_path: Path) -> None:
    path = samples.write(samples.classifier(), tmp_path / "c.onnx")
    assert not look_at(path).is_detector
    options = LoadOptions(resize="squash", mean=(0, 0, 0), std=(1, 1, 1))
    assert isinstance(load_model(path, options=options), OnnxClassifier)


def test_outputs_without_a_layout_get_no_mapping(tmp_path: Path) -> None:
    graph = samples.Graph(1)
    graph.result(graph.levels()[0], "map", 8, 8, 8)
    graph.result(graph.add("Tanh", "map"), "other", 8, 8, 8)
    path = samples.write(graph.model(), tmp_path / "d.onnx")
    assert look_at(path).mapping() is None
    with pytest.raises(CheckpointError, match=r"with --outputs FILE\.json$"):
        load_model(path)
