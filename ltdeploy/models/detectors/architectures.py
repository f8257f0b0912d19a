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
from .class_rows import CLASS_ROWS, ClassRows
from .design import BACKBONES, DESIGNS, FAMILIES

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "ARCHITECTURES",
    "QUERY_KINDS",
    "RCNN_KINDS",
    "Architecture",
    "Kind",
    "build_detector",
    "check_detector_arch",
]

Kind = Literal["rcnn", "cascade_rcnn", "retinanet", "fcos", "detr", "rt_detr_v2", "d_fine"]
# Proposals first, then their classes and boxes.
RCNN_KINDS: tuple[Kind, ...] = ("rcnn", "cascade_rcnn")
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
    own_rows : where its classes are, if not where those of its kind are.
    """

    kind: Kind
    height_px: int
    width_px: int
    own_rows: ClassRows | None = None

    @property
    def class_rows(self) -> ClassRows:
        """Where its classes are."""
        return self.own_rows or CLASS_ROWS[self.kind]

    def background(self, columns: int) -> int | None:
        """Return which of C columns of logits is the background; None where there is none."""
        place = self.class_rows.background
        return None if place is None else {"first": 0, "last": columns - 1}[place]

    def score_rule(self, columns: int) -> ScoreRule:
        """Return how rows of C logits become scores."""
        return ScoreRule(
            self.class_rows.activation,
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
_KINDS: dict[str, Kind] = {
    "cascade_rcnn": "cascade_rcnn",
    "retinanet": "retinanet",
    "fcos": "fcos",
}

# By torchvision's names and their rule: FAMILY_BACKBONE_fpn, some with _v2.
ARCHITECTURES: dict[str, Architecture] = {
    name: Architecture(_KINDS.get(design.family, "rcnn"), *(_SMALL if design.is_small else _LARGE))
    for name, design in DESIGNS.items()
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
            f"No detector is called {name!r}; expected FAMILY_BACKBONE_fpn with a family of "
            f"{', '.join(FAMILIES)} and a backbone of {', '.join(BACKBONES)}; some have a second "
            f"version, _fpn_v2.{did_you_mean(name, ARCHITECTURES)}"
        )
    return name


def build_detector(
    arch: str,
    foreground: int,
    canvas: Canvas | None = None,
    *,
    frozen: bool = False,
    one_mask: bool = False,
) -> nn.Module:
    """Build an untrained detector of torchvision.

    Parameters
    ----------
    arch : ``torchvision:NAME``.
    foreground : number of classes F, the background not counted.
    canvas : what it will see; None is the architecture's own.
    frozen : whether the backbone's normalisations are constants, as torchvision has them where the
        training started from published weights.
    one_mask : whether a Mask R-CNN has one mask per box for all classes (class-agnostic masks).

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
    from .building import build_torchvision

    module: Any = build_torchvision(DESIGNS[name], foreground, frozen=frozen)
    if one_mask:
        layers: Any = require("torch.nn", extra="torch", purpose="build detectors")
        predictor = module.roi_heads.mask_predictor
        predictor.mask_fcn_logits = layers.Conv2d(predictor.mask_fcn_logits.in_channels, 1, 1)
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
