"""Precision of graphs: which layers are which, casts, ranges, Q/DQ nodes."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from precision_samples import answers, float32_graph, pictures

from ltdeploy.engines.onnxruntime_engine import OnnxRuntimeEngine
from ltdeploy.engines.openvino_engine import OpenVinoEngine
from ltdeploy.errors import ExportError
from ltdeploy.export.checks import relative_difference
from ltdeploy.export.precision.cast import low_precision_nodes, to_low_precision
from ltdeploy.export.precision.layers import GraphLayers
from ltdeploy.export.precision.non_finite import first_non_finite, require_finite
from ltdeploy.export.precision.quantise import measure_ranges, quantise
from ltdeploy.export.precision.ranges import largest_values, out_of_range

IMAGES = pictures(8)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    return float32_graph(tmp_path_factory.mktemp("graph"))


def openvino(model: onnx.ModelProto) -> OpenVinoEngine:
    return OpenVinoEngine(model.SerializeToString())


def runtime(model: onnx.ModelProto) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(model.SerializeToString())


def test_a_network_has_a_stem_a_body_and_a_head(graph: onnx.ModelProto) -> None:
    layers = GraphLayers(graph)
    kinds = [layer.kind for layer in layers.weighted]
    assert kinds == ["Conv"] * 19 + ["Gemm"]
    assert layers.stem == {layers.weighted[0].name}
    assert layers.head == {layers.weighted[-1].name}
    assert layers.body == layers.weighted[1:-1]
    before = [layers.nodes[name].op_type for name in layers.before_stem()]
    assert sorted(before) == ["Add", "Cast", "Mul", "Transpose"]


def test_multiply_adds_are_counted(graph: onnx.ModelProto) -> None:
    layers = GraphLayers(graph)
    # Closed form: the stem 3 → 16 at 32², three stages of six 3×3 convolutions, 64 → 6 at the end.
    stem = 3 * 16 * 9 * 32**2
    stages = 6 * 16 * 16 * 9 * 32**2
    stages += (16 * 32 + 5 * 32 * 32) * 9 * 16**2 + (32 * 64 + 5 * 64 * 64) * 9 * 8**2
    assert layers.multiply_adds == stem + stages + 64 * 6
    assert layers.low_share(()) == pytest.approx(stages / layers.multiply_adds)
    everything = [layer.name for layer in layers.body]
    assert layers.low_share(everything) == 0.0


def test_products_of_two_activations_are_counted_and_are_no_layers() -> None:
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("MatMul", ["a", "w2"], ["b"], name="second"),
        helper.make_node("MatMul", ["b", "b"], ["c"], name="both"),
        helper.make_node("MatMul", ["c", "w"], ["y"], name="last"),
    ]
    stored = [numpy_helper.from_array(np.ones((4, 4), np.float32), n) for n in ("w", "w2")]
    shapes = [value(n, TensorProto.FLOAT, ["n", 4, 4]) for n in "abc"]
    io = [value(n, TensorProto.FLOAT, ["n", 4, 4]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", [io[0]], [io[1]], stored, value_info=shapes)
    layers = GraphLayers(helper.make_model(graph))
    assert layers.multiply_adds == 4 * 4**3
    assert [layer.name for layer in layers.body] == ["second"]


def test_sums_of_branches_are_found(graph: onnx.ModelProto) -> None:
    layers = GraphLayers(graph)
    body = [layer.name for layer in layers.body]
    assert len(layers.residual_adds(body)) == 9
    assert layers.residual_adds(()) == ()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_casts_leave_the_ends_in_float32(graph: onnx.ModelProto, precision: str) -> None:
    before = graph.SerializeToString()
    low = to_low_precision(graph, precision)
    assert graph.SerializeToString() == before
    stored = {tensor.name: tensor.data_type for tensor in low.graph.initializer}
    kind = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
    layers = GraphLayers(graph)
    for node in low.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            wanted = TensorProto.FLOAT if node.name in layers.head else kind
            assert {stored[name] for name in node.input[1:]} == {wanted}, node.name
    assert low.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert sum(node.op_type == "Cast" for node in low.graph.node) == 3  # pixels, down, up


@pytest.mark.parametrize(("precision", "step"), [("fp16", 2.0**-11), ("bf16", 2.0**-8)])
def test_casts_cost_a_few_steps_of_their_precision(
    graph: onnx.ModelProto, precision: str, step: float
) -> None:
    reference = answers(graph, IMAGES)
    engine = openvino(to_low_precision(graph, precision))
    found = engine.run({"images": IMAGES})["logits"]
    difference = relative_difference(reference, found)
    assert step / 50 < difference < 20 * step
    # The head is float32: its answers are no numbers of that precision.
    kind = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}[precision]
    assert (found != found.astype(kind).astype(np.float32)).mean() > 0.9


def test_what_is_kept_is_float32(graph: onnx.ModelProto) -> None:
    everything = low_precision_nodes(GraphLayers(graph))
    assert to_low_precision(graph, "fp16", everything).graph.node == graph.graph.node
    reference = answers(graph, IMAGES)
    same = answers(to_low_precision(graph, "fp16", everything), IMAGES)
    np.testing.assert_array_equal(same, reference)


def test_an_operator_without_bfloat16_is_named(graph: onnx.ModelProto) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(graph)
    relu = next(node for node in other.graph.node if node.op_type == "Relu")
    relu.op_type = "Celu"  # float32 alone until opset 27
    with pytest.raises(ExportError, match="float32 only"):
        to_low_precision(other, "bf16")


def test_large_numbers_stay_in_float32(tmp_path: Path) -> None:
    graph = float32_graph(tmp_path, outlier=1e6)
    kept, large = out_of_range(graph, largest_values(graph, IMAGES))
    assert large
    assert all(tensor.largest > 16000 for tensor in large)
    assert 2 <= len(kept) <= 6
    reference = answers(graph, IMAGES)
    low = to_low_precision(graph, "fp16", kept)
    assert relative_difference(reference, answers(low, IMAGES)) < 0.02
    require_finite(low, openvino, IMAGES)


def test_small_numbers_keep_nothing(graph: onnx.ModelProto) -> None:
    assert out_of_range(graph, largest_values(graph, IMAGES)) == ((), ())


def test_the_node_that_overflows_is_named(tmp_path: Path) -> None:
    graph = float32_graph(tmp_path, outlier=1e7)
    low = to_low_precision(graph, "fp16")
    node = first_non_finite(low, runtime, IMAGES)
    kept, _ = out_of_range(graph, largest_values(graph, IMAGES))
    assert node is not None
    assert node.name in {*kept, *(f"{name}.fp16" for name in kept)}
    with pytest.raises(ExportError, match="NaN or infinity, first from the"):
        require_finite(low, runtime, IMAGES)


def test_a_quantised_graph_is_as_tensorrt_reads_it(graph: onnx.ModelProto) -> None:
    low = quantise(graph, measure_ranges(graph, IMAGES))
    layers = GraphLayers(graph)
    stored = {tensor.name: tensor for tensor in low.graph.initializer}
    makers = {name: node for node in low.graph.node for name in node.output}
    for layer in layers.weighted:
        node = next(n for n in low.graph.node if n.name == layer.name)
        at_end = layer.name in layers.stem | layers.head
        weight = makers.get(node.input[1])
        assert (weight is None) == at_end, layer.name
        assert all(stored[bias].data_type == TensorProto.FLOAT for bias in node.input[2:])
        if weight is not None:
            scale, zero = (numpy_helper.to_array(stored[name]) for name in weight.input[1:])
            assert stored[weight.input[0]].data_type == TensorProto.INT8
            assert scale.shape == (stored[weight.input[0]].dims[0],)  # per output channel
            assert not zero.any()
    for node in low.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert not numpy_helper.to_array(stored[node.input[2]]).any()
            assert stored[node.input[2]].data_type == TensorProto.INT8


def test_quantised_answers_are_near_on_every_engine(graph: onnx.ModelProto) -> None:
    reference = answers(graph, IMAGES)
    low = quantise(graph, measure_ranges(graph, IMAGES))
    for opened in (runtime(low), openvino(low)):
        difference = relative_difference(reference, opened.run({"images": IMAGES})["logits"])
        assert 1e-4 < difference < 0.2, opened.name


def test_restored_layers_are_float32(graph: onnx.ModelProto) -> None:
    ranges = measure_ranges(graph, IMAGES)
    names = [layer.name for layer in GraphLayers(graph).body]
    low = quantise(graph, ranges, names[:-1])
    makers = {name: node for node in low.graph.node for name in node.output}
    quantised = [n for n in low.graph.node if n.op_type == "Conv" and n.input[1] in makers]
    assert [node.name for node in quantised] == names[-1:]
    with pytest.raises(ExportError, match="No layer of the graph is left"):
        quantise(graph, ranges, names)
