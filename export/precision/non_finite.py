"""Find the node that first gives what is not a number."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ltdeploy.errors import ExportError, LtdeployError

from .gate_run import OpenGraph

if TYPE_CHECKING:
    import onnx

__all__ = ["first_non_finite", "require_finite"]

_IMAGES = 8  # a few show it: what overflows does so on most images
_FLOATS = ("FLOAT", "FLOAT16", "BFLOAT16")


def require_finite(
    model: onnx.ModelProto, open_graph: OpenGraph, images: npt.NDArray[np.uint8]
) -> None:
    """Raise if a graph gives NaN or infinity for any of a few images, naming the first such node.

    An engine that computes float16 in float32, as those on CPUs do, shows no overflow: there the
    range check of :mod:`.ranges` is what finds it.

    Parameters
    ----------
    images : array of shape (K, H, W, 3), uint8.

    Raises
    ------
    ExportError
    """
    few = images[:_IMAGES]
    if all(np.isfinite(values).all() for values in _run(model, open_graph, few).values()):
        return
    node = first_non_finite(model, open_graph, few)
    named = f"first from the {node.op_type} {node.name!r}" if node is not None else "at its end"
    raise ExportError(
        f"In this precision the graph gives NaN or infinity, {named}. Its numbers are too large "
        "for float16 on this engine: use --precision bf16, which has float32's range, or give "
        "training images with --calibration DATA so that such layers are found and kept in float32."
    )


def first_non_finite(
    model: onnx.ModelProto, open_graph: OpenGraph, images: npt.NDArray[np.uint8]
) -> Any:
    """Return the first node of the graph whose output is not finite, or None if all are.

    Looking at a tensor keeps an engine from fusing across it, which can change what overflows.
    """
    import onnx
    from onnx import TensorProto

    inferred = onnx.shape_inference.infer_shapes(copy.deepcopy(model))
    given = {value.name: value for value in inferred.graph.value_info}
    names = [name for node in inferred.graph.node for name in node.output if name in given]
    kinds = {
        name: TensorProto.DataType.Name(given[name].type.tensor_type.elem_type) for name in given
    }
    watched = [name for name in names if kinds[name] in _FLOATS]
    seen = copy.deepcopy(inferred)
    for name in watched:
        as_float = f"{name}.watched"
        seen.graph.node.append(
            onnx.helper.make_node("Cast", [name], [as_float], name=as_float, to=TensorProto.FLOAT)
        )
        seen.graph.output.append(
            onnx.helper.make_tensor_value_info(as_float, TensorProto.FLOAT, None)
        )
    try:
        results = _run(seen, open_graph, images)
    except LtdeployError:  # an engine that cannot give so many outputs
        return None
    for node in model.graph.node:
        for name in node.output:
            values = results.get(f"{name}.watched")
            if values is not None and not np.isfinite(values).all():
                return node
    return None


def _run(
    model: onnx.ModelProto, open_graph: OpenGraph, images: npt.NDArray[np.uint8]
) -> dict[str, npt.NDArray[np.float32]]:
    engine = open_graph(model)
    try:
        return engine.run({engine.inputs[0].name: images})
    finally:
        engine.close()
