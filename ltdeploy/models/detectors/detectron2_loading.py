"""From the weights of detectron2 or mmdetection to a detector, every key accounted for."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...canvas import Canvas
from ...errors import CheckpointError
from ...postprocess import KeepRule
from ..classifier import Source
from ..layouts import Parts
from ..options import LoadOptions
from ..reading import source_sha256
from .architectures import ARCHITECTURES, Architecture
from .class_rows import background_warning, class_paths
from .detector import Detector, class_head, told_table
from .detectron2_layout import CONFIG_FILE, read_config
from .detectron2_layout import recipe_of as detectron2_recipe
from .detectron2_layout import renamed as detectron2_names
from .detectron2_network import Recipe, build
from .detectron2_parts import NormedPredictor
from .mmdetection_config import model_config, pipeline_of, resized_by
from .mmdetection_layout import recipe_of as mmdetection_recipe
from .mmdetection_layout import renamed as mmdetection_names
from .recognition import other_library

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["foreign_detector"]

_LISTED = 6
_UNUSABLE = (
    ValueError, TypeError, AttributeError, ArithmeticError, LookupError, RecursionError,
)  # fmt: skip
_STRIDE = 32
_FIRST = "backbone.body.conv1.weight"
_USUAL = ARCHITECTURES["fasterrcnn_resnet50_fpn"]


@dataclass(frozen=True)
class _Architecture(Architecture):
    """An architecture whose config tells how detections are kept."""

    keep: KeepRule = field(default_factory=KeepRule)

    def keep_rule(self) -> KeepRule:
        """Return what is kept of what it finds."""
        return self.keep


def foreign_detector(
    path: Path,
    parts: Parts,
    tensors: Mapping[str, Tensor],
    options: LoadOptions,
    canvas: Canvas | None,
) -> Detector:
    """Return the detector of a checkpoint of detectron2 or mmdetection.

    Parameters
    ----------
    parts : the checkpoint as it was read.
    tensors : its weights, prefixes of wrappers removed.
    canvas : what photographs become; its normalisation is the network's all the same.

    Raises
    ------
    CheckpointError
        If it is no detector that can be built, weights are missing or left over, or the canvas is
        not made of whole strides.
    """
    recipe, named, notes = _recipe(path, tensors, parts.config)
    if options.arch is not None and options.arch != recipe.arch:
        raise CheckpointError(
            f"{path} is a {recipe.arch} by its keys and shapes, not {options.arch!r}; leave out "
            "--arch."
        )
    size = _canvas(recipe, canvas)
    architecture = _Architecture(
        recipe.kind, _USUAL.height_px, _USUAL.width_px, recipe.class_rows, recipe.keep
    )
    if canvas is None:
        notes.append(_assumed(recipe, size))
    table = told_table(options.classes, parts, notes)
    module = _network(recipe, named, size)
    return Detector(
        module=module,
        arch=recipe.arch,
        architecture=architecture,
        head=class_head(module, architecture),
        head_paths=class_paths(module, architecture.kind),
        canvas=size,
        classes=table,
        trained_with=parts.trained_with or ("seesaw" if recipe.activation == "seesaw" else None),
        source=Source(
            path.resolve(),
            source_sha256(path),
            recipe.library,
            tuple(notes),
            parts.class_names,
            hashlib.blake2b(repr(recipe).encode(), digest_size=16).hexdigest(),
        ),
    )


def _recipe(
    path: Path, tensors: Mapping[str, Tensor], told: str | None
) -> tuple[Recipe, dict[str, Tensor], list[str]]:
    """Return what a detector is made of, its weights by torchvision's names, and notes.

    Parameters
    ----------
    tensors : under the file's keys, prefixes of wrappers removed.
    told : the text of mmdetection's config, where the file holds it.

    Raises
    ------
    CheckpointError
        If it is no detector that can be built, or weights are missing or left over.
    """
    theirs = other_library(tensors) == "detectron2"
    names = (detectron2_names if theirs else mmdetection_names)(tensors)
    named = {name: tensors[key] for key, name in names.items()}
    make: Callable[..., tuple[Recipe, list[str]]]
    make = detectron2_recipe if theirs else mmdetection_recipe
    config: Mapping[str, Any] = {}
    try:
        config = read_config(path) if theirs else model_config(told or "")
        recipe, notes = make(tensors, named, config, str(path))
        resized = None if theirs else resized_by(pipeline_of(told or ""), notes)
    except _UNUSABLE as error:
        held = path.parent / CONFIG_FILE if theirs and config else path
        raise CheckpointError(
            f"{held} has settings that cannot be used: {error}. Expected is what "
            f"{'detectron2 writes with cfg.dump()' if theirs else 'mmdetection writes'}."
        ) from error
    if resized is not None:
        width, height, keeps_aspect = resized
        recipe = replace(
            recipe,
            scaled_px=(min(width, height), max(width, height)) if keeps_aspect else None,
            squashed_px=None if keeps_aspect else (height, width),
        )
    _require_whole(path, recipe, {name: key for key, name in names.items()}, named)
    if any("mask_head." in key for key in tensors):
        notes.append("It gives boxes and masks; the boxes are used, the masks are left out.")
    return recipe, named, [*notes, *_spoken(recipe), *_background(recipe, named)]


def _network(recipe: Recipe, named: Mapping[str, Tensor], canvas: Canvas) -> nn.Module:
    """Return the network with its weights, on normalised R, G, B canvases.

    The canvas gives R, G, B; where the network was trained on B, G, R its first convolution's
    channels are turned round, which changes nothing else.

    Raises
    ------
    CheckpointError
        If the canvas is not made of whole strides.
    """
    if canvas.height_px % _STRIDE or canvas.width_px % _STRIDE:
        raise CheckpointError(
            f"The canvas is {canvas.height_px}×{canvas.width_px}; {recipe.library}'s detectors see "
            f"multiples of {_STRIDE} pixels."
        )
    module = build(recipe, canvas.height_px, canvas.width_px)
    weights = {key: value.float() for key, value in named.items()}
    if recipe.pixels.bgr:
        weights[_FIRST] = weights[_FIRST].flip(1)
    if recipe.temperature is not None:
        for path in recipe.class_rows.paths:
            rows = weights[f"{path}.weight"]
            weights[f"{path}.weight"] = NormedPredictor.rows(rows, recipe.temperature)
    module.load_state_dict(weights, strict=True)
    return module.float().eval().requires_grad_(False)


def _canvas(recipe: Recipe, canvas: Canvas | None) -> Canvas:
    """Return the canvas with the network's normalisation; padding is the mean colour.

    Both libraries pad with zeros behind the normalisation. Without a canvas it is the one on which
    a photograph of 4:3 is scaled as the config says, in whole strides.
    """
    if canvas is None:
        canvas, sides = _USUAL.canvas(), None
        if recipe.squashed_px is not None:
            canvas, sides = replace(canvas, fit="squash"), recipe.squashed_px
        elif recipe.scaled_px is not None:
            shorter, longer = recipe.scaled_px
            sides = (shorter, min(longer, math.ceil(shorter * 4 / 3)))
        if sides is not None:
            height, width = (math.ceil(side / _STRIDE) * _STRIDE for side in sides)
            canvas = replace(canvas, height_px=height, width_px=width)
    pixels = recipe.pixels
    turn = -1 if pixels.bgr else 1
    mean, std = pixels.mean[::turn], pixels.std[::turn]
    red, green, blue = (min(255, max(0, round(value))) for value in mean)
    return replace(
        canvas,
        fill=(red, green, blue),
        mean=(mean[0] / 255, mean[1] / 255, mean[2] / 255),
        std=(std[0] / 255, std[1] / 255, std[2] / 255),
    )


def _assumed(recipe: Recipe, size: Canvas) -> str:
    """Return which canvas was taken, and why."""
    here = f"{size.height_px}×{size.width_px}"
    if recipe.squashed_px is not None:
        height, width = recipe.squashed_px
        return (
            f"Its config scales photographs to {height}×{width} pixels whatever their aspect; the "
            f"canvas is {here}, filled so."
        )
    if recipe.scaled_px is None:
        return f"The file does not tell its canvas; assumed is {here}."
    shorter, longer = recipe.scaled_px
    return (
        f"Its config scales photographs to a shorter side of {shorter} pixels and a longer one of "
        f"at most {longer}; the canvas {here} does that to photographs of 4:3."
    )


def _require_whole(
    path: Path, recipe: Recipe, keys: Mapping[str, str], named: Mapping[str, Tensor]
) -> None:
    """Raise unless every weight has its place and every place its weight."""
    import torch

    with torch.device("meta"):
        slots = build(replace(recipe, anchor_cells=None), _STRIDE, _STRIDE).state_dict()
    wrong = [f"{name} is missing" for name in slots if name not in named]
    wrong += [f"{keys[name]} is left over" for name in named if name not in slots]
    wrong += [
        f"{keys[name]} is {tuple(named[name].shape)} instead of {tuple(slot.shape)}"
        for name, slot in slots.items()
        if name in named and named[name].shape != slot.shape
    ]
    if wrong:
        more = f" and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
        raise CheckpointError(
            f"{path} has {recipe.library}'s keys and is no {recipe.arch.partition(':')[2]} as that "
            f"library has it: {'; '.join(wrong[:_LISTED])}{more}. Known are Faster, Mask and "
            "Cascade R-CNN and RetinaNet on ResNets and ResNeXts with a feature pyramid."
        )


def _spoken(recipe: Recipe) -> list[str]:
    """Return what whoever takes the model over should know of how it computes."""
    notes = [f"The architecture {recipe.arch} was recognised by its keys and shapes."]
    if recipe.kind == "cascade_rcnn":
        notes.append(
            "Its logits are the mean of three stages', each of which takes a fix."
            if recipe.mean_of == "logits"
            else "Its probabilities are the mean of three stages', as detectron2 has it; a fix is "
            "applied to their logarithm, in nodes behind them."
        )
    if recipe.kind != "retinanet" and recipe.pool["sampling_ratio"] == 0:
        notes.append(
            "Boxes are pooled with as many samples as their size asks for, by RoiAlign nodes."
        )
    return notes


def _background(recipe: Recipe, named: Mapping[str, Tensor]) -> list[str]:
    """Warn where the bias looks as if the background stood elsewhere than in the last column."""
    rows = recipe.class_rows
    layer = f"{rows.paths[0]}.bias"
    if rows.background is None or layer not in named or recipe.activation != "softmax":
        return []
    bias = named[layer].double().numpy()
    return background_warning(bias, len(bias) - 1, recipe.library)
