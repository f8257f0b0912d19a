"""Somebody's ONNX detector, loaded as far as the file and a declared mapping tell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..._optional import require
from ...canvas import Canvas
from ...classes import ClassTable
from ...errors import CheckpointError, UsageError, did_you_mean
from ...postprocess import KeepRule, ScoreRule
from ..classifier import Source
from ..head import Activation, Head
from ..onnx_graph import image_input, read_model, transpose_input
from ..options import LoadOptions
from ..reading import check_path, source_sha256
from .class_rows import background_warning
from .detector import complete_foreground
from .onnx_bare import without_activations
from .onnx_mapping import OutputMapping
from .onnx_probe import probe
from .onnx_rows import ClassLayer, class_layers, head_of
from .onnx_trace import NOTHING, Labels, Trace, trace

if TYPE_CHECKING:
    import onnx

__all__ = ["OnnxDetector", "load_onnx_detector", "output_names"]


@dataclass(eq=False)
class OnnxDetector:
    """A detector that came as ONNX; the other attributes are those of :class:`Detector`.

    Parameters
    ----------
    model : the file's graph, from normalised float32 images [N, 3, H, W].
    mapping : what its outputs hold.
    names : of its outputs: ``predictions``, or ``boxes`` and ``logits``.
    layers : where the classes are.
    trace : what lies between these and the outputs.
    shapes : of the graph's tensors for one image.

    Raises
    ------
    CheckpointError
        If the canvas has another size than the graph was read for.
    """

    model: onnx.ModelProto
    mapping: OutputMapping
    names: dict[str, str]
    layers: tuple[ClassLayer, ...]
    trace: Trace
    shapes: dict[str, tuple[int, ...]]
    head: Head
    canvas: Canvas
    classes: ClassTable | None
    source: Source
    arch: str = "onnx"
    trained_with: str | None = None
    train_hashes: npt.NDArray[np.uint64] | None = None

    def __post_init__(self) -> None:
        takes = self.shapes[self.input_name][2:]
        if (self.canvas.height_px, self.canvas.width_px) != takes:
            raise CheckpointError(
                f"{self.source.path} takes canvases of {takes[0]}×{takes[1]} pixels, and "
                f"{self.canvas.height_px}×{self.canvas.width_px} were asked for. The size stands "
                "in the mapping's canvas, where the file lets one choose."
            )

    @property
    def input_name(self) -> str:
        """Name of the graph's input."""
        name: str = _images(self.model, self.source.path).name
        return name

    @property
    def head_paths(self) -> tuple[str, ...]:
        """Names of the layers that a fix goes into."""
        return tuple(layer.name for layer in self.layers)

    @property
    def score_rule(self) -> ScoreRule:
        """How rows of logits become scores."""
        return self.mapping.score_rule(self.head.classes)

    @property
    def keep_rule(self) -> KeepRule:
        """What is kept of what it finds."""
        return self.mapping.keep_rule()

    @property
    def has_fixed_batch(self) -> bool:
        """Whether the file takes one image at a time."""
        axis = _images(self.model, self.source.path).type.tensor_type.shape.dim[0]
        return bool(axis.dim_value)

    def bare(self) -> onnx.ModelProto:
        """Return the graph without the activations of classes and objectness: it gives logits."""
        return without_activations(self.model, self.trace.activations)

    def require_complete(self) -> ClassTable:
        """Return the class table that export and verification need.

        Raises
        ------
        CheckpointError
            If it is missing, or speaks of another number of classes than the head.
        """
        return complete_foreground(self)


def load_onnx_detector(
    path: Path, mapping: OutputMapping, options: LoadOptions, canvas: Canvas | None = None
) -> OnnxDetector:
    """Load an ONNX detector whose outputs are declared.

    Parameters
    ----------
    options : of its fields ``classes``.
    canvas : None takes the mapping's.

    Raises
    ------
    CheckpointError
        If the file is no ONNX detector of images, or the layer of its classes is not found.
    UsageError
        If the mapping does not fit the file.
    """
    require("onnx", extra="torch", purpose="read .onnx files")
    check_path(path)
    model = read_model(path)
    notes: list[str] = []
    images = _images(model, path)
    layout, height_px, width_px = image_input(path, images)
    if layout == "NHWC":
        transpose_input(model, images)
        notes.append("The graph takes images as [N, H, W, 3]; a Transpose was put in front.")
    axes = images.type.tensor_type.shape.dim
    if axes[0].dim_value > 1:
        raise CheckpointError(
            f"{path} takes batches of {axes[0].dim_value} images only; expected any number, or 1. "
            "Export the model again."
        )
    canvas = canvas or mapping.canvas_for(height_px, width_px)
    for axis, length in zip(axes[2:], (canvas.height_px, canvas.width_px), strict=True):
        if axis.dim_value not in (0, length):
            raise CheckpointError(
                f"{path} takes images of {height_px}×{width_px} pixels only, and the canvas is "
                f"{canvas.height_px}×{canvas.width_px}."
            )
        axis.Clear()
        axis.dim_value = length
    probed = probe(model, canvas.height_px, canvas.width_px, str(path))
    shapes = probed.shapes
    names = output_names(model, mapping, shapes, path)
    output = names.get("logits") or names["predictions"]
    labels, columns = _labels(mapping, output, shapes[output], path)
    traced = trace(model, output, labels, columns, probed, str(path))
    inside = _require_activation(mapping, traced, labels, columns, path)
    notes.append(
        f"Its {inside} is inside the graph, and was taken off: fixes act on logits."
        if inside
        else "It gives logits."
    )
    layers = class_layers(model, traced, columns, str(path))
    rule = mapping.score_rule(columns)
    activation: Activation = "softmax" if rule.activation == "softmax" else "sigmoid"
    head = head_of(layers, activation, rule.background)
    if activation == "softmax":
        notes += background_warning(head.bias, head.background, "the mapping")
    return OnnxDetector(
        model=model,
        mapping=mapping,
        names=names,
        layers=layers,
        trace=traced,
        shapes=shapes,
        head=head,
        canvas=canvas,
        classes=options.classes,
        source=Source(path.resolve(), source_sha256(path), "ONNX", tuple(notes)),
    )


def output_names(
    model: onnx.ModelProto,
    mapping: OutputMapping,
    shapes: dict[str, tuple[int, ...]],
    path: Path,
) -> dict[str, str]:
    """Return which outputs of the graph a mapping speaks of.

    Returns
    -------
    dict
        ``predictions``, or of ``detr`` ``boxes`` and ``logits``.

    Raises
    ------
    UsageError
        If the file has no such output, or several could be meant.
    """
    there = [value.name for value in model.graph.output]
    listed = ", ".join(f"{name!r} {list(shapes.get(name, ()))}" for name in there)
    for name in (mapping.output, mapping.boxes, mapping.logits):
        if name is not None and name not in there:
            raise UsageError(
                f"{path} has no output {name!r}; its outputs are {listed}."
                f"{did_you_mean(name, there)}"
            )
    if mapping.layout != "detr":
        if mapping.output is None and len(there) != 1:
            raise UsageError(
                f"{path} has {len(there)} outputs: {listed}. Say in the mapping which one holds "
                f'the predictions, for example "output": "{there[0]}".'
            )
        return {"predictions": mapping.output or there[0]}
    free = [name for name in there if name not in (mapping.boxes, mapping.logits)]
    three = {name: shapes[name] for name in free if len(shapes.get(name, ())) == 3}
    boxes = [mapping.boxes] if mapping.boxes else [n for n, s in three.items() if s[-1] == 4]
    logits = [mapping.logits] if mapping.logits else [n for n in three if n not in boxes]
    if len(boxes) != 1 or len(logits) != 1:
        raise UsageError(
            f"{path}: which outputs hold boxes [N, P, 4] and logits [N, P, C] cannot be told from "
            f'{listed}. Say it in the mapping: "boxes": NAME, "logits": NAME.'
        )
    (one,), (other,) = boxes, logits
    assert one is not None
    assert other is not None
    return {"boxes": one, "logits": other}


def _images(model: onnx.ModelProto, path: Path) -> Any:
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    if len(inputs) != 1:
        listed = ", ".join(repr(value.name) for value in inputs)
        raise CheckpointError(
            f"{path} has {len(inputs)} inputs ({listed}); expected one, the images."
        )
    return inputs[0]


def _labels(
    mapping: OutputMapping, output: str, shape: tuple[int, ...], path: Path
) -> tuple[Labels, int]:
    """Return a label for each element of an output, and the number C of columns of classes."""
    usual = mapping.usual
    axes = 4 if mapping.layout == "fastestdet" else 3
    columns = shape[usual.axis] - usual.first_class if len(shape) == axes else 0
    if columns < 1:
        form = {
            "fastestdet": "[N, 1 + 4 + C, H, W]",
            "yolov5": "[N, P, 4 + 1 + C]",
            "yolov8": "[N, 4 + C, P]",
            "detr": "[N, P, C]",
        }[mapping.layout]
        raise UsageError(
            f"{path}: the output {output!r} has the shape {list(shape)}; the layout "
            f"{mapping.layout!r} is {form}."
        )
    column = np.full(shape[usual.axis], NOTHING, np.int32)
    column[usual.first_class :] = np.arange(columns)
    if usual.quality is not None:
        column[usual.quality] = columns
    others = [axis for axis in range(axes) if axis != usual.axis]
    labels = np.broadcast_to(np.expand_dims(column, others), shape)
    return labels, columns


def _require_activation(
    mapping: OutputMapping, traced: Trace, labels: Labels, columns: int, path: Path
) -> str | None:
    """Return what is inside the graph, a softmax, a sigmoid or neither; refuse what contradicts."""
    told = mapping.score_rule(columns).activation
    classes = _inside(traced, labels, np.arange(columns), f"{path}: the classes")
    if classes not in (None, told):
        raise UsageError(
            f"{path} has a {classes} behind its classes, and the mapping says {told!r}. Say "
            f'"activation": "{classes}", or look at the mapping\'s layout.'
        )
    if mapping.has_quality:
        objectness = _inside(traced, labels, np.array([columns]), f"{path}: the objectness")
        if objectness not in (None, "sigmoid"):
            raise UsageError(f"{path} has a {objectness} behind its objectness, not a sigmoid.")
    return classes


def _inside(traced: Trace, labels: Labels, meant: npt.NDArray[np.int64], what: str) -> str | None:
    """Return what all elements of some labels pass through once; None where none passes any."""
    met = {one.output: int(np.isin(one.labels, meant).sum()) for one in traced.activations}
    kinds = {one.kind for one in traced.activations if met[one.output]}
    every, passing = int(np.isin(labels, meant).sum()), sum(met.values())
    if passing not in (0, every) or len(kinds) > 1:
        raise CheckpointError(
            f"{what} go through a sigmoid or softmax in part ({passing} of {every} numbers) or "
            "more than once; expected all of them once, or none."
        )
    return next(iter(kinds), None)
