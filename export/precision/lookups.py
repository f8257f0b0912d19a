"""Features that are looked up are read as they are, not as a quantised layer beside them sees them.

A quantiser gives a tensor's rounded values to everything that reads it. Where boxes look features
up (the pooling of an R-CNN) nothing is gained by that, precision is lost, and OpenVINO 2026.4
carries the scales of several levels through their concatenation and fails at the next reshape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["read_unrounded"]

_LOOKING_UP = frozenset({"Gather", "GatherElements", "GatherND", "GridSample", "RoiAlign"})
_MOVING = frozenset(
    {"Concat", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)


def read_unrounded(model: onnx.ModelProto) -> None:
    """Take the rounding of activations out of what places are looked up in; the graph is changed.

    Parameters
    ----------
    model : with QuantizeLinear and DequantizeLinear nodes.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    waiting = [
        node
        for node in model.graph.node
        # Constant places, as that of a class token, are no lookups.
        if node.op_type in _LOOKING_UP and node.input[1] in producers
    ]
    seen = {node.name for node in waiting}
    while waiting:
        node = waiting.pop()
        for place, name in enumerate(node.input):
            if place and node.op_type != "Concat":  # places, shapes
                break
            before = producers.get(name)
            if before is None or before.name in seen:
                continue
            if before.op_type == "DequantizeLinear" and before.input[0] in producers:
                node.input[place] = producers[before.input[0]].input[0]
            elif before.op_type in _MOVING:
                seen.add(before.name)
                waiting.append(before)
