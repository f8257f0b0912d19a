"""What somebody's ONNX detector takes and gives, declared in a small JSON file.

An ONNX file says the shapes of its outputs, and not which numbers are boxes, classes or objectness.
Four layouts cover what people have (N photographs, P boxes, C columns of classes):

========== ====================================================================================
layout     outputs
========== ====================================================================================
fastestdet [N, 1 + 4 + C, H, W]: objectness, offsets and sizes on a grid, classes
yolov5     [N, P, 4 + 1 + C]: box, objectness, classes
yolov8     [N, 4 + C, P]: box, classes
detr       boxes [N, P, 4] and logits [N, P, C]
========== ====================================================================================

Everything else has a default by layout. What the file itself shows is not asked: whether a softmax
or sigmoid is inside the graph already, and how many classes there are.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...canvas import Canvas, Fit
from ...errors import UsageError, did_you_mean
from ...postprocess import KeepRule, ScoreRule, Suppression
from ...preprocessing import Interpolation

__all__ = [
    "EXAMPLE",
    "MAPPING_FILE",
    "CanvasEntry",
    "KeepEntry",
    "Layout",
    "OutputMapping",
    "Usual",
    "read_mapping",
]

MAPPING_FILE = "outputs.json"  # in a bundle

Layout = Literal["fastestdet", "yolov5", "yolov8", "detr"]
Number = Annotated[float, Field(allow_inf_nan=False)]
Three = tuple[Number, Number, Number]
Length = Annotated[int, Field(ge=1, le=1 << 14)]
Byte = Annotated[int, Field(ge=0, le=255)]
Share = Annotated[float, Field(ge=0, le=1)]

_LARGEST_FILE_BYTES = 1 << 20
EXAMPLE = (
    '{"layout": "yolov8", "canvas": {"fit": "centre", "channels": "rgb", "mean": [0, 0, 0], '
    '"std": [1, 1, 1]}}'
)


@dataclass(frozen=True)
class Usual:
    """Where a layout has its numbers, and what they mean where the mapping says nothing else.

    Attributes
    ----------
    axis : along which objectness, box and classes stand.
    first_class : where on it the classes begin; they reach to its end.
    quality : where the objectness is; None where there is none.
    first_box : where the four numbers of the box begin.
    """

    axis: int
    first_class: int
    quality: int | None
    first_box: int
    activation: Literal["softmax", "sigmoid"]
    background: Literal["none", "first", "last"] = "none"
    unit: Literal["pixels", "share"] = "pixels"
    powers: tuple[float, float] | None = None
    suppression: Suppression = "hard"
    iou: float = 0.45


_USUAL: dict[Layout, Usual] = {
    "fastestdet": Usual(1, 5, 0, 1, "softmax", powers=(0.4, 0.6)),
    "yolov5": Usual(2, 5, 4, 0, "sigmoid", powers=(1.0, 1.0)),
    "yolov8": Usual(1, 4, None, 0, "sigmoid", iou=0.7),
    "detr": Usual(2, 0, None, 0, "softmax", background="last", unit="share", suppression="none"),
}


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class CanvasEntry(_Entry):
    """How a photograph becomes the graph's input.

    Attributes
    ----------
    height_px, width_px : None takes the graph's own.
    fit, interpolation, fill, may_enlarge : as of :class:`~ltdeploy.canvas.Canvas`.
    channels : the order that the network takes.
    white : what white is before mean and std: 1 where pixels are divided by 255, or 255.
    mean, std : ``(pixel · white / 255 − mean) / std``, in the order of ``channels``.
    """

    height_px: Length | None = None
    width_px: Length | None = None
    fit: Fit
    channels: Literal["rgb", "bgr"]
    mean: Three
    std: Three
    white: Literal[1, 255] = 1
    interpolation: Interpolation = "bilinear"
    fill: tuple[Byte, Byte, Byte] = (0, 0, 0)
    may_enlarge: bool = True


class KeepEntry(_Entry):
    """What of :class:`~ltdeploy.postprocess.KeepRule` is another than usual."""

    suppression: Suppression | None = None
    iou: Share | None = None
    class_agnostic: bool = False
    score_threshold: Share = 1e-4
    top_k: Annotated[int, Field(ge=1)] = 300


class OutputMapping(_Entry):
    """What a detector's ONNX file takes and gives.

    Attributes
    ----------
    layout : where boxes, classes and objectness stand, see the module.
    canvas : what the graph is given.
    output : name of the one output of the first three layouts; None takes the only one.
    boxes, logits : names of the two outputs of ``detr``; None tells them by their shapes.
    box_format : ``"cxcywh"`` (the usual) or ``"xyxy"``.
    box_unit : ``"pixels"`` of the canvas, or ``"share"``, 0..1 of it.
    activation : what turns the logits into scores, inside the graph or not.
    background : which column of the classes is the background; with sigmoids usually none.
    powers : (α, β) of ``p_class^α · p_object^β``.
    keep : suppression and its overlap, threshold and number.
    """

    layout: Layout
    canvas: CanvasEntry
    output: str | None = None
    boxes: str | None = None
    logits: str | None = None
    box_format: Literal["cxcywh", "xyxy"] = "cxcywh"
    box_unit: Literal["pixels", "share"] | None = None
    activation: Literal["softmax", "sigmoid"] | None = None
    background: Literal["none", "first", "last"] | None = None
    powers: tuple[Number, Number] | None = None
    keep: KeepEntry = KeepEntry()

    @model_validator(mode="after")
    def _fits_the_layout(self) -> OutputMapping:
        pointless = {
            "output": self.layout == "detr" and self.output is not None,
            "boxes": self.layout != "detr" and self.boxes is not None,
            "logits": self.layout != "detr" and self.logits is not None,
            "powers": not self.has_quality and self.powers is not None,
            "box_format": self.layout == "fastestdet" and "box_format" in self.model_fields_set,
            "box_unit": self.layout == "fastestdet" and self.box_unit is not None,
        }
        for key, there in pointless.items():
            if there:
                raise ValueError(f"the layout {self.layout!r} has no {key!r}; leave it out")
        self.score_rule(2)  # refuses powers that are none
        return self

    @property
    def usual(self) -> Usual:
        """Where the layout has its numbers, and what they usually mean."""
        return _USUAL[self.layout]

    @property
    def has_quality(self) -> bool:
        """Whether each box comes with an objectness."""
        return self.usual.quality is not None

    @property
    def is_share(self) -> bool:
        """Whether boxes come as shares of the canvas."""
        return (self.box_unit or self.usual.unit) == "share"

    def background_column(self, columns: int) -> int | None:
        """Return which of C columns of classes is the background; None where there is none."""
        usual = "none" if self.activation == "sigmoid" else self.usual.background
        place = self.background or usual
        return {"none": None, "first": 0, "last": columns - 1}[place]

    def score_rule(self, columns: int) -> ScoreRule:
        """Return how rows of C logits become scores."""
        usual = self.usual
        powers = self.powers or usual.powers
        plain = powers == (1.0, 1.0)
        return ScoreRule(
            self.activation or usual.activation,
            background=self.background_column(columns),
            quality="none" if powers is None else "product" if plain else "powers",
            powers=None if plain else powers,
        )

    def keep_rule(self) -> KeepRule:
        """Return what is kept of what it finds."""
        usual, keep = self.usual, self.keep
        return KeepRule(
            score_threshold=keep.score_threshold,
            top_k=keep.top_k,
            suppression=keep.suppression or usual.suppression,
            iou=usual.iou if keep.iou is None else keep.iou,
            class_agnostic=keep.class_agnostic,
        )

    def canvas_for(self, height_px: int | None, width_px: int | None) -> Canvas:
        """Return the canvas, whose mean and std are in the order R, G, B and on values in 0..1.

        Parameters
        ----------
        height_px, width_px : of the graph's input; None where it takes any.

        Raises
        ------
        UsageError
            If neither the graph nor the mapping tells the size, or they contradict each other.
        """
        entry = self.canvas
        told = (entry.height_px, entry.width_px)
        for key, ours, graphs in zip(
            ("height_px", "width_px"), told, (height_px, width_px), strict=True
        ):
            if ours is None and graphs is None:
                raise UsageError(
                    f"The graph takes images of any size, and the mapping's canvas lacks {key!r}; "
                    "expected a length in pixels."
                )
            if None not in (ours, graphs) and ours != graphs:
                raise UsageError(
                    f"The mapping's canvas.{key} is {ours}, and the graph takes {graphs} pixels "
                    f"only. Leave {key!r} out."
                )
        turn = 1 if entry.channels == "rgb" else -1
        return Canvas(
            entry.height_px or height_px or 0,
            entry.width_px or width_px or 0,
            fit=entry.fit,
            interpolation=entry.interpolation,
            fill=entry.fill,
            mean=_three(value / entry.white for value in entry.mean[::turn]),
            std=_three(value / entry.white for value in entry.std[::turn]),
            may_enlarge=entry.may_enlarge,
        )

    def to_json(self) -> str:
        """Return the file's text, without what is as usual."""
        return self.model_dump_json(exclude_unset=True, indent=1) + "\n"


def read_mapping(path: str | os.PathLike[str]) -> OutputMapping:
    """Read a mapping, strictly; docs/detection.md describes it.

    Raises
    ------
    UsageError
        If the file is absent, no JSON, or anything in it is unknown, missing or out of range.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST_FILE_BYTES:
            raise UsageError(f"The mapping {path} is larger than {_LARGEST_FILE_BYTES >> 20} MiB.")
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except OSError as error:
        raise UsageError(
            f"The mapping {path} cannot be read: {error.strerror or error}. Expected a JSON file, "
            f"for example {EXAMPLE}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"The mapping {path} is not JSON ({error}); expected for example {EXAMPLE}"
        ) from error
    if not isinstance(content, dict):
        raise UsageError(f"The mapping {path} is no JSON object; expected for example {EXAMPLE}")
    try:
        return OutputMapping.model_validate_json(text)
    except ValidationError as error:
        raise UsageError(f"The mapping {path} {_complaint(error)}") from error
    except UsageError as error:
        raise UsageError(f"The mapping {path} cannot be used: {error}") from error


def _complaint(error: ValidationError) -> str:
    found = error.errors(include_url=False)
    lacking = [_dotted(one["loc"]) for one in found if one["type"] == "missing"]
    for one in found:
        if one["type"] == "extra_forbidden":
            key, known = str(one["loc"][-1]), _known_keys(one["loc"][:-1])
            return (
                f"has the unknown key {_dotted(one['loc'])!r}; known are {', '.join(known)}."
                f"{did_you_mean(key, known)}"
            )
    if lacking:
        listed = ", ".join(map(repr, lacking))
        return f"lacks {listed}; expected for example {EXAMPLE}"
    first = found[0]
    where = _dotted(first["loc"]) or "the top"
    told = "" if first["type"] == "value_error" else f" ({first['input']!r})"
    guess = ""
    if where == "layout":
        guess = did_you_mean(str(first["input"]), get_args(Layout))
    return f"is not valid at {where}{told}: {first['msg'].removeprefix('Value error, ')}.{guess}"


def _dotted(loc: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in loc)


def _known_keys(where: tuple[Any, ...]) -> list[str]:
    inner: dict[str, type[_Entry]] = {"canvas": CanvasEntry, "keep": KeepEntry}
    return list(inner.get(str(where[0]) if where else "", OutputMapping).model_fields)


def _three(values: Any) -> tuple[float, float, float]:
    first, second, third = values
    return first, second, third
