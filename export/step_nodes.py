"""The steps of a fix as ONNX nodes, for graphs that came as ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ltdeploy.fixes import AffineMap
from ltdeploy.fixes.logit_map import LogitMap
from ltdeploy.fixes.maps import Blend, LogSoftmax, NewHead
from ltdeploy.models.onnx_head import free_name, head_nodes, names_in, replace_head

if TYPE_CHECKING:
    import onnx

__all__ = ["append_steps"]

_AXES_ARE_AN_INPUT = 18  # opset from which ReduceL2 takes its axes as a tensor


def append_steps(
    model: onnx.ModelProto, steps: Sequence[LogitMap], features: str, output: str
) -> None:
    """Put steps behind the head of a graph, in place; ``output`` is the last one's afterwards.

    Parameters
    ----------
    steps : the first may be a new head on centred or normalised features.
    features, output : the tensors that the head is given and gives.
    """
    nodes = _Nodes(model)
    if isinstance(steps[0], NewHead):
        _exchange_head(nodes, steps[0], features, output)
        steps = steps[1:]
    if not steps:
        return
    logits = nodes.name("ltdeploy_head")
    for node in model.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = logits if name == output else name
    for step in steps:
        logits = _step(nodes, step, logits, features)
    nodes.added[-1].output[0] = output
    nodes.insert(len(model.graph.node))


class _Nodes:
    """Makes nodes and constants under names that are not taken in a graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        self.added: list[onnx.NodeProto] = []
        self._taken = set(names_in(model)) | {value.name for value in model.graph.input}

    def name(self, wanted: str) -> str:
        """Return a name that is not taken, and take it."""
        return free_name(wanted, self._taken)

    def constant(self, wanted: str, values: npt.NDArray[Any]) -> str:
        """Add an array, floats rounded to float32, and return its name."""
        from onnx import numpy_helper

        name = self.name(f"ltdeploy_{wanted}")
        array = values if values.dtype == np.int64 else values.astype(np.float32)
        tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
        self.model.graph.initializer.append(tensor)
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Make a node and return the name of what it gives."""
        from onnx import helper

        result = self.name(f"ltdeploy_{kind.lower()}")
        self.added.append(helper.make_node(kind, inputs, [result], **attributes))
        return result

    def insert(self, place: int) -> None:
        """Put the nodes made so far into the graph: its nodes stand in the order they run."""
        for offset, node in enumerate(self.added):
            self.model.graph.node.insert(place + offset, node)
        self.added = []


def _exchange_head(nodes: _Nodes, step: NewHead, features: str, output: str) -> None:
    """Give the head other weights and centred, normalised features."""
    replace_head(nodes.model, output, step.weight, step.bias if step.bias.any() else None)
    inputs = features
    if step.centre is not None:
        inputs = nodes.node("Sub", inputs, nodes.constant("centre", step.centre))
    if step.normalise:
        axes = np.array([1], dtype=np.int64)
        if nodes.opset < _AXES_ARE_AN_INPUT:
            length = nodes.node("ReduceL2", inputs, axes=axes.tolist())
        else:
            length = nodes.node("ReduceL2", inputs, nodes.constant("axes", axes))
        least = nodes.constant("least", np.array([1e-12]))
        inputs = nodes.node("Div", inputs, nodes.node("Max", length, least))
    head, _ = head_nodes(nodes.model, output, "The graph")
    head.input[0] = inputs
    nodes.insert(list(nodes.model.graph.node).index(head))


def _step(nodes: _Nodes, step: LogitMap, logits: str, features: str) -> str:
    """Add a step's nodes and return the name of the logits it gives."""
    match step:
        case AffineMap():
            return _affine(nodes, step, logits)
        case LogSoftmax():
            return nodes.node("LogSoftmax", logits, axis=1)
        case Blend():
            weight = nodes.constant("gate_weight", step.gate_weight[None])
            bias = nodes.constant("gate_bias", np.array([step.gate_bias]))
            gate = nodes.node("Sigmoid", nodes.node("Gemm", features, weight, bias, transB=1))
            change = nodes.node("Mul", logits, nodes.constant("change", step.scale - 1.0))
            aligned = nodes.node("Add", change, nodes.constant("shift", step.shift))
            return nodes.node("Add", logits, nodes.node("Mul", gate, aligned))
    raise AssertionError(f"{type(step).__name__} cannot stand behind other steps")


def _affine(nodes: _Nodes, step: AffineMap, logits: str) -> str:
    shifts = bool(step.shift.any())
    if not step.is_diagonal:
        inputs = [logits, nodes.constant("scale", step.scale)]
        inputs += [nodes.constant("shift", step.shift)] if shifts else []
        return nodes.node("Gemm", *inputs, transB=1)
    if not np.all(step.scale == 1):
        logits = nodes.node("Mul", logits, nodes.constant("scale", step.scale))
    if shifts:
        logits = nodes.node("Add", logits, nodes.constant("shift", step.shift))
    return logits
