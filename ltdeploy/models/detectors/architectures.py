"""Detector architectures by name, and what their rows of logits mean.

Nothing here downloads anything: weights come from the checkpoint, or start at random.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..._optional import require
from ...canvas import Canvas, Fit
from ...errors import UsageError, did_you_mean
from ...postprocess import KeepRule, ScoreRule
from .class_rows import CLASS_ROWS

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "ARCHITECTURES",
    "QUERY_KINDS",
    "Architecture",
    "Kind",
    "build_detector",
    "check_detector_arch",
]

Kind = Literal["rcnn", "retinanet", "fcos", "detr", "rt_detr_v2", "d_fine"]
# Transformers with a fixed number of queries, of which no two are trained to find the same object.
QUERY_KINDS: tuple[Kind, ...] = ("detr", "rt_detr_v2", "d_fine")


@dataclass(frozen=True)
class Architecture:
    """What is true of a detector architecture whatever its weights.

    Parameters
    ----------
    kind : how its parts fit together.
    height_px, width_px : the canvas it is used on unless told otherwise; a photograph of 4:3 that
        is scaled as torchvision's ``min_size`` says, rounded up to whole strides of 32.
    """

    kind: Kind
    height_px: int
    width_px: int

    def background(self, columns: int) -> int | None:
        """Return which of C columns of logits is the background; None where there is none."""
        place = CLASS_ROWS[self.kind].background
        return None if place is None else {"first": 0, "last": columns - 1}[place]

    def score_rule(self, columns: int) -> ScoreRule:
        """Return how rows of C logits become scores."""
        return ScoreRule(
            CLASS_ROWS[self.kind].activation,
            background=self.background(columns),
            quality="sqrt" if self.kind == "fcos" else "none",
        )

    def canvas(self) -> Canvas:
        """Return the canvas it is used on unless told otherwise."""
        fit: Fit = "squash" if self.kind in QUERY_KINDS else "top_left"
        return Canvas(self.height_px, self.width_px, fit=fit)

    def keep_rule(self) -> KeepRule:
        """Return what is kept of what it finds: 300 detections, LVIS's number."""
        if self.kind in QUERY_KINDS:
            return KeepRule(suppression="none")
        return KeepRule(suppression="hard", iou=0.6 if self.kind == "fcos" else 0.5)


_SMALL, _LARGE = (320, 448), (800, 1088)

# torchvision's names.
ARCHITECTURES: dict[str, Architecture] = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": Architecture("rcnn", *_SMALL),
    "fasterrcnn_mobilenet_v3_large_fpn": Architecture("rcnn", *_LARGE),
    "fasterrcnn_resnet50_fpn": Architecture("rcnn", *_LARGE),
    "fasterrcnn_resnet50_fpn_v2": Architecture("rcnn", *_LARGE),
    "maskrcnn_resnet50_fpn": Architecture("rcnn", *_LARGE),
    "maskrcnn_resnet50_fpn_v2": Architecture("rcnn", *_LARGE),
    "retinanet_resnet50_fpn": Architecture("retinanet", *_LARGE),
    "retinanet_resnet50_fpn_v2": Architecture("retinanet", *_LARGE),
    "fcos_resnet50_fpn": Architecture("fcos", *_LARGE),
}


def check_detector_arch(arch: str) -> str:
    """Return the plain name of ``torchvision:NAME``.

    Raises
    ------
    UsageError
        For another family or an unknown name, with the nearest known one.
    """
    family, colon, name = arch.partition(":")
    if not colon or family != "torchvision":
        raise UsageError(
            f"The detector architecture is {arch!r}; expected torchvision:NAME, for example "
            "torchvision:fasterrcnn_resnet50_fpn."
        )
    if name not in ARCHITECTURES:
        raise UsageError(
            f"No detector is called {name!r}; known are {', '.join(ARCHITECTURES)}."
            f"{did_you_mean(name, ARCHITECTURES)}"
        )
    return name


def build_detector(arch: str, foreground: int, canvas: Canvas | None = None) -> nn.Module:
    """Build an untrained detector of torchvision.

    Parameters
    ----------
    arch : ``torchvision:NAME``.
    foreground : number of classes F, the background not counted.
    canvas : what it will see; None is the architecture's own.

    Returns
    -------
    torch.nn.Module
        torchvision's model, whose own resizing and normalisation are switched off: it takes
        normalised canvases, float32 (3, H, W).

    Raises
    ------
    UsageError
        For an unknown architecture.
    """
    name = check_detector_arch(arch)
    detection: Any = require(
        "torchvision.models.detection", extra="torch", purpose="build detectors"
    )
    kind = ARCHITECTURES[name].kind
    module: Any = getattr(detection, name)(
        weights=None,
        weights_backbone=None,
        num_classes=foreground + 1 if kind == "rcnn" else foreground,
    )
    size = canvas or ARCHITECTURES[name].canvas()
    module.transform = detection.transform.GeneralizedRCNNTransform(
        size.height_px,
        size.width_px,
        [0.0, 0.0, 0.0],
        [1.0, 1.0, 1.0],
        size_divisible=1,
        _skip_resize=True,
    )
    built: nn.Module = module
    return built
