"""Foreign ONNX classifiers: the head is read in any orientation and written back in place."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_samples import CLASSES, COUNTS, drawn
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from ltdeploy.classes import ClassTable
from ltdeploy.errors import CheckpointError
from ltdeploy.models.architectures import build
from ltdeploy.models.classifier import LoadOptions, load_checkpoint
from ltdeploy.models.onnx_classifier import OnnxClassifier
from ltdeploy.preprocessing import Preprocessing

TOLD = {"resize": "none", "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
FEATURES = 5
RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(CLASSES, FEATURES)).astype(np.float32)
BIAS = RNG.normal(size=CLASSES).astype(np.float32)


def graph(
    *,
    head: str = "gemm",
    bias: bool = True,
    end: tuple[str, ...] = (),
    layout: str = "NCHW",
    stored: str = "initializer",
    alpha: float = 1.0,
    batch: str | int = "N",
    dtype: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """Write a small classifier: 1×1 convolution, pooling, head."""
    weights = [
        numpy_helper.from_array(np.eye(FEATURES, 3, dtype=np.float32)[..., None, None], "conv.w")
    ]
    nodes = []
    shape = [batch, 3, 8, 8] if layout == "NCHW" else [batch, 8, 8, 3]
    source = "x"
    if layout == "NHWC":
        nodes.append(helper.make_node("Transpose", ["x"], ["x_nchw"], perm=[0, 3, 1, 2]))
        source = "x_nchw"
    nodes += [
        helper.make_node("Conv", [source, "conv.w"], ["map"]),
        helper.make_node("GlobalAveragePool", ["map"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
    ]
    matrix = WEIGHT if head == "gemm" else WEIGHT.T
    name = "head.w"
    if stored == "transposed":
        matrix, name = np.ascontiguousarray(matrix.T), "head.t"
        nodes.append(helper.make_node("Transpose", ["head.w"], ["head.t"], perm=[1, 0]))
        weights.append(numpy_helper.from_array(matrix, "head.w"))
    elif stored == "constant":
        value = numpy_helper.from_array(np.ascontiguousarray(matrix))
        nodes.append(helper.make_node("Constant", [], ["head.w"], value=value))
    else:
        weights.append(numpy_helper.from_array(np.ascontiguousarray(matrix), "head.w"))
    if bias:
        weights.append(numpy_helper.from_array(BIAS, "head.b"))
    if head.startswith("gemm"):
        inputs = ["features", name, *(["head.b"] if bias else [])]
        turned = 1 if head == "gemm" else 0
        nodes.append(helper.make_node("Gemm", inputs, ["z"], "gemm", transB=turned, alpha=alpha))
    else:
        nodes.append(helper.make_node("MatMul", ["features", name], ["mm" if bias else "z"]))
        if bias:
            order = ["head.b", "mm"] if head == "matmul_left" else ["mm", "head.b"]
            nodes.append(helper.make_node("Add", order, ["z"]))
    last = "z"
    for i, op in enumerate(end):
        nodes.append(helper.make_node(op, [last], [f"end{i}"]))
        last = f"end{i}"
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, [batch, CLASSES])],
        weights,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    return model


def load(path: Path, model: onnx.ModelProto, **options: Any) -> OnnxClassifier:
    path.write_bytes(model.SerializeToString())
    loaded = load_checkpoint(path, options=LoadOptions(**(TOLD | options)))
    assert isinstance(loaded, OnnxClassifier)
    return loaded


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    (result,) = ReferenceEvaluator(model).run(None, {model.graph.input[0].name: images})
    return np.asarray(result)


def expected(images: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    features = np.zeros((len(images), FEATURES))
    features[:, :3] = images.mean((2, 3))
    return features @ weight.T + (0 if bias is None else bias)


IMAGES = RNG.normal(size=(2, 3, 8, 8)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    head=st.sampled_from(["gemm", "gemm_plain", "matmul", "matmul_left"]),
    bias=st.booleans(),
    new_bias=st.booleans(),
    end=st.sampled_from([(), ("Identity",), ("Softmax",), ("Identity", "LogSoftmax")]),
    layout=st.sampled_from(["NCHW", "NHWC"]),
    stored=st.sampled_from(["initializer", "constant", "transposed"]),
)
def test_any_orientation_reads_and_writes(
    tmp_path_factory: pytest.TempPathFactory,
    head: str,
    bias: bool,
    new_bias: bool,
    end: tuple[str, ...],
    layout: str,
    stored: str,
) -> None:
    original = graph(head=head, bias=bias, end=end, layout=layout, stored=stored)
    model = load(tmp_path_factory.mktemp("onnx") / "x.onnx", original)
    np.testing.assert_array_equal(model.head.weight, WEIGHT.astype(np.float64))
    assert (model.head.bias is not None) == bias
    logits = expected(IMAGES, WEIGHT, BIAS if bias else None)
    np.testing.assert_allclose(run(model.model, IMAGES), logits, rtol=1e-4, atol=1e-5)
    weight, shift = 2 * model.head.weight, np.arange(CLASSES) if new_bias else None
    changed = model.with_head(weight, shift)
    np.testing.assert_allclose(
        run(changed, IMAGES), expected(IMAGES, weight, shift), rtol=1e-4, atol=1e-5
    )
    assert len(changed.graph.node) <= len(model.model.graph.node)
    stored_names = {t.name for t in changed.graph.initializer}
    assert not stored_names & {"head.w", "head.b"}
    np.testing.assert_allclose(run(model.model, IMAGES), logits, rtol=1e-4, atol=1e-5)


def test_the_factor_of_a_gemm_belongs_to_its_weight(tmp_path: Path) -> None:
    model = load(tmp_path / "x.onnx", graph(alpha=0.5))
    np.testing.assert_array_equal(model.head.weight, 0.5 * WEIGHT.astype(np.float64))


def test_a_weight_that_others_use_stays(tmp_path: Path) -> None:
    original = graph(head="matmul")
    original.graph.node.append(helper.make_node("Shape", ["head.w"], ["unused"]))
    changed = load(tmp_path / "x.onnx", original).with_head(WEIGHT.astype(np.float64), None)
    assert "head.w" in {t.name for t in changed.graph.initializer}


def test_attributes_of_a_classifier(tmp_path: Path) -> None:
    table = ClassTable.from_counts(COUNTS)
    model = load(tmp_path / "x.onnx", graph(end=("Softmax",)), classes=table)
    assert (model.arch, model.head_path, model.input_name) == ("onnx", "gemm", "x")
    assert model.require_complete() == table
    assert (model.preprocessing.height_px, model.preprocessing.resize_mode) == (8, "none")
    assert any("Softmax was taken off" in note for note in model.source.notes)
    assert onnx.load_model_from_string(model.logits_model()).graph.output[0].name == "z"


def test_a_frozen_batch_becomes_symbolic(tmp_path: Path) -> None:
    model = load(tmp_path / "x.onnx", graph(batch=1))
    assert run(model.model, IMAGES).shape == (2, CLASSES)
    assert any("batches of 1" in note for note in model.source.notes)


def test_missing_options_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(graph().SerializeToString())
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    for words in ("'gemm' 7 × 5", "8×8", "--resize or --crop-pct", "--mean", "--std"):
        assert words in str(caught.value)
    assert "--image-size" not in str(caught.value)
    with pytest.raises(CheckpointError, match="takes images of 8×8 pixels only"):
        load(path, graph(), image_size=16)


def test_graphs_that_are_not_classifiers(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    with pytest.raises(CheckpointError, match="ends in Relu"):
        load(path, graph(end=("Relu",)))
    with pytest.raises(CheckpointError, match="takes uint8 images"):
        load(path, graph(dtype=TensorProto.UINT8))
    two = graph()
    two.graph.output.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, None))
    with pytest.raises(CheckpointError, match="1 inputs and 2 outputs"):
        load(path, two)
    half = graph()
    stored = next(t for t in half.graph.initializer if t.name == "head.w")
    stored.CopyFrom(numpy_helper.from_array(WEIGHT.astype(np.float16), "head.w"))
    with pytest.raises(CheckpointError, match="float16"):
        load(path, half)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "absent.bin"])
def test_external_data_elsewhere_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(4096))
    model = graph()
    stored = next(t for t in model.graph.initializer if t.name == "head.w")
    stored.ClearField("raw_data")
    stored.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "140")):
        entry = stored.external_data.add()
        entry.key, entry.value = key, value
    with pytest.raises(CheckpointError, match="not a plain file beside it"):
        load(folder / "x.onnx", model)


def test_external_data_beside_the_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    onnx.save_model(graph(), path, save_as_external_data=True, location="x.data", size_threshold=0)
    model = load_checkpoint(path, options=LoadOptions(**TOLD))
    np.testing.assert_array_equal(model.head.weight, WEIGHT.astype(np.float64))


def test_a_network_that_torch_exported(tmp_path: Path) -> None:
    module = drawn(build("cifar:resnet20", CLASSES))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        module, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=({0: batch},)
    )
    stream = io.BytesIO()
    exported = torch.onnx.export(program, (), dynamo=True, verbose=False)
    assert exported is not None
    exported.save(stream)
    path = tmp_path / "x.onnx"
    path.write_bytes(stream.getvalue())
    model = load_checkpoint(path, options=LoadOptions(**TOLD))
    expected = module.get_submodule("linear").weight.detach().double().numpy()
    np.testing.assert_array_equal(model.head.weight, expected)
    assert model.head.bias is not None
    assert model.preprocessing.height_px == 32


def test_a_whole_preprocessing_leaves_nothing_missing(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(graph().SerializeToString())
    whole = Preprocessing(height_px=8, width_px=8, resize_px=9, interpolation="box")
    model = load_checkpoint(path, options=LoadOptions(preprocessing=whole))
    assert model.preprocessing == whole
    assert not any("--interpolation" in note for note in model.source.notes)
    other = LoadOptions(preprocessing=replace(whole, width_px=10))
    with pytest.raises(CheckpointError, match=r"told is 8×10.*takes images of 8×8 pixels only"):
        load_checkpoint(path, options=other)
