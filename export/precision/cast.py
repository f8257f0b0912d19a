"""A float32 graph to one that computes in float16 or bfloat16, with float32 where it is needed.

Normalisation in front and the head stay float32: normalised pixels and logits of a thousand classes
need more than the 8 or 11 bits of a low-precision number (two classes of the tail that are closer
than one step of bfloat16 would be one and the same), and the two cost nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ltdeploy._optional import require
from ltdeploy.errors import ExportError
from ltdeploy.models.onnx_head import free_name

from .layers import GraphLayers

if TYPE_CHECKING:
    import onnx

__all__ = [
    "BFLOAT16_OPSET",
    "LowPrecision",
    "at_least_opset",
    "low_precision_nodes",
    "ready_for",
    "segments",
    "to_low_precision",
]

LowPrecision = Literal["fp16", "bf16"]
BFLOAT16_OPSET = 22  # the first in which convolutions take bfloat16
# They say their own type, take scales in float32, or hold graphs that know their tensors' types.
_FLOAT32_ONLY = frozenset({"Cast", "Resize", "Upsample", "If", "Loop", "Scan"})


def low_precision_nodes(layers: GraphLayers) -> tuple[str, ...]:
    """Return the names of the nodes that may compute in low precision, in the graph's order."""
    fixed = layers.before_stem() | layers.behind_head()
    captured = _captured(layers.model.graph)
    return tuple(
        node.name
        for node in layers.model.graph.node
        if node.name not in fixed
        and node.op_type not in _FLOAT32_ONLY
        and any(layers.is_float(name) for name in node.input)
        and captured.isdisjoint(node.output)
    )


def segments(layers: GraphLayers) -> dict[str, tuple[str, ...]]:
    """Return the nodes that go back to float32 with each layer, by the layer's name.

    A layer takes with it what works on its output before the next one: activations, sums, norms.
    """
    low = set(low_precision_nodes(layers))
    owner: dict[str, str] = {}
    found: dict[str, list[str]] = {}
    place = {name: number for number, name in enumerate(layers.nodes)}
    for node in layers.model.graph.node:
        if node.name not in low:
            continue
        if layers.weight_of(node) is not None:
            own = node.name
        else:
            before = [owner[name] for name in node.input if name in owner]
            own = max(before, key=place.__getitem__, default="")
        if own:
            owner.update(dict.fromkeys(node.output, own))
            found.setdefault(own, []).append(node.name)
    return {name: tuple(nodes) for name, nodes in found.items()}


def _captured(graph: onnx.GraphProto, *, inside: bool = False) -> set[str]:
    """Return the names that the bodies of If, Loop and Scan read; some are of the graph around."""
    names: set[str] = set()
    for node in graph.node:
        if inside:
            names.update(node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                names |= _captured(attribute.g, inside=True)
    return names


def to_low_precision(
    model: onnx.ModelProto, precision: LowPrecision, keep: Collection[str] = ()
) -> onnx.ModelProto:
    """Return the graph with casts, its inputs and outputs as they were.

    Parameters
    ----------
    model : a float32 graph with inferred shapes and named nodes; it is not changed.
    keep : names of nodes of :func:`ready_for` that stay in float32.

    Raises
    ------
    ExportError
        If the graph cannot be brought to the opset that has bfloat16.
    """
    import onnx
    from onnx import TensorProto, helper

    changed = ready_for(model, precision)
    low = TensorProto.BFLOAT16 if precision == "bf16" else TensorProto.FLOAT16
    layers = GraphLayers(changed)
    lowered = set(low_precision_nodes(layers)).difference(keep)
    graph = changed.graph
    now = dict(layers.dtypes)  # of each tensor as the changed nodes give it
    added: dict[tuple[str, int], str] = {}
    nodes: list[Any] = []

    def as_type(name: str, wanted: int) -> str:
        if now[name] == wanted:
            return name
        if (name, wanted) not in added:
            other = f"{name}.{precision if wanted == low else 'fp32'}"
            if name in layers.stored:
                graph.initializer.append(_stored_as(layers.stored[name], wanted, other))
            else:
                nodes.append(helper.make_node("Cast", [name], [other], name=other, to=wanted))
            added[name, wanted] = other
        return added[name, wanted]

    for node in graph.node:
        wanted = low if node.name in lowered else TensorProto.FLOAT
        for place, name in enumerate(node.input):
            if layers.is_float(name):
                node.input[place] = as_type(name, wanted)
        nodes.append(node)
        if node.name in lowered:
            now.update({name: low for name in node.output if layers.is_float(name)})
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input} | _captured(graph)
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]  # of types that are no longer true
    try:
        onnx.checker.check_model(changed, full_check=True)
    except Exception as error:  # its own types, and RuntimeError of the inference behind it
        raise ExportError(
            f"The graph does not take {precision} ({str(error).splitlines()[0]}). An operator of "
            "it exists in float32 only; use --precision fp32 or int8."
        ) from error
    return changed


def ready_for(model: onnx.ModelProto, precision: LowPrecision) -> onnx.ModelProto:
    """Return a copy whose nodes are those that the graph of this precision will have, casts apart.

    What is to stay in float32 is named by these nodes.

    Raises
    ------
    ExportError
        If the graph cannot be brought to the opset that has bfloat16.
    """
    if precision == "fp16":
        return copy.deepcopy(model)
    ready = at_least_opset(model, BFLOAT16_OPSET)
    _without_hard_swish(ready)
    return ready


def _without_hard_swish(model: onnx.ModelProto) -> None:
    """Write ``HardSwish(x)`` as ``x · clip(x + 3, 0, 6) / 6``: TensorRT has it in bfloat16 only so.

    OpenVINO makes one operation of the four again; of HardSigmoid and a product it does not.
    """
    from onnx import TensorProto, helper, numpy_helper

    layers = GraphLayers(model)
    graph = model.graph
    swishes = {
        n.name for n in graph.node if n.op_type == "HardSwish" and layers.is_float(n.input[0])
    }
    if not swishes:
        return
    taken = {*layers.stored, *layers.dtypes, *layers.producers}
    named = set(layers.nodes)
    three, zero, six, sixth = (free_name(f"hard_swish.{n}", taken) for n in ("3", "0", "6", "1_6"))
    for name, value in ((three, 3.0), (zero, 0.0), (six, 6.0), (sixth, 1 / 6)):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    nodes: list[Any] = []
    for node in graph.node:
        if node.name not in swishes:
            nodes.append(node)
            continue
        given, made = node.input[0], node.output[0]
        steps = ("shifted", "clipped", "product")
        shifted, clipped, product = (free_name(f"{made}.{step}", taken) for step in steps)
        for name in (shifted, clipped, product, made):
            if name not in layers.dtypes:
                graph.value_info.append(
                    helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
                )
        for number, (kind, inputs, output) in enumerate(
            (
                ("Add", [given, three], shifted),
                ("Clip", [shifted, zero, six], clipped),
                ("Mul", [given, clipped], product),
                ("Mul", [product, sixth], made),
            )
        ):
            name = free_name(f"{node.name}.{number}", named)
            nodes.append(helper.make_node(kind, inputs, [output], name=name))
    del graph.node[:]
    graph.node.extend(nodes)


def _stored_as(tensor: Any, dtype: int, name: str) -> Any:
    from onnx import TensorProto, numpy_helper

    values = numpy_helper.to_array(tensor)
    if dtype == TensorProto.BFLOAT16:
        ml_dtypes: Any = require("ml_dtypes", extra="torch", purpose="write bfloat16 weights")
        return numpy_helper.from_array(values.astype(ml_dtypes.bfloat16), name)
    wide = np.float16 if dtype == TensorProto.FLOAT16 else np.float32
    with np.errstate(over="ignore"):  # such layers were named and kept by the range check
        return numpy_helper.from_array(values.astype(wide), name)


def at_least_opset(model: onnx.ModelProto, wanted: int) -> onnx.ModelProto:
    """Return the graph in this opset or a newer one; a copy, with its shapes inferred.

    Raises
    ------
    ExportError
        If it cannot be converted.
    """
    from onnx import shape_inference, version_converter

    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    if opset >= wanted:
        return copy.deepcopy(model)
    try:
        converted = version_converter.convert_version(model, wanted)
        return shape_inference.infer_shapes(converted)
    except Exception as error:  # the converter raises RuntimeError and types of its own
        raise ExportError(
            f"The graph is in opset {opset}, this precision needs {wanted}, and it cannot be "
            f"converted ({error}). Export the model in opset {wanted} or newer."
        ) from error
