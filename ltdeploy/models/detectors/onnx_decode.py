"""What a mapping says of an ONNX detector's outputs, computed in NumPy: the reference's decoding.

The exported graph decodes by nodes of its own, written apart from this, and each export is compared
with this one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...arrays import FloatArray
from ...canvas import Canvas
from .onnx_mapping import OutputMapping

__all__ = ["decode"]


def decode(
    mapping: OutputMapping, outputs: Mapping[str, FloatArray], canvas: Canvas
) -> dict[str, FloatArray]:
    """Return ``boxes``, ``logits`` and, where there is one, ``quality``.

    FastestDet's boxes, for the cell (i, j) of a grid of H × W cells and its four numbers t::

        cx = (j + tanh t0) / W    cy = (i + tanh t1) / H    w = σ(t2)    h = σ(t3)

    in shares of the canvas.

    Parameters
    ----------
    outputs : ``predictions``, or of ``detr`` ``boxes`` and ``logits``; classes and objectness are
        logits, the batch stands in front.

    Returns
    -------
    dict
        ``boxes`` (N, P, 4), float32, xyxy in pixels of the canvas, ``logits`` (N, P, C) and
        ``quality`` (N, P).
    """
    if mapping.layout == "detr":
        boxes, logits = outputs["boxes"], outputs["logits"]
        return {"boxes": _corners(mapping, boxes, canvas), "logits": logits}
    values = outputs["predictions"]
    if mapping.layout == "yolov8":
        values = values.transpose(0, 2, 1)
        boxes = _corners(mapping, values[..., :4], canvas)
        return {"boxes": boxes, "logits": np.ascontiguousarray(values[..., 4:])}
    if mapping.layout == "yolov5":
        boxes, quality = _corners(mapping, values[..., :4], canvas), values[..., 4]
    else:
        count, _, rows, columns = values.shape
        down, right = np.mgrid[:rows, :columns].astype(np.float32)
        values = values.transpose(0, 2, 3, 1)
        wide = (right + np.tanh(values[..., 1])) / columns * canvas.width_px
        high = (down + np.tanh(values[..., 2])) / rows * canvas.height_px
        width = canvas.width_px / (1 + np.exp(-values[..., 3]))
        height = canvas.height_px / (1 + np.exp(-values[..., 4]))
        sides = [wide - width / 2, high - height / 2, wide + width / 2, high + height / 2]
        boxes = np.stack(sides, axis=-1).reshape(count, rows * columns, 4)
        values = values.reshape(count, rows * columns, -1)
        quality = values[..., 0]
    return {
        "boxes": boxes.astype(np.float32),
        "logits": np.ascontiguousarray(values[..., 5:]),
        "quality": np.ascontiguousarray(quality),
    }


def _corners(mapping: OutputMapping, boxes: FloatArray, canvas: Canvas) -> FloatArray:
    """Return boxes (N, P, 4) as xyxy in pixels."""
    if mapping.is_share:
        size = [canvas.width_px, canvas.height_px] * 2
        boxes = boxes * np.array(size, boxes.dtype)
    if mapping.box_format == "cxcywh":
        half = boxes[..., 2:] / 2
        boxes = np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1)
    return np.ascontiguousarray(boxes, np.float32)
