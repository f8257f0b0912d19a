"""The last linear layer of an ONNX graph: find it, read it, write it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError
from .head import Head

if TYPE_CHECKING:
    import onnx

__all__ = [
    "constant",
    "free_name",
    "head_nodes",
    "names_in",
    "producer",
    "read_head",
    "replace_head",
]


def producer(model: onnx.ModelProto, name: str) -> Any:
    """Return the node that gives the tensor `name`, or None for inputs and weights."""
    return next((node for node in model.graph.node if name in node.output), None)


def head_nodes(model: onnx.ModelProto, output: str, where: str) -> tuple[Any, Any]:
    """Return the Gemm or MatMul that gives the logits and the Add behind it, or None for that."""
    node = producer(model, output)
    add = None
    if node is not None and node.op_type == "Add":
        sides = [producer(model, name) for name in node.input]
        multiply = [n for n in sides if n is not None and n.op_type in ("MatMul", "Gemm")]
        if len(multiply) == 1:
            add, node = node, multiply[0]
    if node is None or node.op_type not in ("Gemm", "MatMul"):
        last = node.op_type if node is not None else "nothing"
        raise CheckpointError(
            f"{where} ends in {last}, not in a linear layer (Gemm, or MatMul and Add); the tail is "
            "fixed in that layer. Give the checkpoint of the model instead."
        )
    return node, add


def read_head(model: onnx.ModelProto, node: Any, add: Any, where: str) -> Head:
    """Return W as (C, D) and b, whatever the orientation in the file."""
    stored = constant(model, node.input[1])
    if stored is None or stored.ndim != 2 or stored.dtype != np.float32:
        found = "no constant" if stored is None else f"{stored.dtype} of shape {stored.shape}"
        raise CheckpointError(
            f"{where}: the weight of the last linear layer is {found}; expected a float32 matrix "
            "in the file. A quantised or half-precision graph cannot be fixed: give the float32 "
            "one."
        )
    told = {a.name: a.f if a.type == 1 else a.i for a in node.attribute}
    if told.get("transA"):
        raise CheckpointError(
            f"{where}: the last Gemm transposes its input; this is not supported."
        )
    weight = stored.astype(np.float64) * told.get("alpha", 1.0)
    weight = weight if told.get("transB") else weight.T
    bias: npt.NDArray[np.float64] | None = None
    terms = [(node.input[2], told.get("beta", 1.0))] if len(node.input) > 2 else []
    if add is not None:
        terms += [(name, 1.0) for name in add.input if name not in node.output]
    for name, factor in terms:
        term = constant(model, name)
        if term is None:
            raise CheckpointError(
                f"{where}: something that is not a constant is added to the last linear layer; "
                "this is not a plain classification head."
            )
        flat = np.broadcast_to(term.astype(np.float64).reshape(-1), (weight.shape[0],))
        bias = factor * flat if bias is None else bias + factor * flat
    return Head("linear", np.ascontiguousarray(weight), bias)


def constant(model: onnx.ModelProto, name: str) -> npt.NDArray[Any] | None:
    """Return an initializer's or Constant node's value, also through Identity and Transpose."""
    from onnx import numpy_helper

    for tensor in model.graph.initializer:
        if tensor.name == name:
            value: npt.NDArray[Any] = numpy_helper.to_array(tensor)
            return value
    node = producer(model, name)
    if node is None:
        return None
    if node.op_type == "Constant":
        return next((numpy_helper.to_array(a.t) for a in node.attribute if a.name == "value"), None)
    if node.op_type in ("Identity", "Transpose"):
        inner = constant(model, node.input[0])
        if inner is None or node.op_type == "Identity":
            return inner
        order = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
        return np.transpose(inner, order)
    return None


def replace_head(
    model: onnx.ModelProto,
    output: str,
    weight: npt.NDArray[np.float64],
    bias: npt.NDArray[np.float64] | None,
) -> None:
    """Give the linear layer that produces `output` other weights, in place, rounded to float32.

    It stays a Gemm, or MatMul and Add, as it was; a MatMul that gets its first bias becomes a
    Gemm, so that no node is added.

    Parameters
    ----------
    weight : array of shape (C, D).
    bias : array of shape (C,), or None for no bias.
    """
    from onnx import helper, numpy_helper

    node, add = head_nodes(model, output, "The graph")
    old = [*node.input[1:], *([] if add is None else add.input)]
    taken = set(names_in(model))
    stays_matmul = node.op_type == "MatMul" and (bias is None or add is not None)
    rows = np.ascontiguousarray(weight.T if stays_matmul else weight, dtype=np.float32)
    inputs = [node.input[0], free_name("head.weight", taken)]
    model.graph.initializer.append(numpy_helper.from_array(rows, inputs[1]))
    if bias is not None:
        shift = free_name("head.bias", taken)
        model.graph.initializer.append(numpy_helper.from_array(bias.astype(np.float32), shift))
        if stays_matmul:
            add.input[1 if add.input[0] in node.output else 0] = shift
        else:
            inputs.append(shift)
    if add is not None and (bias is None or not stays_matmul):
        node.output[0] = add.output[0]
        model.graph.node.remove(add)
    del node.input[:]
    node.input.extend(inputs)
    if not stays_matmul:
        node.op_type = "Gemm"
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("transB", 1))
    for name in old:
        _drop_if_unused(model, name)


def _drop_if_unused(model: onnx.ModelProto, name: str) -> None:
    """Remove a constant that nothing uses any more, and the nodes that only prepared it."""
    if name in set(_inputs_in(model.graph)) or name in {o.name for o in model.graph.output}:
        return
    for tensor in [t for t in model.graph.initializer if t.name == name]:
        model.graph.initializer.remove(tensor)
    node = producer(model, name)
    if node is not None and node.op_type in ("Constant", "Identity", "Transpose"):
        model.graph.node.remove(node)
        for before in node.input:
            _drop_if_unused(model, before)


def _inputs_in(graph: Any) -> Iterator[str]:
    """Yield the names that nodes read, those inside If and Loop bodies too."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _inputs_in(attribute.g)


def names_in(model: onnx.ModelProto) -> Iterator[str]:
    """Yield every name that is taken in the graph."""
    yield from (tensor.name for tensor in model.graph.initializer)
    for node in model.graph.node:
        yield from (*node.input, *node.output)


def free_name(name: str, taken: set[str]) -> str:
    """Return `name`, or a variation of it that is not taken, and take it."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name
