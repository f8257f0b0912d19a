"""From a checkpoint to a detector: network, class layer, canvas, classes and their sources."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..._optional import require
from ...canvas import Canvas
from ...classes import ClassTable
from ...errors import CheckpointError
from ...postprocess import KeepRule, ScoreRule
from ..classifier import Source, read_parts
from ..head import Head
from ..layouts import Parts
from ..options import LoadOptions
from ..reading import source_sha256
from .architectures import (
    ARCHITECTURES,
    RCNN_KINDS,
    Architecture,
    build_detector,
    check_detector_arch,
)
from .class_rows import CLASS_ROWS, class_paths, class_weights
from .design import DESIGNS, FAMILY_NOTES
from .recognition import is_frozen, likely_designs, other_library

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .onnx_detector import OnnxDetector

__all__ = [
    "Detector",
    "class_head",
    "complete_foreground",
    "detector_from",
    "is_detector",
    "load_detector",
    "require_finite",
    "told_table",
]

_WRAPPERS = ("module", "_orig_mod", "model", "net")
_LISTED = 6
_MASK_LAYER = "roi_heads.mask_predictor.mask_fcn_logits"
_FOREIGN = ("detectron2:", "mmdetection:")
_FOREIGN_STRIDE = 32


@dataclass(eq=False)
class Detector:
    """A network that is ready to be fixed, run and exported.

    Parameters
    ----------
    module : the library's detector in evaluation mode, float32, on normalised canvases.
    arch : ``"torchvision:fasterrcnn_resnet50_fpn"``, ``"hf:rt_detr_v2"``.
    architecture : what is true of it whatever its weights.
    head : the class layer, as arrays; one row per column of the logits, the background included.
    head_paths : dotted paths of the class layers that a fix goes into.
    canvas : what turns a photograph into its input.
    classes : names and training counts of the foreground; None where nobody tells.
    trained_with : the loss of the classes; None where unknown.
    train_hashes : fingerprints of the canvases it was trained on, shape (M,), uint64, or None.

    Raises
    ------
    CheckpointError
        If the canvas is not made of whole strides and the levels of a pyramid would not meet.
    """

    module: nn.Module
    arch: str
    architecture: Architecture
    head: Head
    head_paths: tuple[str, ...]
    canvas: Canvas
    classes: ClassTable | None
    trained_with: str | None
    source: Source
    train_hashes: npt.NDArray[np.uint64] | None = None

    def __post_init__(self) -> None:
        size = self.canvas.height_px, self.canvas.width_px
        config = getattr(self.module, "config", None)  # transformers' networks have one
        usual = [_FOREIGN_STRIDE if self.arch.startswith(_FOREIGN) else 1]
        stride = max(getattr(config, "feat_strides", usual))
        if any(side % stride for side in size):
            raise CheckpointError(
                f"{self.source.path} is to see canvases of {size[0]}×{size[1]} pixels; expected "
                f"multiples of {stride}, its largest stride."
            )

    @property
    def score_rule(self) -> ScoreRule:
        """How rows of logits become scores."""
        return self.architecture.score_rule(self.head.classes)

    @property
    def has_masks(self) -> bool:
        """Whether the network has a mask branch."""
        heads = getattr(self.module, "roi_heads", None)
        return getattr(heads, "mask_predictor", None) is not None

    @property
    def keep_rule(self) -> KeepRule:
        """What is kept of what it finds."""
        return self.architecture.keep_rule()

    def require_complete(self) -> ClassTable:
        """Return the class table that export and verification need.

        Raises
        ------
        CheckpointError
            If it is missing, or speaks of another number of classes than the head.
        """
        return complete_foreground(self)


def complete_foreground(model: Detector | OnnxDetector) -> ClassTable:
    """Return a detector's class table, or raise with the option that provides it."""
    foreground = len(model.score_rule.foreground(model.head.classes))
    if model.classes is None:
        raise CheckpointError(
            f"{model.source.path} does not name its {foreground} classes or count their "
            "training images. Say them with --classes FILE: a csv 'name,train_count' in label "
            "order without the background, or the COCO json that it was trained on."
        )
    if len(model.classes) != foreground:
        of_mapping = model.arch == "onnx" and foreground < model.head.classes
        hint = (
            ' If no column is one, say "background": "none" in the mapping.' if of_mapping else ""
        )
        raise CheckpointError(
            f"{model.source.path} tells {foreground} classes apart, the background not counted; "
            f"the class table has {len(model.classes)}. A table must not list the background.{hint}"
        )
    return model.classes


def is_detector(parts: Parts) -> bool:
    """Whether a checkpoint says, or its keys show, that it is a detector."""
    if parts.task is not None:
        return parts.task == "detection"
    keys = _plain(parts.raw_tensors)
    own = ("rpn.", "roi_heads.", "head.classification_head.")
    return any(key.startswith(own) for key in keys) or other_library(keys) is not None


def load_detector(
    path: str | os.PathLike[str],
    *,
    options: LoadOptions | None = None,
    canvas: Canvas | None = None,
) -> Detector:
    """Load a detector's checkpoint.

    Parameters
    ----------
    path : ltdeploy's own file, a state dict of one of torchvision's detectors, a checkpoint of
        detectron2 or mmdetection 3, or a Hugging Face folder of DETR, RT-DETR v2 or D-FINE.
    options : what the file does not tell; of its fields ``arch``, ``classes``, ``trust_pickle``.
    canvas : what photographs become; None takes the file's, or else the architecture's.

    Raises
    ------
    CheckpointError
        If the file cannot be read, does not fit, or more must be said.
    UnsafeCheckpointError
        If loading it would run code.
    """
    options, path = options or LoadOptions(), Path(path)
    if path.is_dir():
        from .huggingface_detectors import detector_from_folder

        return detector_from_folder(path, options, canvas)
    return detector_from(path, read_parts(path, options), options, canvas)


def detector_from(
    path: Path, parts: Parts, options: LoadOptions, canvas: Canvas | None = None
) -> Detector:
    """Return the detector of a checkpoint that was read; see :func:`load_detector`."""
    require("torchvision", extra="torch", purpose="load detectors")
    tensors = _plain(parts.raw_tensors)
    told = options.arch or parts.arch
    if other_library(tensors) is not None:
        from .detectron2_loading import foreign_detector

        require_finite(path, tensors)
        return foreign_detector(path, parts, tensors, options, canvas)
    names = [check_detector_arch(told)] if told is not None else likely_designs(tensors)
    tried = {name: _misfits(name, tensors) for name in names}
    fitting = [name for name, misfits in tried.items() if not misfits]
    if not fitting:
        raise _does_not_fit(path, tried, told)
    arch = f"torchvision:{fitting[0]}"
    size = canvas or (Canvas.from_dict(parts.canvas) if parts.canvas is not None else None)
    architecture = ARCHITECTURES[fitting[0]]
    require_finite(path, tensors)
    import torch

    with torch.random.fork_rng(devices=[]):
        module = _untrained(fitting[0], tensors, size)
    module.load_state_dict(tensors, strict=True)
    module = module.float().eval().requires_grad_(False)
    # What was said of prefixes is true of classifiers' keys, from which "backbone." is taken off.
    notes = [note for note in parts.notes if not note.startswith("Removed the prefix")]
    if told is None:
        notes.append(f"The architecture {arch} was recognised by its keys and shapes.")
    notes += FAMILY_NOTES.get(DESIGNS[fitting[0]].family, ())
    if size is None:
        size = architecture.canvas()
        notes.append(
            f"The file does not tell its canvas; assumed is {size.height_px}×{size.width_px}."
        )
    return Detector(
        module=module,
        arch=arch,
        architecture=architecture,
        head=class_head(module, architecture),
        head_paths=class_paths(module, architecture.kind),
        canvas=size,
        classes=told_table(options.classes, parts, notes),
        trained_with=parts.trained_with,
        source=Source(
            path.resolve(), source_sha256(path), parts.layout, tuple(notes), parts.class_names
        ),
        train_hashes=parts.train_hashes,
    )


def require_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise if the training diverged.

    Raises
    ------
    CheckpointError
        If a weight is NaN or infinite.
    """
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:
        raise CheckpointError(
            f"{path}: {len(bad)} weights are not finite (NaN or infinity), first {bad[0]!r}: the "
            "training diverged. Use an earlier checkpoint of the run."
        )


def class_head(module: nn.Module, architecture: Architecture) -> Head:
    """Return the class layer as arrays, one row per column of the logits.

    Of a layer that has a row for each anchor and class, the mean over anchors: it is what norms and
    counts can be compared with.
    """
    weight, bias = class_weights(module, architecture.kind)
    shift = None if bias is None else bias.mean(axis=0)
    return Head(
        "linear",
        weight.mean(axis=0),
        shift,
        background=architecture.background(weight.shape[1]),
        activation=architecture.class_rows.activation,
        foldable=architecture.class_rows.linear,
    )


def told_table(given: ClassTable | None, parts: Parts, notes: list[str]) -> ClassTable | None:
    """Return the class table of the caller, or else of the file, in the order of the file's names.

    What of the file the caller's table replaces goes into the notes.
    """
    held, names = _held_table(parts), parts.class_names
    if given is None:
        return held
    if names is not None and given.names != names:
        if sorted(given.names) != sorted(names):
            notes.append(
                f"Warning: the file names other classes ({', '.join(names[:3])}, …) than the class "
                f"table ({', '.join(given.names[:3])}, …); the table's are taken."
            )
            return given
        counts = dict(zip(given.names, given.counts, strict=True))
        given = ClassTable(names, tuple(counts[name] for name in names), given.rule)
        notes.append("The class table was put into the order of the names in the file.")
    if held is not None and held.counts != given.counts:
        notes.append(
            "The training counts given differ from those in the file; given ones count, and the "
            "groups go by them."
        )
    return given


def _held_table(parts: Parts) -> ClassTable | None:
    """Return the class table that a file holds, names and counts; None where one is missing."""
    if parts.class_names is None or parts.train_counts is None:
        return None
    return ClassTable(parts.class_names, parts.train_counts)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights without a wrapper's prefix, where all of them carry it."""
    kept = dict(tensors)
    while kept:
        first = {key.partition(".")[0] for key in kept}
        if len(first) != 1 or next(iter(first)) not in _WRAPPERS:
            break
        kept = {key.partition(".")[2]: value for key, value in kept.items()}
    return kept


def _foreground(name: str, tensors: Mapping[str, Tensor]) -> int:
    """Return the number of classes that a file's class layer has rows for; 1 where it has none."""
    kind = ARCHITECTURES[name].kind
    rows: Any = tensors.get(f"{CLASS_ROWS[kind].paths[0]}.weight")
    if kind in RCNN_KINDS:
        return max(1, rows.shape[0] - 1) if rows is not None else 1
    anchors = 9 if kind == "retinanet" else 1
    return max(1, rows.shape[0] // anchors) if rows is not None else 1


def _untrained(name: str, tensors: Mapping[str, Tensor], canvas: Canvas | None = None) -> nn.Module:
    """Build the network with as many classes as the file has rows for."""
    masks = tensors.get(f"{_MASK_LAYER}.weight")
    return build_detector(
        f"torchvision:{name}",
        _foreground(name, tensors),
        canvas,
        frozen=is_frozen(tensors),
        one_mask=DESIGNS[name].family == "maskrcnn" and masks is not None and len(masks) == 1,
    )


def _misfits(name: str, tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the keys that only the file or only the architecture has, or whose shapes differ."""
    import torch

    with torch.device("meta"):
        module = _untrained(name, tensors)
    slots = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    missing = [f"{key} is missing" for key in slots if key not in tensors]
    unknown = [f"{key} is left over" for key in tensors if key not in slots]
    other = [
        f"{key} is {tuple(tensors[key].shape)} instead of {shape}"
        for key, shape in slots.items()
        if key in tensors and tuple(tensors[key].shape) != shape
    ]
    return missing + unknown + other


def _does_not_fit(path: Path, tried: Mapping[str, list[str]], told: str | None) -> CheckpointError:
    nearest = min(tried, key=lambda name: len(tried[name]))
    misfits = tried[nearest]
    more = f" and {len(misfits) - _LISTED} more" if len(misfits) > _LISTED else ""
    listed = "; ".join(misfits[:_LISTED]) + more
    if told is not None:
        return CheckpointError(f"{path} does not fit the detector {told}: {listed}.")
    return CheckpointError(
        f"{path} is none of torchvision's detectors, whose names are FAMILY_BACKBONE_fpn. Nearest "
        f"is {nearest}: {listed}. Name the one that it is with --arch torchvision:NAME."
    )
