"""NVIDIA's parser and builder accept every detector as a graph of fixed sizes."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import pytest
from trt_harness import Worker

sys.path.append(str(Path(__file__).resolve().parents[1] / "export"))
from detector_samples import DETECTORS, exported

from ltdeploy.export.clean_up import clean_up

pytestmark = [pytest.mark.trt_build, pytest.mark.slow]

PROFILE = {"opt_batch": 2, "max_batch": 8}


@pytest.mark.parametrize("family", DETECTORS)
def test_a_detector_builds(builder: Worker, tmp_path: Path, family: str) -> None:
    onnx.save(clean_up(exported(family)), tmp_path / "model.onnx")
    answer = builder.ask("build", model=str(tmp_path / "model.onnx"), options=PROFILE)
    assert "error" not in answer, answer["error"]
    assert answer["bytes"] > 1000
