"""An ONNX detector's outputs to the bundle's, as nodes that every engine and TensorRT takes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ltdeploy.models.onnx_head import free_name, names_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx

    from ltdeploy.canvas import Canvas
    from ltdeploy.models.detectors.onnx_detector import OnnxDetector
    from ltdeploy.models.detectors.onnx_mapping import OutputMapping

__all__ = ["OUTPUTS", "append_decoding"]

OUTPUTS = ("boxes", "logits", "quality")


def append_decoding(graph: onnx.ModelProto, model: OnnxDetector, names: Mapping[str, str]) -> None:
    """Append what the mapping says, in place, and make its results the graph's outputs.

    Parameters
    ----------
    graph : without the activations of classes and objectness; none of its tensors has the name of
        an output of the bundle.
    names : of the tensors to decode: ``predictions``, or ``boxes`` and ``logits``.
    """
    from onnx import TensorProto, helper

    mapping, nodes = model.mapping, _Nodes(graph)
    usual = mapping.usual
    if mapping.layout == "detr":
        boxes, logits = names["boxes"], names["logits"]
        count = model.shapes[model.names["logits"]][1]
        _corners(nodes, mapping, boxes, model.canvas)
        nodes.add("Identity", logits, name="logits")
    else:
        values, shape = names["predictions"], model.shapes[model.names["predictions"]]
        count = math.prod(shape) // shape[0] // shape[usual.axis]
        cut = nodes.cut(values, usual.axis, usual.first_class, shape[usual.axis])
        if mapping.layout == "yolov5":
            nodes.add("Identity", cut, name="logits")
            _corners(nodes, mapping, nodes.cut(values, 2, 0, 4), model.canvas)
        else:
            nodes.add("Transpose", nodes.flat(cut, shape), name="logits", perm=[0, 2, 1])
            if mapping.layout == "yolov8":
                columns = nodes.cut(values, 1, 0, 4)
                rows = nodes.add("Transpose", columns, perm=[0, 2, 1])
                _corners(nodes, mapping, rows, model.canvas)
            else:
                _grid(nodes, values, shape, model.canvas)
        if usual.quality is not None:
            one = nodes.cut(values, usual.axis, usual.quality, usual.quality + 1)
            nodes.add("Flatten", one, name="quality", axis=1)
    shapes: dict[str, list[str | int | None]] = {
        "boxes": ["batch", count, 4],
        "logits": ["batch", count, model.head.classes],
        "quality": ["batch", count],
    }
    del graph.graph.output[:]
    for name in OUTPUTS if mapping.has_quality else OUTPUTS[:2]:
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name])
        graph.graph.output.append(value)


def _grid(nodes: _Nodes, values: str, shape: tuple[int, ...], canvas: Canvas) -> None:
    """Append FastestDet's boxes, see :func:`ltdeploy.models.detectors.onnx_decode.decode`."""
    rows, columns = shape[2:]
    down, right = np.mgrid[:rows, :columns]
    cells = np.stack([right, down]).astype(np.float32)
    cell_px = np.array([canvas.width_px / columns, canvas.height_px / rows]).reshape(2, 1, 1)
    half_px = np.array([canvas.width_px, canvas.height_px]).reshape(2, 1, 1) / 2
    offsets = nodes.add("Tanh", nodes.cut(values, 1, 1, 3))
    placed = nodes.add("Add", offsets, nodes.constant(cells))
    centres = nodes.add("Mul", placed, nodes.constant(cell_px))
    shares = nodes.add("Sigmoid", nodes.cut(values, 1, 3, 5))
    halves = nodes.add("Mul", shares, nodes.constant(half_px))
    sides = [nodes.add(kind, centres, halves) for kind in ("Sub", "Add")]
    corners = nodes.flat(nodes.add("Concat", *sides, axis=1), shape)
    nodes.add("Transpose", corners, name="boxes", perm=[0, 2, 1])


def _corners(nodes: _Nodes, mapping: OutputMapping, boxes: str, canvas: Canvas) -> None:
    """Append boxes (N, P, 4) as xyxy in pixels of the canvas."""
    if mapping.is_share:
        size = np.array([canvas.width_px, canvas.height_px] * 2, np.float32)
        boxes = nodes.add("Mul", boxes, nodes.constant(size))
    if mapping.box_format == "xyxy":
        nodes.add("Identity", boxes, name="boxes")
        return
    centres, widths = nodes.cut(boxes, 2, 0, 2), nodes.cut(boxes, 2, 2, 4)
    halves = nodes.add("Mul", widths, nodes.constant(np.array(0.5)))
    sides = [nodes.add(kind, centres, halves) for kind in ("Sub", "Add")]
    nodes.add("Concat", *sides, name="boxes", axis=2)


class _Nodes:
    """Appends nodes and constants to a graph under names that are free."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._taken = set(names_in(model))

    def add(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Append a node and return the name of its output."""
        from onnx import helper

        output = name or free_name(f"decode.{kind.lower()}", self._taken)
        self._graph.node.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def constant(self, values: npt.NDArray[np.generic]) -> str:
        """Store numbers, floats as float32, and return their name."""
        from onnx import numpy_helper

        name = free_name("decode.constant", self._taken)
        kept = values.astype(np.float32) if values.dtype.kind == "f" else values
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(kept), name))
        return name

    def cut(self, values: str, axis: int, first: int, end: int) -> str:
        """Append what takes ``first … end - 1`` of an axis."""
        bounds = [self.constant(np.array([number])) for number in (first, end, axis)]
        return self.add("Slice", values, *bounds)

    def flat(self, values: str, shape: tuple[int, ...]) -> str:
        """Append what makes one axis of all places, (N, C, H, W) to (N, C, H·W)."""
        if len(shape) == 3:
            return values
        sizes = self.constant(np.array([0, 0, math.prod(shape[2:])]))
        return self.add("Reshape", values, sizes)
