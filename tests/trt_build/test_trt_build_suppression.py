"""NVIDIA's parser and builder accept detectors that suppress inside the graph."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import pytest
from trt_harness import Worker

sys.path.append(str(Path(__file__).resolve().parents[1] / "export"))
from detector_samples import SIZE, exported

from ltdeploy.canvas import Canvas
from ltdeploy.detection_rules import KeepRule, ScoreRule
from ltdeploy.export.clean_up import clean_up
from ltdeploy.export.detection.kept_detections import KeptDetections, keep_inside, rule_inside

pytestmark = [pytest.mark.trt_build, pytest.mark.slow]

RULES = {
    "fcos": (ScoreRule("sigmoid", quality="sqrt"), KeepRule()),
    "rcnn": (ScoreRule("softmax", background=0), KeepRule()),
    "detr": (ScoreRule("softmax", background=4), KeepRule(suppression="none")),
}


@pytest.mark.parametrize("family", RULES)
def test_a_graph_that_suppresses_builds(builder: Worker, tmp_path: Path, family: str) -> None:
    scores, keep = RULES[family]
    graph = keep_inside(
        clean_up(exported(family)), KeptDetections(scores, rule_inside(keep), Canvas(*SIZE))
    )
    onnx.save(graph, tmp_path / "model.onnx")
    options = {"opt_batch": 2, "max_batch": 8}
    answer = builder.ask("build", model=str(tmp_path / "model.onnx"), options=options)
    assert "error" not in answer, answer["error"]
    assert answer["bytes"] > 1000
