"""Bytes to a uint8 array: the only definition of decoding and resizing.

Training, verification, prediction and serving all come through :func:`load_prepared`, so that a
photograph gives the same pixels everywhere: those that torchvision's and timm's evaluation
transforms give on the same PIL image. What files may hold is in :mod:`ltdeploy.decoding`, the sizes
and numbers are a :class:`Preprocessing`.
"""

from __future__ import annotations

import functools
from typing import get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from .decoding import DEFAULT_LIMITS, ImageLimits, ImageSource, load_image
from .preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Interpolation,
    Preprocessing,
    ResizeMode,
)

__all__ = [
    "DEFAULT_LIMITS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "ImageLimits",
    "ImageSource",
    "Interpolation",
    "Preprocessing",
    "ResizeMode",
    "load_image",
    "load_prepared",
    "normalise",
    "prepare",
]

_FILTERS = {name: Image.Resampling[name.upper()] for name in get_args(Interpolation)}
# A strip of 4000 x 1 pixels scaled to 256 high would be a million wide. Above this many pixels only
# the part that is kept gets computed, equal to the whole up to Pillow's float32 box (< 1/255).
_LARGEST_RESIZED_PIXELS = 1 << 24


def prepare(image: Image.Image, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Resize and crop an RGB image as torchvision and timm do when they evaluate on PIL images.

    Returns
    -------
    array of shape (height_px, width_px, 3), uint8.
    """
    height, width = _resized_size(image.height, image.width, preprocessing)
    top, rows = _centre(height, preprocessing.height_px)
    left, columns = _centre(width, preprocessing.width_px)
    window = (left, top, left + columns, top + rows)
    kernel = _FILTERS[preprocessing.interpolation]
    if height * width > _LARGEST_RESIZED_PIXELS and (height, width) != (image.height, image.width):
        image = _resize_window(image, (height, width), window, kernel)
    else:
        if (height, width) != (image.height, image.width):
            image = image.resize((width, height), kernel)
        if (rows, columns) != (height, width):
            image = image.crop(window)
    pixels: npt.NDArray[np.uint8] = np.asarray(image)
    if (rows, columns) == (preprocessing.height_px, preprocessing.width_px):
        return pixels
    padded = np.zeros((preprocessing.height_px, preprocessing.width_px, 3), dtype=np.uint8)
    above = (preprocessing.height_px - rows) // 2
    before = (preprocessing.width_px - columns) // 2
    padded[above : above + rows, before : before + columns] = pixels
    return padded


def load_prepared(
    source: ImageSource,
    preprocessing: Preprocessing,
    limits: ImageLimits = DEFAULT_LIMITS,
    *,
    name: str | None = None,
) -> npt.NDArray[np.uint8]:
    """Decode one image and make it what the graph sees: :func:`load_image`, :func:`prepare`.

    Returns
    -------
    array of shape (height_px, width_px, 3), uint8; read-only where it shares Pillow's memory.

    Raises
    ------
    ImageError
        As :func:`load_image`.
    """
    resized = functools.partial(_resized_size, preprocessing=preprocessing)
    scaled = resized if preprocessing.jpeg_scaling else None
    return prepare(load_image(source, limits, name=name, resized=scaled), preprocessing)


def normalise(
    images: npt.NDArray[np.uint8], preprocessing: Preprocessing
) -> npt.NDArray[np.float32]:
    """Return ``(x / 255 - mean) / std`` with the channels first: what a bare network takes.

    Parameters
    ----------
    images : array of shape (N, H, W, 3), uint8.

    Returns
    -------
    array of shape (N, 3, H, W), float32, contiguous.
    """
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32)
    planes /= np.float32(255)
    planes -= np.array(preprocessing.mean, dtype=np.float32)[:, None, None]
    planes /= np.array(preprocessing.std, dtype=np.float32)[:, None, None]
    return planes


def _resize_window(
    image: Image.Image,
    resized: tuple[int, int],
    window: tuple[int, int, int, int],
    kernel: Image.Resampling,
) -> Image.Image:
    """Return the window of the resized image without computing the rest."""
    left, top, right, bottom = window
    height, width = resized
    x0, x1 = left * image.width / width, right * image.width / width
    y0, y1 = top * image.height / height, bottom * image.height / height
    # Across first, as Pillow does it: the other way round would round other values.
    image = image.resize((right - left, image.height), kernel, box=(x0, 0, x1, image.height))
    return image.resize((right - left, bottom - top), kernel, box=(0, y0, image.width, y1))


def _resized_size(height: int, width: int, preprocessing: Preprocessing) -> tuple[int, int]:
    if preprocessing.resize_mode == "none":
        return height, width
    box_height, box_width = preprocessing.resize_box_px
    if preprocessing.resize_mode == "squash":
        return box_height, box_width
    if box_height == box_width:
        # torchvision cuts the longer side's fraction off; timm's own rule below rounds it.
        if width <= height:
            return int(box_height * height / width), box_height
        return box_height, int(box_height * width / height)
    ratio = min(height / box_height, width / box_width)
    return max(1, round(height / ratio)), max(1, round(width / ratio))


def _centre(length: int, wanted: int) -> tuple[int, int]:
    """Return where the centre cut of one axis starts and how much of it there is."""
    if wanted >= length:
        return 0, length
    return round((length - wanted) / 2.0), wanted
