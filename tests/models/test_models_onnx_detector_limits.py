"""ONNX detectors at the limits: what a fix does not reach, what a background is, bare files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_detector_samples as samples
import pytest
from onnx import TensorProto, helper, numpy_helper

from ltdeploy.classes import ClassTable
from ltdeploy.errors import CheckpointError
from ltdeploy.models.detectors.onnx_detector import OnnxDetector, load_onnx_detector
from ltdeploy.models.detectors.onnx_guess import look_at
from ltdeploy.models.detectors.onnx_mapping import OutputMapping
from ltdeploy.models.loading import load_model
from ltdeploy.models.options import LoadOptions


def loaded(graph: onnx.ModelProto, layout: str, folder: Path, **changes: Any) -> OnnxDetector:
    told = json.dumps({**samples.MAPPINGS[layout], **changes})
    path = samples.write(graph, folder / "detector.onnx")
    return load_onnx_detector(path, OutputMapping.model_validate_json(told), LoadOptions())


def detr(*, moved: bool) -> onnx.ModelProto:
    """Return class logits from a convolution, a constant added to them once they were moved."""
    graph = samples.Graph(1)
    features = graph.levels()[1]
    flat = graph.reshape(graph.conv(features, 12, samples.CLASSES + 1), samples.CLASSES + 1, 16)
    logits = graph.add("Transpose", flat, perm=[0, 2, 1])
    if moved:
        logits = graph.add("Add", logits, graph.drawn(samples.CLASSES + 1))
    rows = graph.add("Transpose", graph.reshape(features, 12, 16), perm=[0, 2, 1])
    graph.result(logits, "logits", 16, samples.CLASSES + 1)
    boxes = graph.add("Sigmoid", graph.add("MatMul", rows, graph.drawn(12, 4)))
    graph.result(boxes, "pred_boxes", 16, 4)
    return graph.model()


def test_what_is_added_where_a_fix_does_not_reach_is_refused(tmp_path: Path) -> None:
    assert loaded(detr(moved=False), "detr", tmp_path).head.classes == samples.CLASSES + 1
    with pytest.raises(
        CheckpointError, match=r"the Add 'Add_\d+' changes.*supported are an Add and"
    ):
        loaded(detr(moved=True), "detr", tmp_path)


def test_sigmoids_have_no_background_unless_it_is_said(tmp_path: Path) -> None:
    columns = samples.CLASSES + 1
    model = loaded(detr(moved=False), "detr", tmp_path, activation="sigmoid")
    assert model.head.background is None
    assert len(model.score_rule.foreground(columns)) == columns
    told = loaded(detr(moved=False), "detr", tmp_path, activation="sigmoid", background="last")
    assert told.head.background == samples.CLASSES
    assert loaded(detr(moved=False), "detr", tmp_path).head.background == samples.CLASSES


def test_a_background_given_wrongly_is_noticed(tmp_path: Path) -> None:
    """A layer whose last column has by far the largest bias, called the first's by the mapping."""
    graph = detr(moved=False)
    (bias,) = (
        one
        for one in graph.graph.initializer
        if list(one.dims) == [samples.CLASSES + 1] and one.data_type == TensorProto.FLOAT
    )
    values = np.array([-1, -1, -1, -1, 3], np.float32)
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    right = loaded(graph, "detr", tmp_path).source.notes
    assert not any("Warning" in note for note in right)
    wrong = loaded(graph, "detr", tmp_path, background="first").source.notes
    (warned,) = (note for note in wrong if "Warning" in note)
    assert "the mapping has the background in column 0" in warned
    assert "that of column 4, at the other end (3; of column 0 -1)" in warned


def test_a_table_of_all_columns_is_told_how_to_say_that_none_is_background(
    tmp_path: Path,
) -> None:
    model = loaded(detr(moved=False), "detr", tmp_path)
    model.classes = ClassTable(tuple("abcde"), (5, 4, 3, 2, 1))
    with pytest.raises(CheckpointError, match=r'has 5.*"background": "none" in the mapping'):
        model.require_complete()
    model = loaded(detr(moved=False), "detr", tmp_path, background="none")
    model.classes = ClassTable(("a", "b"), (3, 1))
    with pytest.raises(CheckpointError, match=r"has 2\..*background\.$"):
        model.require_complete()


def test_a_file_that_takes_nothing_gets_no_mapping(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 8, 80])
    stored = numpy_helper.from_array(np.zeros((1, 8, 80), "float32"), "stored")
    node = helper.make_node("Identity", ["stored"], ["out"])
    graph = helper.make_graph([node], "constant", [], [value], [stored])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = samples.write(made, tmp_path / "d.onnx")
    seen = look_at(path)
    assert seen.layout == "yolov8"
    assert seen.mapping() is None
    with pytest.raises(CheckpointError, match=r"takes nothing and gives 'out'"):
        load_model(path)
