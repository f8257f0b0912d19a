"""NVIDIA's parser and builder accept every graph that we export, at every precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import trt_graphs
from onnx import TensorProto, helper
from trt_harness import Worker

pytestmark = pytest.mark.trt_build

PROFILE = {"opt_batch": 2, "max_batch": 8}
Build = Callable[[onnx.ModelProto, str], dict[str, Any]]


@pytest.fixture
def build(builder: Worker, tmp_path: Path) -> Build:
    """Return a function that builds a plan of a graph at a precision."""

    def built(model: onnx.ModelProto, precision: str) -> dict[str, Any]:
        path = tmp_path / "model.onnx"
        onnx.save(trt_graphs.at(model, precision), path)
        return builder.ask("build", model=str(path), options=PROFILE)

    return built


def assert_built(answer: dict[str, Any]) -> None:
    assert "error" not in answer, answer["error"]
    assert answer["bytes"] > 1000


@pytest.mark.slow
@pytest.mark.parametrize("precision", trt_graphs.PRECISIONS)
@pytest.mark.parametrize("name", trt_graphs.ARCHITECTURES)
def test_a_family_builds(build: Build, name: str, precision: str) -> None:
    assert_built(build(trt_graphs.architecture(name), precision))


@pytest.mark.slow
@pytest.mark.parametrize("precision", trt_graphs.PRECISIONS)
@pytest.mark.parametrize("name", trt_graphs.FULL_SIZE)
def test_a_network_of_full_size_builds(build: Build, name: str, precision: str) -> None:
    assert_built(build(trt_graphs.architecture(name), precision))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", trt_graphs.STEPS)
def test_a_fix_left_as_nodes_builds(build: Build, folder: Path, name: str, precision: str) -> None:
    assert_built(build(trt_graphs.stepped(name, folder), precision))


def test_a_detector_somebody_else_exported_builds(builder: Worker, data_dir: Path) -> None:
    model = data_dir / "fastestdet" / "FastestDet.onnx"
    assert_built(builder.ask("build", model=str(model), options=PROFILE))


@pytest.mark.parametrize(
    "options",
    [
        {"version_compatible": True},
        {"hardware_compatible": "ampere_plus"},
        {"hardware_compatible": "same_compute_capability"},
        {"workspace_bytes": 64 << 20},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_way_to_build_is_accepted(
    builder: Worker, tmp_path: Path, options: dict[str, Any]
) -> None:
    onnx.save(small(cast_first=True), tmp_path / "model.onnx")
    answer = builder.ask("build", model=str(tmp_path / "model.onnx"), options=PROFILE | options)
    assert_built(answer)
    assert answer["workspace_bytes"] == options.get("workspace_bytes", answer["workspace_bytes"])


def test_a_timing_cache_is_taken_up_again(builder: Worker, tmp_path: Path) -> None:
    onnx.save(small(cast_first=True), tmp_path / "model.onnx")
    job = {"model": str(tmp_path / "model.onnx"), "options": PROFILE}
    for content in (None, "of the first build", b"damaged"):
        if isinstance(content, bytes):
            (tmp_path / "timing").write_bytes(content)
        assert_built(builder.ask("build", timing=str(tmp_path / "timing"), **job))
        assert (tmp_path / "timing").stat().st_size > 10


def small(*, cast_first: bool) -> onnx.ModelProto:
    """Return a classifier that transposes its uint8 images after casting them, or before."""
    order = [("Cast", {"to": TensorProto.FLOAT}), ("Transpose", {"perm": [0, 3, 1, 2]})]
    steps = order if cast_first else order[::-1]
    nodes = [
        helper.make_node(kind, [source], [target], name=kind, **attributes)
        for (kind, attributes), source, target in zip(
            steps, ("images", "between"), ("between", "planes"), strict=True
        )
    ]
    nodes.append(helper.make_node("GlobalAveragePool", ["planes"], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["logits"]))
    value = helper.make_tensor_value_info
    images = value("images", TensorProto.UINT8, ["n", 8, 8, 3])
    logits = value("logits", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "small", [images], [logits])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_what_tensorrt_refuses_is_named(builder: Worker, tmp_path: Path) -> None:
    onnx.save(small(cast_first=False), tmp_path / "model.onnx")
    answer = builder.ask("build", model=str(tmp_path / "model.onnx"), options=PROFILE)
    assert "Transpose" in answer["error"]
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    answer = builder.ask("build", model=str(tmp_path / "model.onnx"), options=PROFILE)
    assert "does not read this graph" in answer["error"]


def test_an_image_size_that_is_not_fixed_is_refused(builder: Worker, tmp_path: Path) -> None:
    model = small(cast_first=True)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "height"
    onnx.save(model, tmp_path / "model.onnx")
    answer = builder.ask("build", model=str(tmp_path / "model.onnx"), options=PROFILE)
    assert "expected all axes but the first to be fixed" in answer["error"]


def test_without_a_gpu_the_library_itself_says_so(builder: Worker, tmp_path: Path) -> None:
    onnx.save(small(cast_first=True), tmp_path / "model.onnx")
    plan = tmp_path / "model.plan"
    job = {"model": str(tmp_path / "model.onnx"), "options": PROFILE, "out": str(plan)}
    assert_built(builder.ask("build", **job))
    said = builder.ask("load", plan=str(plan))
    if "error" not in said:
        pytest.skip("this machine has a GPU")
    assert "cannot load this plan" in said["error"]
    assert "cuda" in said["error"].lower()
    assert "driver" in builder.ask("doctor")["error"]
