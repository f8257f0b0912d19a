"""A graph that was exported for one image, made to take any number, and asked whether it does."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ltdeploy.engines.onnxruntime_engine import import_onnxruntime
from ltdeploy.models.onnx_head import constant, free_name, names_in

if TYPE_CHECKING:
    import onnx

__all__ = ["for_one_image", "freed", "takes_batches"]

_FATAL_ONLY = 4
_TOLERANCE = 1e-3  # of a pixel or a logit: what a batch may change is rounding


def freed(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """Return a copy whose constant reshapes let the batch grow.

    A tensor's elements lie image by image where the batch is its outermost axis, and then a reshape
    for one image serves any number if its first length is left open. Where it is not outermost the
    graph computes something else, and :func:`takes_batches` says so.

    Parameters
    ----------
    shapes : of the graph's tensors for one image.
    """
    from onnx import numpy_helper

    free = copy.deepcopy(model)
    taken = set(names_in(free))
    for node in free.graph.node:
        if node.op_type != "Reshape" or constant(free, node.input[0]) is not None:
            continue
        target, whole = constant(free, node.input[1]), shapes.get(node.output[0])
        if target is None or not target.size or whole is None:
            continue
        if target[0] in (0, -1) or (-1 in target and target[0] != 1):
            continue  # it is open already, or the open one is where the batch goes
        name = free_name(f"{node.input[1]}.any", taken)
        sizes = np.array([-1, *whole[1:]], np.int64)
        free.graph.initializer.append(numpy_helper.from_array(sizes, name))
        node.input[1] = name
    return free


def takes_batches(model: onnx.ModelProto) -> bool:
    """Whether two images at once give what they give one by one."""
    size = [axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    images = np.random.default_rng(0).integers(0, 256, (2, *size)).astype(np.uint8)
    runtime = import_onnxruntime()
    options = runtime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY  # a shape that does not fit is an answer here
    try:
        session = runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        both = session.run(None, {"images": images})
        alone = [session.run(None, {"images": images[at : at + 1]}) for at in range(2)]
    except Exception:  # onnxruntime raises its own types, none of them public
        return False
    for values, *single in zip(both, *alone, strict=True):
        one_by_one = np.concatenate(single)
        if values.shape != one_by_one.shape or not np.allclose(
            values, one_by_one, rtol=_TOLERANCE, atol=_TOLERANCE
        ):
            return False
    return True


def for_one_image(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose inputs and outputs say that the batch is 1."""
    fixed = copy.deepcopy(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        axis = value.type.tensor_type.shape.dim[0]
        axis.Clear()
        axis.dim_value = 1
    return fixed
