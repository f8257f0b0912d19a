"""Which rows of which layers of an ONNX detector are its classes: read them, fold a fix into them.

A layer may give more than the classes (YOLOv5: boxes and objectness of every anchor in the same
convolution), and there may be one for each level of a pyramid. Only the rows of the classes are
touched, each layer's and each anchor's alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import CheckpointError
from ..head import Activation, Head
from ..onnx_head import constant, free_name, names_in, producer
from .onnx_probe import LINEAR
from .onnx_trace import NOTHING, Labels, Trace

if TYPE_CHECKING:
    import onnx

__all__ = ["ClassLayer", "class_layers", "fold_rows", "head_of"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ClassLayer:
    """A layer with rows of classes, a BatchNorm behind it folded in.

    Attributes
    ----------
    name : the node's name, for people.
    output : name of the node's output.
    last : name of the tensor with bias and BatchNorm applied; the same where there are none.
    weight : array of shape (rows, D), float64.
    bias : array of shape (rows,), float64, or None.
    rows : which of the rows are classes, array of shape (anchors, C).
    """

    name: str
    output: str
    last: str
    weight: Array
    bias: Array | None
    rows: npt.NDArray[np.int64]


def class_layers(
    model: onnx.ModelProto, traced: Trace, classes: int, where: str
) -> tuple[ClassLayer, ...]:
    """Read the layers that a trace found, in the order of the graph.

    Raises
    ------
    CheckpointError
        If weights are not float32 constants, a layer gives some of the classes only, or something
        is added to the classes elsewhere than right behind their layer.
    """
    layers = []
    elsewhere = dict(traced.added)
    for node in model.graph.node:
        if node.output and node.output[0] in traced.linear:
            labels = traced.linear[node.output[0]]
            if (labels[labels != NOTHING] < classes).any():
                layers.append(_layer(model, node, traced, elsewhere, classes, where))
    if not layers:
        raise CheckpointError(f"{where}: no layer ({', '.join(LINEAR)}) gives the classes.")
    for output in elsewhere.values():
        node = producer(model, output)
        raise CheckpointError(
            f"{where}: the {node.op_type} {node.name or output!r} changes the classes after they "
            "were moved or put through an activation, where a fix does not reach; supported are an "
            f"Add and a BatchNormalization right behind the layer ({', '.join(LINEAR)}) of the "
            "classes. Put its constant into that layer's bias, or give the checkpoint."
        )
    return tuple(layers)


def head_of(layers: tuple[ClassLayer, ...], activation: Activation, background: int | None) -> Head:
    """Return the layers as one head, one row per column of the logits.

    The rows of several layers and anchors stand side by side, ``w_c = [w_c1, w_c2, …]``, so that
    their norms are of all of them; the bias is the mean.
    """
    weight = np.concatenate([w for one in layers for w in one.weight[one.rows]], axis=1)
    biases = [b for one in layers if one.bias is not None for b in one.bias[one.rows]]
    bias = np.mean(biases, axis=0) if biases else None
    return Head("linear", weight, bias, background=background, activation=activation)


def fold_rows(
    model: onnx.ModelProto, layers: tuple[ClassLayer, ...], scale: Array, shift: Array
) -> None:
    """Fold ``z' = A z + c`` into the rows of the classes, in place, rounded once to float32.

    Parameters
    ----------
    scale : A, array of shape (C,) for a diagonal or (C, C).
    shift : c, array of shape (C,).
    """
    matrix = np.diag(scale) if scale.ndim == 1 else scale
    for layer in layers:
        weight = layer.weight.copy()
        bias = np.zeros(len(weight)) if layer.bias is None else layer.bias.copy()
        weight[layer.rows] = np.einsum("ck,akd->acd", matrix, layer.weight[layer.rows])
        bias[layer.rows] = shift + bias[layer.rows] @ matrix.T
        _write(model, layer, weight, bias)


def _layer(
    model: onnx.ModelProto,
    node: Any,
    traced: Trace,
    elsewhere: dict[str, str],
    classes: int,
    where: str,
) -> ClassLayer:
    """Read a layer and what stands right behind it, which is taken out of ``elsewhere``."""
    name, output = node.name or node.output[0], node.output[0]
    labels = traced.linear[output]
    axis = labels.ndim - 1 if node.op_type == "MatMul" else 1
    weight, bias = _read(model, node, f"{where}: the layer {name!r} of the classes")
    last = output
    while last in elsewhere:
        behind = producer(model, elsewhere.pop(last))
        factor, added = _affine(model, behind, last, labels.shape, axis, where)
        weight = weight * factor[:, None]
        bias = factor * bias + added if bias is not None else added
        last = behind.output[0]
    rows = _rows(np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1), classes)
    if rows is None:
        raise CheckpointError(
            f"{where}: the layer {name!r} ({len(weight)} rows) does not give each of the {classes} "
            "columns of classes once, or once per anchor. Look at the mapping's layout and at what "
            "the output holds."
        )
    return ClassLayer(name, output, last, weight, bias, rows)


def _rows(labels: Labels, classes: int) -> npt.NDArray[np.int64] | None:
    """Return the rows of each class, shape (anchors, C), from labels of (rows, elements)."""
    of_row = labels.max(axis=1)
    mixed = (labels != NOTHING) & (labels != of_row[:, None])
    found = [np.flatnonzero(of_row == label) for label in range(classes)]
    anchors = len(found[0])
    if mixed.any() or not anchors or any(len(rows) != anchors for rows in found):
        return None
    return np.stack(found, axis=1)


def _read(model: onnx.ModelProto, node: Any, what: str) -> tuple[Array, Array | None]:
    """Return a linear node's weight as (rows, D) and its own bias."""
    stored = constant(model, node.input[1])
    if stored is None or stored.dtype != np.float32:
        found = "no constant" if stored is None else str(stored.dtype)
        raise CheckpointError(
            f"{what} has a weight that is {found}; expected a float32 constant. A quantised or "
            "half-precision graph cannot be fixed: give the float32 one."
        )
    told = {a.name: a.f if a.type == 1 else a.i for a in node.attribute}
    grouped = node.op_type == "Conv" and told.get("group", 1) != 1
    if told.get("transA") or grouped or (node.op_type != "Conv" and stored.ndim != 2):
        raise CheckpointError(
            f"{what} is a {node.op_type} of shape {stored.shape}"
            f"{' in groups' if grouped else ''}, which cannot be fixed; expected a plain layer."
        )
    weight = stored.astype(np.float64)
    if node.op_type == "Conv":
        weight = weight.reshape(len(weight), -1)
    elif not (node.op_type == "Gemm" and told.get("transB")):
        weight = weight.T
    weight = weight * told.get("alpha", 1.0)
    if len(node.input) < 3 or not node.input[2]:
        return weight, None
    bias = constant(model, node.input[2])
    if bias is None:
        raise CheckpointError(f"{what} has a bias that is no constant; expected one in the file.")
    flat = np.broadcast_to(bias.astype(np.float64).reshape(-1), (len(weight),))
    return weight, flat * told.get("beta", 1.0)


def _affine(
    model: onnx.ModelProto, node: Any, data: str, shape: tuple[int, ...], axis: int, where: str
) -> tuple[Array, Array]:
    """Return factor and summand per row of an Add or BatchNormalization, each of shape (rows,)."""
    known = [constant(model, name) for name in node.input if name != data]
    values = [one.astype(np.float64) for one in known if one is not None]
    if node.op_type == "BatchNormalization":
        gamma, beta, mean, variance = values
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        factor = gamma / np.sqrt(variance + epsilon)
        return factor, beta - mean * factor
    whole = np.moveaxis(np.broadcast_to(values[0], shape), axis, 0).reshape(shape[axis], -1)
    if np.ptp(whole, axis=1).any():
        raise CheckpointError(
            f"{where}: what the {node.name or node.output[0]!r} adds to the classes differs from "
            "place to place; expected one number per class."
        )
    return np.ones(shape[axis]), whole[:, 0].copy()


def _write(model: onnx.ModelProto, layer: ClassLayer, weight: Array, bias: Array) -> None:
    """Give a layer other weights; what stood behind it is taken out, as it is inside them now."""
    from onnx import helper, numpy_helper

    node = producer(model, layer.output)
    taken = set(names_in(model))
    names = free_name("classes.weight", taken), free_name("classes.bias", taken)
    stored = constant(model, node.input[1])
    assert stored is not None
    told = weight.reshape(stored.shape) if node.op_type == "Conv" else weight
    told = weight.T if node.op_type == "MatMul" else told
    for name, values in zip(names, (told, bias), strict=True):
        array = np.ascontiguousarray(values, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    node.input[1] = names[0]
    name = layer.last
    while name != layer.output:
        behind = producer(model, name)
        name = next(one for one in behind.input if constant(model, one) is None)
        model.graph.node.remove(behind)
    if node.op_type == "MatMul":
        place = list(model.graph.node).index(node)
        inner = layer.output if layer.last != layer.output else free_name("classes.raw", taken)
        node.output[0] = inner
        add = helper.make_node("Add", [inner, names[1]], [layer.last], name=f"{layer.name}.bias")
        model.graph.node.insert(place + 1, add)
        return
    if node.op_type == "Gemm":
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("transB", 1))
    del node.input[2:]
    node.input.append(names[1])
    node.output[0] = layer.last
