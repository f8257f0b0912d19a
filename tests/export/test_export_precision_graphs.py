"""Precision of graphs: which layers are which, casts, ranges, Q/DQ nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from ltdeploy.export.precision.cast import low_precision_nodes, segments, to_low_precision
from ltdeploy.export.precision.layers import GraphLayers
from ltdeploy.export.precision.non_finite import first_non_finite, require_finite
from ltdeploy.export.precision.quantise import measure_ranges, quantise
from ltdeploy.export.precision.ranges import largest_values, out_of_range
from ltdeploy.export.precision.recipe import cast_recipe
from ltdeploy.export.precision.work import multiply_adds

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
    body = [layer.name for layer in layers.body]
    assert layers.low_share(body) == pytest.approx(stages / layers.multiply_adds)
    assert layers.low_share(()) == 0.0


def products(nodes: list[onnx.NodeProto], **weights: tuple[int, ...]) -> onnx.ModelProto:
    """Return a graph of matrix products on images (N, 4, 4, 3), without inferred shapes."""
    value = helper.make_tensor_value_info
    stored = [numpy_helper.from_array(np.ones(s, np.float32), n) for n, s in weights.items()]
    stored.append(numpy_helper.from_array(np.array([0, 16, 3]), "tokens"))
    stored.append(numpy_helper.from_array(np.array([-1, 3]), "rows"))
    first = [helper.make_node("Cast", ["images"], ["x"], name="cast", to=TensorProto.FLOAT)]
    made = helper.make_graph(
        [*first, *nodes],
        "g",
        [value("images", TensorProto.UINT8, ["n", 4, 4, 3])],
        [value("y", TensorProto.FLOAT, None)],
        stored,
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_work_is_counted_whatever_shapes_are_told() -> None:
    make = helper.make_node
    model = products(
        [
            make("Reshape", ["x", "tokens"], ["t"], name="to tokens"),
            make("MatMul", ["t", "w"], ["a"], name="plain"),
            make("Transpose", ["a"], ["b"], name="turn", perm=[0, 2, 1]),
            make("MatMul", ["a", "b"], ["c"], name="attention"),
            make("MatMul", ["left", "c"], ["d"], name="weight on the left"),
            make("Reshape", ["d", "rows"], ["r"], name="tokens into the batch"),
            make("Gemm", ["r", "g"], ["s"], name="folded", transB=1),
            make("Identity", ["s"], ["y"], name="end"),
        ],
        w=(3, 9),
        left=(6, 16),
        g=(5, 3),
    )
    assert multiply_adds(model) == {
        "plain": 16 * 3 * 9,
        "attention": 16 * 16 * 9,
        "weight on the left": 6 * 16 * 16,
        "folded": 32 * 3 * 5,
    }
    # What multiplies from the left, or two activations, is work and no layer to quantise.
    assert [layer.name for layer in GraphLayers(model).weighted] == ["plain", "folded"]


def test_a_graph_in_half_precision_is_refused(graph: onnx.ModelProto) -> None:
    with pytest.raises(ExportError, match="half precision already"):
        GraphLayers(to_low_precision(graph, "fp16"))


def test_a_layer_goes_back_with_what_follows_it(graph: onnx.ModelProto) -> None:
    layers = GraphLayers(graph)
    parts = segments(layers)
    assert list(parts) == [layer.name for layer in layers.weighted if layer.kind == "Conv"]
    every = [name for nodes in parts.values() for name in nodes]
    assert sorted(every) == sorted(low_precision_nodes(layers))
    assert layers.nodes[parts[layers.body[0].name][1]].op_type == "Relu"


def test_what_a_subgraph_reads_stays_as_it_knows_it(graph: onnx.ModelProto) -> None:
    value = helper.make_tensor_value_info
    other = onnx.ModelProto()
    other.CopyFrom(graph)
    inside = helper.make_graph(
        [helper.make_node("Add", ["relu_3", "only inside"], ["sum"], name="sum")],
        "body",
        [],
        [value("sum", TensorProto.FLOAT, None)],
    )
    stored = numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "only inside")
    other.graph.initializer.extend([stored, numpy_helper.from_array(np.array(True), "always")])
    branch = helper.make_node("If", ["always"], ["chosen"], name="if")
    branch.attribute.extend(
        [helper.make_attribute("then_branch", inside), helper.make_attribute("else_branch", inside)]
    )
    place = next(i for i, node in enumerate(other.graph.node) if "relu_3" in node.input)
    for node in other.graph.node[place:]:
        for number, name in enumerate(node.input):
            node.input[number] = "chosen" if name == "relu_3" else name
    other.graph.node.insert(place, branch)
    kind = other.graph.value_info.add()
    kind.CopyFrom(next(v for v in graph.graph.value_info if v.name == "relu_3"))
    kind.name = "chosen"
    reference = answers(other, IMAGES)
    found = answers(to_low_precision(other, "fp16"), IMAGES)
    assert relative_difference(reference, found) < 0.01


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


def swishing(*, told: bool = True, taken: str = "") -> onnx.ModelProto:
    """Return convolutions with a HardSwish behind each.

    Parameters
    ----------
    told : whether the graph says of what type they give.
    taken : a tensor of that name is in it.
    """
    make, value = helper.make_node, helper.make_tensor_value_info
    rng = np.random.default_rng(0)
    shapes = {"w0": (6, 3, 3, 3), "w1": (6, 6, 3, 3), "w2": (6, 6, 3, 3), "g": (6, 4)}
    stored = [
        numpy_helper.from_array(rng.normal(0, 0.3, shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    stored.append(numpy_helper.from_array(np.float32(1 / 255), "scale"))
    nodes = [
        make("Cast", ["images"], ["pixels"], name="cast", to=TensorProto.FLOAT),
        make("Transpose", ["pixels"], ["planes"], name="turn", perm=[0, 3, 1, 2]),
        make("Mul", ["planes", "scale"], ["x0"], name="scale"),
    ]
    for layer in range(3):
        nodes += [
            make("Conv", [f"x{layer}", f"w{layer}"], [f"c{layer}"], name=f"conv{layer}"),
            make("HardSwish", [f"c{layer}"], [f"x{layer + 1}"], name=f"swish{layer}"),
        ]
    nodes += [
        make("GlobalAveragePool", ["x3"], ["pooled"], name="pool"),
        make("Flatten", ["pooled"], ["flat"], name="flatten"),
        make("Gemm", ["flat", "g"], ["logits"], name="head"),
    ]
    if taken:
        nodes.insert(3, make("Identity", ["x0"], [taken], name="swish0.0"))
        nodes[4].input[0] = taken
    io = (
        [value("images", TensorProto.UINT8, ["n", 16, 16, 3])],
        [value("logits", TensorProto.FLOAT, ["n", 4])],
    )
    model = helper.make_model(
        helper.make_graph(nodes, "g", *io, stored),
        opset_imports=[helper.make_opsetid("", 22)],
        ir_version=10,
    )
    model = onnx.shape_inference.infer_shapes(model)
    if not told:
        kept = [v for v in model.graph.value_info if v.name != "x1"]
        del model.graph.value_info[:]
        model.graph.value_info.extend(kept)
    return model


@pytest.mark.parametrize("changes", [{}, {"told": False}, {"taken": "x1.shifted"}])
def test_a_restored_layer_takes_its_hard_swish_along(changes: dict[str, Any]) -> None:
    model = swishing(**changes)
    recipe = cast_recipe(model, "bf16")
    owned = {name for nodes in segments(GraphLayers(recipe.whole)).values() for name in nodes}
    assert sum(name.startswith("swish") for name in owned) == 12
    low = onnx.shape_inference.infer_shapes(recipe.make(recipe.layers))
    kinds = {v.name: v.type.tensor_type.elem_type for v in low.graph.value_info}
    still = [n.name for n in low.graph.node if kinds.get(n.output[0]) == TensorProto.BFLOAT16]
    assert owned.isdisjoint(still)
    lowered = recipe.make(())
    assert not any(node.op_type == "HardSwish" for node in lowered.graph.node)
    assert len({node.name for node in lowered.graph.node}) == len(lowered.graph.node)
    images = np.random.default_rng(1).integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)
    reference = answers(model, images)
    np.testing.assert_allclose(answers(recipe.whole, images), reference, atol=1e-5)
    engine = openvino(lowered)
    assert relative_difference(reference, engine.run({"images": images})["logits"]) < 0.05


@pytest.mark.parametrize(("epsilon", "kept"), [(1e-12, ("sum", "root")), (1e-5, ())])
def test_a_constant_that_float16_makes_zero_of_is_kept(
    epsilon: float, kept: tuple[str, ...]
) -> None:
    make = helper.make_node
    model = products(
        [
            make("MatMul", ["x", "w"], ["a"], name="stem"),
            make("Mul", ["a", "a"], ["square"], name="square"),
            make("ReduceMean", ["square"], ["mean"], name="mean", axes=[-1]),
            make("Add", ["mean", "epsilon"], ["sum"], name="sum"),
            make("Sqrt", ["sum"], ["root"], name="root"),
            make("Div", ["a", "root"], ["norm"], name="norm"),
            make("MatMul", ["norm", "body"], ["b"], name="body"),
            make("MatMul", ["b", "head"], ["y"], name="head"),
        ],
        w=(3, 9),
        body=(9, 9),
        head=(9, 2),
        epsilon=(),
    )
    stored = next(t for t in model.graph.initializer if t.name == "epsilon")
    stored.CopyFrom(numpy_helper.from_array(np.float32(epsilon), "epsilon"))
    model = onnx.shape_inference.infer_shapes(model)
    images = np.zeros((2, 4, 4, 3), np.uint8)
    images[:, 1:] = 9
    found, named = out_of_range(model, largest_values(model, images))
    assert found == kept
    assert [tensor.tensor for tensor in named] == ["epsilon"] * bool(kept)
    # A pixel of zeros has no variance: the norm divides by the root of epsilon alone.
    assert np.isfinite(
        runtime(to_low_precision(model, "fp16", found)).run({"images": images})["y"]
    ).all()
    bare = runtime(to_low_precision(model, "fp16")).run({"images": images})["y"]
    assert np.isfinite(bare).all() == (not kept)
