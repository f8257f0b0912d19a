"""A detector's ``preprocessor_config.json`` as a canvas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

from ...canvas import Canvas
from ...errors import CheckpointError, UsageError
from ...preprocessing import IMAGENET_MEAN, IMAGENET_STD, Interpolation
from ..huggingface import FILTERS
from ..reading import read_json
from .architectures import Architecture

__all__ = ["folder_canvas"]

_STRIDE = 32


def folder_canvas(folder: Path, architecture: Architecture) -> tuple[Canvas, list[str]]:
    """Return the canvas that ``preprocessor_config.json`` describes, and notes on it.

    =========================== =====================================================
    ``size``                    canvas
    =========================== =====================================================
    height, width               both sides scaled to it
    max_height, max_width       aspect kept, padded; DETR: both sides scaled
    shortest_edge, longest_edge that of a photograph of 4:3, both sides scaled
    =========================== =====================================================

    DETR masks the padding out, and a graph of fixed size has no mask: the whole canvas counts as
    image, and is therefore filled.

    Raises
    ------
    CheckpointError
        If the file is missing or describes something that ltdeploy does not reproduce.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no preprocessor_config.json, so its preprocessing is not known. Save it "
            "from the model that it was trained from: "
            f"AutoImageProcessor.from_pretrained(BASE).save_pretrained('{folder}')."
        )
    try:
        return _canvas(path, read_json(path), architecture)
    except (TypeError, ValueError, UsageError) as error:
        raise CheckpointError(f"{path} holds a wrong value: {error}") from error


def _canvas(
    path: Path, told: Mapping[str, Any], architecture: Architecture
) -> tuple[Canvas, list[str]]:
    masks = architecture.kind == "detr"
    for key, expected in (("do_resize", True), ("do_rescale", True)):
        if told.get(key, True) is not expected:
            raise _not_reproduced(path, key, told[key])
    if abs(float(told.get("rescale_factor", 1 / 255)) * 255 - 1) > 1e-3:
        raise _not_reproduced(path, "rescale_factor", told["rescale_factor"])
    height_px, width_px, keeps_aspect = _size(path, told)
    padded = told.get("pad_size")
    if told.get("do_pad") and padded and _sides(padded) != (height_px, width_px):
        raise _not_reproduced(path, "pad_size", padded)
    normalises = told.get("do_normalize", masks)
    mean = tuple(told.get("image_mean") or IMAGENET_MEAN) if normalises else (0.0, 0.0, 0.0)
    std = tuple(told.get("image_std") or IMAGENET_STD) if normalises else (1.0, 1.0, 1.0)
    canvas = replace(
        architecture.canvas(),
        height_px=height_px,
        width_px=width_px,
        interpolation=_filter(path, told.get("resample", 2)),
        mean=mean,
        std=std,
    )
    if not keeps_aspect:
        return canvas, []
    if not masks and "max_height" in told["size"]:
        # transformers pads with zeros after the normalisation: with the mean, before it.
        red, green, blue = (round(255 * value) for value in mean)
        return replace(canvas, fit="top_left", fill=(red, green, blue)), []
    return canvas, [
        f"preprocessor_config.json keeps the aspect ({told['size']}) and the graph's size is "
        "fixed: photographs fill the canvas, all of which counts as image."
    ]


def _size(path: Path, told: Mapping[str, Any]) -> tuple[int, int, bool]:
    """Return the canvas's height and width, and whether the aspect is kept on it."""
    size = told.get("size")
    if isinstance(size, int):  # before transformers 4.26, beside max_size
        size = {"shortest_edge": size, "longest_edge": told.get("max_size", 1333)}
    sides = _sides(size)
    if sides is not None:
        return *sides, False
    numbers = size if isinstance(size, Mapping) else {}
    if {"max_height", "max_width"} <= set(numbers):
        return int(numbers["max_height"]), int(numbers["max_width"]), True
    if {"shortest_edge", "longest_edge"} <= set(numbers):
        height = min(float(numbers["shortest_edge"]), 0.75 * float(numbers["longest_edge"]))
        return _whole_strides(height), _whole_strides(height / 0.75), True
    raise _not_reproduced(path, "size", size)


def _whole_strides(length: float) -> int:
    return -int(-length // _STRIDE) * _STRIDE


def _sides(size: object) -> tuple[int, int] | None:
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return int(size["height"]), int(size["width"])
    return None


def _filter(path: Path, number: object) -> Interpolation:
    name = FILTERS.get(number) if isinstance(number, int) else None
    if name not in get_args(Interpolation):
        raise _not_reproduced(path, "resample", number)
    return cast(Interpolation, name)


def _not_reproduced(path: Path, key: str, value: object) -> CheckpointError:
    return CheckpointError(
        f"{path} describes a preprocessing that ltdeploy does not reproduce to the pixel ({key}: "
        f"{value!r}). Write the size that the detector shall see into it, as 'size': "
        "{'height': 640, 'width': 640}."
    )
