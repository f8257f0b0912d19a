"""NVIDIA's parser and builder accept every detector as a graph of fixed sizes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from trt_harness import Worker

sys.path.append(str(Path(__file__).resolve().parents[1] / "export"))
from detector_samples import SAMPLES, exported, images

from ltdeploy.export.clean_up import clean_up
from ltdeploy.export.precision.recipe import cast_recipe, int8_recipe

pytestmark = [pytest.mark.trt_build, pytest.mark.slow]

PROFILE = {"opt_batch": 2, "max_batch": 8}


@pytest.mark.parametrize("family", SAMPLES)
def test_a_detector_builds(builder: Worker, tmp_path: Path, family: str) -> None:
    onnx.save(clean_up(exported(family)), tmp_path / "model.onnx")
    answer = builder.ask("build", model=str(tmp_path / "model.onnx"), options=PROFILE)
    assert "error" not in answer, answer["error"]
    assert answer["bytes"] > 1000


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
@pytest.mark.parametrize("family", ["rcnn", "retinanet", "rt_detr_v2"])
def test_a_lowered_detector_builds(
    builder: Worker, tmp_path: Path, family: str, precision: Any
) -> None:
    graph = clean_up(exported(family))
    int8 = precision == "int8"
    recipe = int8_recipe(graph, images(8).numpy()) if int8 else cast_recipe(graph, precision)
    onnx.save(recipe.make(()), tmp_path / "model.onnx")
    answer = builder.ask("build", model=str(tmp_path / "model.onnx"), options=PROFILE)
    assert "error" not in answer, answer["error"]
    assert answer["bytes"] > 1000
