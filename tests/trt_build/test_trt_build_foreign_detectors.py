"""NVIDIA's parser and builder accept the graphs of ONNX detectors, decoding included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx_detector_samples as samples
import pytest
from trt_harness import Worker

from ltdeploy.classes import ClassTable
from ltdeploy.export.detection.detector_export import export_detector
from ltdeploy.models.detectors.onnx_detector import load_onnx_detector
from ltdeploy.models.detectors.onnx_mapping import OutputMapping
from ltdeploy.models.options import LoadOptions

pytestmark = [pytest.mark.trt_build, pytest.mark.slow]

FASTESTDET = {
    "layout": "fastestdet",
    "canvas": {"fit": "squash", "channels": "bgr", "mean": [0, 0, 0], "std": [1, 1, 1]},
}
BUILDERS = {"yolov5": samples.yolov5, "yolov8": samples.yolov8, "detr": samples.detr}
PROFILE = {"opt_batch": 2, "max_batch": 8}


@pytest.mark.parametrize("layout", list(BUILDERS))
def test_an_onnx_detector_builds(builder: Worker, tmp_path: Path, layout: str) -> None:
    path = samples.write(BUILDERS[layout](), tmp_path / "detector.onnx")
    table = ClassTable(tuple("abcd"), (300, 150, 30, 8))
    require_built(builder, path, samples.MAPPINGS[layout], table, tmp_path)


def test_fastestdet_builds(builder: Worker, tmp_path: Path, data_dir: Path) -> None:
    path = data_dir / "fastestdet" / "FastestDet.onnx"
    table = ClassTable(tuple(f"class {at}" for at in range(80)), tuple(range(800, 0, -10)))
    require_built(builder, path, FASTESTDET, table, tmp_path)


def require_built(
    builder: Worker, path: Path, mapping: dict[str, Any], table: ClassTable, folder: Path
) -> None:
    """Fail unless the builder makes an engine of the bundle's graph."""
    told = OutputMapping.model_validate_json(json.dumps(mapping))
    model = load_onnx_detector(path, told, LoadOptions(classes=table))
    bundle = export_detector(model, [], folder / "detector.ltd").bundle
    answer = builder.ask("build", model=str(bundle.graph_path), options=PROFILE)
    assert "error" not in answer, answer["error"]
    assert answer["bytes"] > 1000
