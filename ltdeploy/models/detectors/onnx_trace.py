"""Where in somebody's graph the numbers of an output come from, element by element.

Which layer gives a detector's class logits cannot be told by names. But between that layer and the
output, values are only moved (reshaped, transposed, joined, cut) and put through a sigmoid or
softmax. So every element of the output carries a label, its class, and the labels are taken back
node by node: a moving node is run on the numbers of its elements, which says where each went.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import CheckpointError
from ..onnx_head import constant
from .onnx_probe import LINEAR, Probe

if TYPE_CHECKING:
    import onnx

__all__ = ["NOTHING", "Activated", "Trace", "trace"]

Labels = npt.NDArray[np.int32]

NOTHING = -1  # the label of an element that is no class
_SAME = ("Identity", "Dropout", "Cast")
_RESHAPING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_MOVING = ("Transpose", "Concat", "Split", "Slice", "Gather")
_ACTIVATIONS = {"Sigmoid": "sigmoid", "Softmax": "softmax"}


@dataclass(frozen=True, eq=False)
class Activated:
    """A sigmoid or softmax that labelled elements pass through.

    Attributes
    ----------
    output : name of the node's output.
    kind : ``"sigmoid"`` or ``"softmax"``.
    labels : of its elements.
    """

    output: str
    kind: str
    labels: Labels


@dataclass(frozen=True, eq=False)
class Trace:
    """What lies behind an output.

    Attributes
    ----------
    linear : labels of the outputs of the linear layers that were reached, by name.
    added : names of the outputs of nodes that add to classes or scale them by constants, by the
        name of their input.
    activations : what the elements pass through.
    """

    linear: dict[str, Labels] = field(default_factory=dict)
    added: dict[str, str] = field(default_factory=dict)
    activations: list[Activated] = field(default_factory=list)


def trace(
    model: onnx.ModelProto,
    output: str,
    labels: Labels,
    classes: int,
    probed: Probe,
    where: str,
) -> Trace:
    """Follow the labelled elements of an output back to the linear layers that give them.

    Parameters
    ----------
    labels : one per element of the output for a batch of 1, :data:`NOTHING` for what is not
        followed.
    classes : number C of labels that are classes, 0 .. C - 1; a label above is something else,
        which is followed alike.
    probed : the graph's tensors for a batch of 1.
    where : names the file in errors.

    Raises
    ------
    CheckpointError
        If a value is computed from others on the way, or is used elsewhere too.
    """
    found = Trace()
    carried: dict[str, Labels] = {output: labels}
    passed: list[str] = []
    visited: set[str] = set()
    for node in reversed(model.graph.node):
        held = {name: carried.pop(name) for name in node.output if name in carried}
        if not held:
            continue
        kind, (name, own) = node.op_type, next(iter(held.items()))
        for made, theirs in held.items():
            if (theirs != NOTHING).all():
                _require_unused(model, made, visited, where)
        visited.add(node.output[0])
        if kind in LINEAR:
            found.linear[name] = own
            continue
        passed.append(kind)
        if kind in _ACTIVATIONS:
            if kind == "Softmax":
                _require_whole(node, own, classes, _opset(model), where)
            found.activations.append(Activated(name, _ACTIVATIONS[kind], own))
        if kind in _SAME or kind in _ACTIVATIONS:
            sources = {node.input[0]: own}
        elif kind in _RESHAPING:
            sources = {node.input[0]: own.reshape(_shape(node.input[0], probed, where))}
        elif kind in _MOVING:
            sources = _moved(model, node, held, probed, where)
        elif kind in ("Add", "BatchNormalization"):
            data = [one for one in node.input if constant(model, one) is None]
            if len(data) != 1 or len(held) != 1:
                raise _stopped(node, passed, where)
            sources = {data[0]: own}
            if ((own != NOTHING) & (own < classes)).any():
                found.added[data[0]] = name
        else:
            raise _stopped(node, passed, where)
        for source, theirs in sources.items():
            if (theirs != NOTHING).any():
                before = carried.get(source)
                carried[source] = theirs if before is None else np.maximum(before, theirs)
    for name in carried:
        raise CheckpointError(
            f"{where}: going back from the classes ends at {name!r}, which no layer gives; looked "
            f"for one of {', '.join(LINEAR)}. Is {output!r} the output that holds the classes?"
        )
    return found


def _moved(
    model: onnx.ModelProto, node: Any, held: Mapping[str, Labels], probed: Probe, where: str
) -> dict[str, Labels]:
    """Return the labels of a moving node's inputs: it is run on the numbers of their elements."""
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    joined = node.op_type == "Concat"
    feeds: dict[str, npt.NDArray[Any]] = {}
    places: dict[str, int] = {}
    count = 0
    for place, name in enumerate(node.input):
        if joined or not place:
            shape = _shape(name, probed, where)
            size = math.prod(shape)
            feeds[name] = np.arange(count, count + size).reshape(shape)
            places[name] = count
            count += size
        elif name:
            known = probed.constant(model, name)
            if known is None:
                raise CheckpointError(
                    f"{where}: on the way back from the classes, {name!r} of the {node.op_type} "
                    f"{node.name or node.output[0]!r} is computed while the graph runs; expected "
                    "a constant. Simplify the file first, for example with: onnxslim IN OUT"
                )
            feeds[name] = known
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), None)
        for name, array in feeds.items()
    ]
    outputs = [helper.make_tensor_value_info(n, TensorProto.INT64, None) for n in node.output]
    alone = helper.make_model(
        helper.make_graph([node], "one", inputs, outputs), opset_imports=model.opset_import
    )
    went = dict(zip(node.output, ReferenceEvaluator(alone).run(None, feeds), strict=True))
    labels = np.full(count, NOTHING, np.int32)
    for name, own in held.items():
        np.maximum.at(labels, went[name].reshape(-1), own.reshape(-1))
    return {
        name: labels[first : first + feeds[name].size].reshape(feeds[name].shape)
        for name, first in places.items()
    }


def _require_unused(model: onnx.ModelProto, name: str, visited: set[str], where: str) -> None:
    """Raise if something off the way reads the classes: a fix must not change what it gets."""
    for node in model.graph.node:
        if name in node.input and node.output[0] not in visited and node.op_type != "Shape":
            raise CheckpointError(
                f"{where}: the classes are read by the {node.op_type} "
                f"{node.name or node.output[0]!r} too, inside the graph, so that a fix would "
                "change more than the scores. Give the file as it was exported, without "
                "post-processing in the graph, or the checkpoint."
            )


def _require_whole(node: Any, labels: Labels, classes: int, opset: int, where: str) -> None:
    """Raise unless each softmax is over all classes and nothing else."""
    axis = next((a.i for a in node.attribute if a.name == "axis"), -1 if opset >= 13 else 1)
    if opset >= 13:
        rows = np.moveaxis(labels, axis, -1).reshape(-1, labels.shape[axis])
    else:  # older ones flatten everything from the axis on
        rows = labels.reshape(math.prod(labels.shape[: axis % labels.ndim]), -1)
    rows = np.sort(rows[(rows != NOTHING).any(axis=1)], axis=1)
    if not (rows.shape[1] == classes and (rows == np.arange(classes)).all()):
        raise CheckpointError(
            f"{where}: the Softmax {node.name or node.output[0]!r} behind the classes is over "
            f"{rows.shape[1]} values that are not the {classes} columns of classes. Look at the "
            "mapping's layout and at what the output holds."
        )


def _shape(name: str, probed: Probe, where: str) -> tuple[int, ...]:
    if name not in probed.shapes:
        raise CheckpointError(
            f"{where}: the shape of {name!r}, on the way back from the classes, cannot be told "
            "from the file. Simplify it first, for example with: onnxslim IN OUT"
        )
    return probed.shapes[name]


def _stopped(node: Any, passed: list[str], where: str) -> CheckpointError:
    way = ", ".join(dict.fromkeys(passed[:-1])) or "nothing"
    return CheckpointError(
        f"{where}: looked for the layer of the classes ({', '.join(LINEAR)}, each with a bias or "
        f"BatchNormalization behind it) by going back from the classes. Passed {way}, and met the "
        f"{node.op_type} {node.name or node.output[0]!r}, which computes with them. Look at "
        "the mapping's layout; if it is right, give the file as it was exported, without "
        "post-processing in the graph and in float32, or the checkpoint."
    )


def _opset(model: onnx.ModelProto) -> int:
    opset: int = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    return opset
