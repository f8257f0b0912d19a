"""Which nodes cannot compute in float16: their numbers are too large for it, or too small."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ltdeploy.engines.onnxruntime_engine import OnnxRuntimeEngine

from .cast import low_precision_nodes
from .layers import GraphLayers
from .work import images_at_once

if TYPE_CHECKING:
    import onnx

__all__ = ["FLOAT16_LIMIT", "LargeTensor", "largest_values", "out_of_range"]

FLOAT16_MAX = 65504.0
# Images that nobody measured may be larger than those that were.
FLOAT16_LIMIT = FLOAT16_MAX / 4
_BATCH = 8
_BATCH_PIXELS = _BATCH * 224 * 224


@dataclass(frozen=True)
class LargeTensor:
    """A tensor whose values float16 cannot hold safely; ``largest`` is its greatest magnitude.

    Either that is too large, or the tensor is a constant of which nothing but zeros would be left.
    """

    tensor: str
    largest: float


def largest_values(model: onnx.ModelProto, images: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Return the greatest magnitude of every float tensor between normalisation and head.

    Weights are among them.

    Parameters
    ----------
    model : a float32 graph with inferred shapes and named nodes.
    images : array of shape (N, H, W, 3), uint8; tail-stratified, see :mod:`.sampling`.
    """
    from onnx import numpy_helper

    layers = GraphLayers(model)
    lowered = [layers.nodes[name] for name in low_precision_nodes(layers)]
    names = dict.fromkeys(
        name for node in lowered for name in (*node.input, *node.output) if layers.is_float(name)
    )
    found = {
        name: float(np.abs(numpy_helper.to_array(layers.stored[name])).max(initial=0.0))
        for name in names
        if name in layers.stored
    }
    watched = copy.deepcopy(model)
    given = {value.name: value for value in model.graph.value_info}
    entries = {value.name for value in (*model.graph.input, *model.graph.output)}
    for name in names:
        if name in given and name not in entries:
            watched.graph.output.append(given[name])
    engine = OnnxRuntimeEngine(watched.SerializeToString())
    try:
        entry = engine.inputs[0].name
        pixels = images.shape[1] * images.shape[2]
        most = max(1, min(_BATCH, _BATCH_PIXELS // pixels))  # every tensor is held at once
        size = images_at_once(model, most)
        for start in range(0, len(images), size):
            results = engine.run({entry: images[start : start + size]})
            for name, values in results.items():
                largest = float(np.abs(values).max(initial=0.0))
                found[name] = max(found.get(name, 0.0), largest)
    finally:
        engine.close()
    return found


def out_of_range(
    model: onnx.ModelProto, largest: dict[str, float], limit: float = FLOAT16_LIMIT
) -> tuple[tuple[str, ...], tuple[LargeTensor, ...]]:
    """Return the nodes that must stay in float32, and the tensors that are why.

    A tensor that is too large keeps the node that makes it and all that read it: a cast to float16
    between the two would be infinite. So does the sum that a constant too small is part of: the
    ``ε`` of a norm written out, 1e-12, keeps what would be divided by zero.
    """
    layers = GraphLayers(model)
    tiny = {name: largest[name] for name in largest if _vanishes(layers.stored.get(name))}
    large = {name: value for name, value in largest.items() if not value <= limit} | tiny
    lowered = [layers.nodes[name] for name in low_precision_nodes(layers)]
    around = {
        name for node in lowered if not tiny.keys().isdisjoint(node.input) for name in node.output
    }
    around |= large.keys()
    kept = tuple(
        node.name for node in lowered if not around.isdisjoint((*node.input, *node.output))
    )
    return kept, tuple(LargeTensor(name, value) for name, value in sorted(large.items()))


def _vanishes(tensor: Any) -> bool:
    """Whether a stored tensor has other values than zero, and float16 makes zeros of them all."""
    from onnx import numpy_helper

    if tensor is None:
        return False
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        return bool(values.any() and not values.astype(np.float16).any())
