"""How much work each layer is: multiply-adds for one image, from shapes that were measured."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ltdeploy.engines.onnxruntime_engine import OnnxRuntimeEngine

if TYPE_CHECKING:
    import onnx

__all__ = ["images_at_once", "multiply_adds"]

_MULTIPLYING = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def multiply_adds(model: onnx.ModelProto) -> dict[str, int]:
    """Return the multiply-adds of every convolution and matrix product by its node's name.

    Those between two activations count too. The graph is run on one image for the shapes: what
    inference leaves open, and windows or tokens that are folded into the batch, would be missed.
    Recurrent operators are not counted.

    Parameters
    ----------
    model : a graph whose nodes have distinct names, ``images`` in.
    """
    import onnx

    nodes = [node for node in model.graph.node if node.op_type in _MULTIPLYING]
    stored = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    names = dict.fromkeys(
        name for node in nodes for name in (*node.input[:2], node.output[0]) if name not in stored
    )
    watched = copy.deepcopy(model)
    for place, name in enumerate(names):  # the tensors themselves may take gigabytes
        told = f"shape.{place}"
        watched.graph.node.append(onnx.helper.make_node("Shape", [name], [told], name=told))
        watched.graph.output.append(onnx.ValueInfoProto(name=told))
    engine = OnnxRuntimeEngine(watched.SerializeToString())
    try:
        entry = engine.inputs[0]
        image = np.zeros([1, *(side or 1 for side in entry.shape[1:])], dtype=entry.dtype)
        results = engine.run({entry.name: image})
    finally:
        engine.close()
    shapes = stored | {
        name: tuple(int(side) for side in results[f"shape.{place}"])
        for place, name in enumerate(names)
    }
    return {node.name: _of(node, shapes) for node in nodes}


def images_at_once(model: onnx.ModelProto, most: int) -> int:
    """Return how many images a graph is given at a time: its fixed number, or at most ``most``."""
    fixed: int = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    return fixed or most


def _of(node: Any, shapes: dict[str, tuple[int, ...]]) -> int:
    first, second, made = (shapes[name] for name in (*node.input[:2], node.output[0]))
    if node.op_type == "Conv":
        return math.prod(made) * math.prod(second[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(first) * math.prod(second[1:])
    flipped = node.op_type == "Gemm" and any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(made) * first[0 if flipped else -1]
