"""Graphs of detectors in low precision: what stays float32, and what is restored together."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from detector_samples import SIZE, exported, images
from onnx import TensorProto, helper, numpy_helper

from ltdeploy.export.clean_up import clean_up
from ltdeploy.export.precision.cast import low_precision_nodes, to_low_precision
from ltdeploy.export.precision.layers import GraphLayers
from ltdeploy.export.precision.lookups import read_unrounded
from ltdeploy.export.precision.open_graph import graph_opener
from ltdeploy.export.precision.quantise import measure_ranges, quantise
from ltdeploy.export.precision.recipe import int8_recipe

FAMILIES = ("rcnn", "retinanet", "fcos", "d_fine")


def behind(layers: GraphLayers, names: set[str]) -> set[str]:
    """Return the nodes that give what these nodes take."""
    taken = {name for node in names for name in layers.nodes[node].input}
    return {node.name for node in layers.model.graph.node if taken & set(node.output)}


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_boxes_and_positions_stay_float32(family: str) -> None:
    layers = GraphLayers(clean_up(exported(family)))
    low = set(low_precision_nodes(layers))
    exits = {value.name for value in layers.model.graph.output}
    kinds = {name: layers.nodes[name].op_type for name in layers.nodes}
    assert low
    assert {kinds[name] for name in low}.isdisjoint({"TopK", "GridSample", "GatherND", "Exp"})
    assert not [name for name in low if exits & set(layers.nodes[name].output)]
    # What an order or an index is made of is float32, and so is the layer that it comes from.
    ordered = {name for name, kind in kinds.items() if kind == "TopK"}
    assert ordered
    assert not behind(layers, ordered) & low
    assert layers.head.isdisjoint(low)
    assert layers.stem.isdisjoint({layer.name for layer in layers.body})
    share = layers.low_share([layer.name for layer in layers.body])
    assert share > (0.8)


def test_a_box_as_the_mean_of_a_distribution_ends_before_it() -> None:
    """D-FINE's sides are expectations; the products with the values are no learnt layers."""
    layers = GraphLayers(clean_up(exported("d_fine")))
    low = set(low_precision_nodes(layers))
    softmaxes = {n.name: n for n in layers.nodes.values() if n.op_type == "Softmax"}
    means = {
        reader.name
        for node in softmaxes.values()
        for reader in layers.consumers[node.output[0]]
        if layers.weight_of(reader) is not None
    }
    assert means  # a product with what a side may be, stored like a layer's weights
    assert low.isdisjoint(means | behind(layers, means))
    assert layers.head.isdisjoint(means)


def test_classifiers_end_where_they_did() -> None:
    value = helper.make_tensor_value_info
    weight = numpy_helper.from_array(np.ones((3, 3), np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="body"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("MatMul", ["b", "w2"], ["z"], name="head"),
        helper.make_node("Mul", ["z", "t"], ["logits"], name="scale"),
    ]
    stored = [weight, numpy_helper.from_array(np.ones((3, 2), np.float32), "w2")]
    stored.append(numpy_helper.from_array(np.array(2.0, np.float32), "t"))
    io = [value("x", TensorProto.FLOAT, ["n", 3])], [value("logits", TensorProto.FLOAT, ["n", 2])]
    model = helper.make_model(helper.make_graph(nodes, "g", *io, stored))
    layers = GraphLayers(onnx.shape_inference.infer_shapes(model))
    assert layers.behind_head() == {"head", "scale"}


def boxes_of(model: onnx.ModelProto, engine: str, precision: Any) -> dict[str, Any]:
    opened = graph_opener(engine, precision)(model)
    try:
        return opened.run({"images": images(3).numpy()})
    finally:
        opened.close()


@pytest.mark.parametrize("family", ["rcnn", "retinanet"])
def test_boxes_are_no_coarser_than_features(family: str) -> None:
    """A box of bfloat16 coordinates would stand on a grid; those of the graph do not."""
    graph = clean_up(exported(family))
    low = to_low_precision(graph, "bf16")
    found = boxes_of(low, "openvino", "bf16")["boxes"].reshape(-1)
    inside = found[(found > SIZE[0] / 2) & (found < 0.99 * SIZE[0])]
    assert len(inside)
    off_grid = np.abs(inside * 4 - np.round(inside * 4))  # bfloat16 has quarters from 32 to 64
    assert (off_grid > 1e-3).mean() > 0.9


def test_layers_that_share_weights_are_restored_together() -> None:
    graph = clean_up(exported("retinanet"))
    layers = GraphLayers(graph)
    towers = [layer.name for layer in layers.body if len(layers.sharing(layer.name)) == 5]
    assert towers
    recipe = int8_recipe(graph, images(8).numpy())
    first = layers.sharing(towers[0])[0]
    assert len(recipe.parts[first]) == 5
    assert len(recipe.layers) < len(layers.body)
    restored = recipe.make({first})
    nodes = {node.name: node for node in restored.graph.node}
    stored = {tensor.name for tensor in restored.graph.initializer}
    for name in recipe.parts[first]:
        assert nodes[name].input[1] in stored  # the float32 weights, not what int8 made of them
    assert recipe.low_share({first}) < recipe.low_share(())
    # One of five nodes alone would have been given the coarse weights.
    alone = quantise(graph, measure_ranges(graph, images(8).numpy()), {first})
    kept = next(node for node in alone.graph.node if node.name == first)
    assert kept.input[1] not in {tensor.name for tensor in alone.graph.initializer}


def test_lookups_read_what_was_not_rounded() -> None:
    """OpenVINO fails at the reshape behind levels of several scales that are joined."""
    graph = clean_up(exported("rcnn"))
    made = quantise(graph, measure_ranges(graph, images(8).numpy()))
    layers = {name: node for node in made.graph.node for name in node.output}
    tables = [
        node
        for node in made.graph.node
        if node.op_type == "Gather" and layers.get(node.input[0], node).op_type == "Reshape"
    ]
    assert tables
    for table in tables:
        (joined,) = (layers[name] for name in layers[table.input[0]].input[:1])
        assert joined.op_type == "Concat"
        for name in joined.input:
            node = layers[name]
            while node.op_type in ("Reshape", "Transpose"):
                node = layers[node.input[0]]
            assert node.op_type == "Conv"
    assert np.isfinite(boxes_of(made, "openvino", "int8")["boxes"]).all()
    again = made.SerializeToString()
    read_unrounded(made)
    assert made.SerializeToString() == again
