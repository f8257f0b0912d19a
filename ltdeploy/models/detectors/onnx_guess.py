"""Whether an ONNX file looks like a detector's, and which mapping its outputs could have."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..._optional import require
from ...errors import CheckpointError, MissingExtraError
from ..onnx_graph import read_model
from ..reading import check_path
from .onnx_mapping import Layout
from .onnx_probe import probe

if TYPE_CHECKING:
    import onnx

__all__ = ["OnnxOutlook", "look_at", "require_classifier"]

Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class OnnxOutlook:
    """What the inputs and outputs of an ONNX file show.

    Attributes
    ----------
    inputs, outputs : shapes by name; a text is an axis of any length.
    layout : the one that the shapes suggest; None where none does.
    """

    inputs: dict[str, Shape]
    outputs: dict[str, Shape]
    layout: Layout | None

    @property
    def is_detector(self) -> bool:
        """Whether it gives more than one vector for each image."""
        return len(self.outputs) > 1 or any(len(shape) > 2 for shape in self.outputs.values())

    def mapping(self) -> dict[str, Any] | None:
        """Return a mapping to start from, as JSON values; None where no layout fits or
        the file takes nothing.

        What a file cannot show (mean, std, order of the channels, how photographs are fitted) is as
        such detectors usually have it.
        """
        if self.layout is None or not self.inputs:
            return None
        images = next(iter(self.inputs.values()))
        sides = images[2:] if len(images) == 4 and images[1] == 3 else images[1:3]
        size = dict(zip(("height_px", "width_px"), sides, strict=False))
        detr = self.layout == "detr"
        canvas = {
            **{key: value if isinstance(value, int) else 640 for key, value in size.items()},
            "fit": "squash" if detr or self.layout == "fastestdet" else "centre",
            "channels": "bgr" if self.layout == "fastestdet" else "rgb",
            "mean": [0.485, 0.456, 0.406] if detr else [0, 0, 0],
            "std": [0.229, 0.224, 0.225] if detr else [1, 1, 1],
        }
        if self.layout in ("yolov5", "yolov8"):
            canvas["fill"] = [114, 114, 114]
        named = {} if detr else {"output": self._fitting()}
        return {"layout": self.layout, **named, "canvas": canvas}

    def told(self) -> str:
        """Return inputs and outputs in a line."""

        def listed(tensors: dict[str, Shape]) -> str:
            each = (f"{name!r} [{', '.join(map(str, shape))}]" for name, shape in tensors.items())
            return ", ".join(each) or "nothing"

        return f"takes {listed(self.inputs)} and gives {listed(self.outputs)}"

    def _fitting(self) -> str:
        return next(name for name, shape in self.outputs.items() if _layout(shape) == self.layout)


def look_at(path: Path) -> OnnxOutlook:
    """Look at what an ONNX file takes and gives.

    Raises
    ------
    CheckpointError
        If it cannot be read as ONNX.
    """
    require("onnx", extra="torch", purpose="read .onnx files")
    check_path(path)
    model = read_model(path)
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = {n: shape for n, shape in _shapes(model.graph.input).items() if n not in stored}
    outputs = _measured(model, inputs, _shapes(model.graph.output))
    return OnnxOutlook(inputs, outputs, _guess(outputs))


def require_classifier(path: Path) -> None:
    """Raise if an ONNX file is a detector's, with what must be said of it.

    Raises
    ------
    CheckpointError
        If its outputs are not those of a classifier.
    """
    if not path.is_file():
        return
    seen = look_at(path)
    if not seen.is_detector:
        return
    start = seen.mapping()
    example = f", for example {json.dumps(start)}" if start is not None else ""
    raise CheckpointError(
        f"{path} looks like a detector's: it {seen.told()}. A classifier has one output of logits "
        f"[N, C]. Say what a detector's outputs hold with --outputs FILE.json{example}"
    )


def _measured(
    model: onnx.ModelProto, inputs: dict[str, Shape], outputs: dict[str, Shape]
) -> dict[str, Shape]:
    """Return the outputs' shapes, axes that the file leaves open found out by running it."""
    is_open = any(isinstance(axis, str) for shape in outputs.values() for axis in shape[1:])
    sides = next(iter(inputs.values()))[2:] if len(inputs) == 1 else ()
    if not is_open or len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        return outputs
    height_px, width_px = (int(side) for side in sides)
    try:
        found = probe(model, height_px, width_px, "The file").shapes
    except (CheckpointError, MissingExtraError):  # a guess is worth no error
        return outputs
    return {name: (*shape[:1], *found[name][1:]) for name, shape in outputs.items()}


def _guess(outputs: dict[str, Shape]) -> Layout | None:
    if len(outputs) > 1:
        three = [shape for shape in outputs.values() if len(shape) == 3]
        boxes = [shape for shape in three if shape[-1] == 4]
        if len(boxes) == 1 and len(three) == 2:
            return "detr"
    found = [layout for shape in outputs.values() if (layout := _layout(shape)) is not None]
    return found[0] if len(found) == 1 else None


def _layout(shape: Shape) -> Layout | None:
    """Return the layout of one output, by where its number of boxes must be: the longer axis."""
    if len(shape) == 4:
        return "fastestdet" if isinstance(shape[1], int) and shape[1] > 5 else None
    if len(shape) != 3:
        return None
    _, middle, last = (length if isinstance(length, int) else None for length in shape)
    if last is not None and last > 5 and (middle is None or middle > last):
        return "yolov5"
    if middle is not None and middle > 4 and (last is None or last > middle):
        return "yolov8"
    return None


def _shapes(values: Any) -> dict[str, Shape]:
    return {
        value.name: tuple(
            axis.dim_value or axis.dim_param or "?" for axis in value.type.tensor_type.shape.dim
        )
        for value in values
    }
