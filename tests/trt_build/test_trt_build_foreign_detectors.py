"""NVIDIA's parser and builder accept the graphs of ONNX detectors, decoding included."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_detector_samples as samples
import pytest
from trt_harness import Worker

from ltdeploy.classes import ClassTable
from ltdeploy.export.detection.detector_export import export_detector
from ltdeploy.models.detectors.onnx_detector import load_onnx_detector
from ltdeploy.models.detectors.onnx_mapping import OutputMapping
from ltdeploy.models.options import LoadOptions

pytestmark = [pytest.mark.trt_build, pytest.mark.slow]

BUILDERS = {"yolov5": samples.yolov5, "yolov8": samples.yolov8, "detr": samples.detr}
PROFILE = {"opt_batch": 2, "max_batch": 8}


@pytest.mark.parametrize("layout", list(BUILDERS))
def test_an_onnx_detector_builds(builder: Worker, tmp_path: Path, layout: str) -> None:
    path = samples.write(BUILDERS[layout](), tmp_path / "detector.onnx")
    told = OutputMapping.model_validate_json(json.dumps(samples.MAPPINGS[layout]))
    options = LoadOptions(classes=ClassTable(tuple("abcd"), (300, 150, 30, 8)))
    model = load_onnx_detector(path, told, options)
    bundle = export_detector(model, [], tmp_path / "detector.ltd").bundle
    answer = builder.ask("build", model=str(bundle.graph_path), options=PROFILE)
    assert "error" not in answer, answer["error"]
    assert answer["bytes"] > 1000
