"""How a photograph comes onto a detector's canvas of fixed size, and how boxes come back.

What :mod:`ltdeploy.images` is for classifiers: the only definition of a detector's resizing, used
by training, verification and prediction alike. Nothing is cut off: a detector must see all of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from .arrays import FloatArray
from .boxes import clip_boxes
from .decoding import DEFAULT_LIMITS, ImageLimits, ImageSource, load_image
from .errors import UsageError, did_you_mean
from .preprocessing import IMAGENET_MEAN, IMAGENET_STD, Interpolation, Preprocessing

__all__ = ["Canvas", "Fit", "Placement", "load_on_canvas"]

Fit = Literal["top_left", "centre", "squash"]


@dataclass(frozen=True)
class Placement:
    """Where one photograph stands on its canvas: ``canvas = photograph · scale + corner``.

    Parameters
    ----------
    scale_x, scale_y : canvas pixels per pixel of the photograph, after the scaled sides were
        rounded to whole pixels; the two differ a little where the aspect is kept.
    left_px, top_px : where its corner stands on the canvas.
    width_px, height_px : of the photograph.
    mirrored : whether the photograph was flipped left to right before.
    """

    scale_x: float
    scale_y: float
    left_px: int
    top_px: int
    width_px: int
    height_px: int
    mirrored: bool = False

    def to_canvas(self, boxes: FloatArray) -> FloatArray:
        """Return boxes of the photograph, shape (..., 4) xyxy, in canvas pixels."""
        placed = self._flip(boxes) * self._scale(boxes) + self._corner(boxes)
        result: FloatArray = placed.astype(boxes.dtype, copy=False)
        return result

    def to_original(self, boxes: FloatArray) -> FloatArray:
        """Return canvas boxes, shape (..., 4) xyxy, in the photograph's pixels, clipped to it."""
        return clip_boxes(self.unclipped(boxes), self.width_px, self.height_px)

    def unclipped(self, boxes: FloatArray) -> FloatArray:
        """Return canvas boxes, shape (..., 4) xyxy, in the photograph's pixels, as they are."""
        return self._flip((boxes - self._corner(boxes)) / self._scale(boxes))

    def _scale(self, boxes: FloatArray) -> FloatArray:
        return np.array([self.scale_x, self.scale_y] * 2, dtype=boxes.dtype)

    def _corner(self, boxes: FloatArray) -> FloatArray:
        return np.array([self.left_px, self.top_px] * 2, dtype=boxes.dtype)

    def _flip(self, boxes: FloatArray) -> FloatArray:
        if not self.mirrored:
            return boxes
        flipped = boxes[..., [2, 1, 0, 3]]
        flipped[..., [0, 2]] = self.width_px - flipped[..., [0, 2]]
        return flipped


@dataclass(frozen=True)
class Canvas:
    """Size, fit and normalisation of what a detector's graph sees.

    Parameters
    ----------
    height_px, width_px : of the canvas.
    fit : ``"top_left"`` keeps the aspect and pads right and below, as torchvision, detectron2 and
        DETR do; ``"centre"`` pads on all sides (letterbox); ``"squash"`` scales both sides to the
        canvas, aspect lost, as RT-DETR and D-FINE do.
    interpolation : Pillow's filter, with antialiasing as Pillow always does.
    fill : R, G, B of the padding, 0..255.
    mean, std : per channel R, G, B, on values in 0..1; they are applied inside the graph.
    may_enlarge : whether a photograph smaller than the canvas is scaled up to it.

    Raises
    ------
    UsageError
        For values that are out of range, or an unknown fit or filter.

    Examples
    --------
    >>> Canvas(320, 320).place(height_px=240, width_px=640).scale_x
    0.5
    """

    height_px: int
    width_px: int
    fit: Fit = "top_left"
    interpolation: Interpolation = "bilinear"
    fill: tuple[int, int, int] = (0, 0, 0)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    may_enlarge: bool = True

    def __post_init__(self) -> None:
        checked = self.as_preprocessing()  # refuses sizes, filters and numbers out of range
        object.__setattr__(self, "mean", checked.mean)
        object.__setattr__(self, "std", checked.std)
        if self.fit not in get_args(Fit):
            raise UsageError(
                f"Unknown fit {self.fit!r}; known are {', '.join(get_args(Fit))}."
                f"{did_you_mean(str(self.fit), get_args(Fit))}"
            )
        if not isinstance(self.may_enlarge, bool):
            raise UsageError(f"may_enlarge is {self.may_enlarge!r}; expected true or false.")
        if self.fit == "squash" and not self.may_enlarge:
            raise UsageError(
                "may_enlarge is false with the fit 'squash', which fills the canvas whatever the "
                "photograph's size; leave it out, or use the fit 'top_left' or 'centre'."
            )
        object.__setattr__(self, "fill", _colour(self.fill))

    def as_preprocessing(self) -> Preprocessing:
        """Return what happens to the canvas inside the graph: its size, mean and std."""
        return Preprocessing(
            self.height_px,
            self.width_px,
            resize_mode="none",
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
        )

    def place(self, height_px: int, width_px: int, *, mirrored: bool = False) -> Placement:
        """Return where a photograph of this size stands.

        Scaled sides are rounded to the nearest pixel, at least one, as detectron2 does; torchvision
        cuts the fraction off.
        """
        height, width = self._scaled_size(height_px, width_px)
        centred = self.fit == "centre"
        return Placement(
            scale_x=width / width_px,
            scale_y=height / height_px,
            left_px=(self.width_px - width) // 2 if centred else 0,
            top_px=(self.height_px - height) // 2 if centred else 0,
            width_px=width_px,
            height_px=height_px,
            mirrored=mirrored,
        )

    def prepare(
        self, image: npt.NDArray[np.uint8] | Image.Image, *, mirrored: bool = False
    ) -> tuple[npt.NDArray[np.uint8], Placement]:
        """Scale and pad one RGB photograph.

        Parameters
        ----------
        image : array of shape (H, W, 3), uint8, or a PIL image of mode RGB.
        mirrored : flip it left to right first; the placement's boxes come back unflipped.

        Returns
        -------
        array of shape (height_px, width_px, 3), uint8, and where the photograph stands on it.
        """
        picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
        placement = self.place(picture.height, picture.width, mirrored=mirrored)
        height, width = self._scaled_size(picture.height, picture.width)
        if (height, width) != (picture.height, picture.width):
            picture = picture.resize((width, height), Image.Resampling[self.interpolation.upper()])
        pixels: npt.NDArray[np.uint8] = np.asarray(picture)
        if mirrored:
            pixels = pixels[:, ::-1]
        if (height, width) == (self.height_px, self.width_px):
            return np.ascontiguousarray(pixels), placement
        canvas = np.empty((self.height_px, self.width_px, 3), np.uint8)
        canvas[:] = self.fill
        top, left = placement.top_px, placement.left_px
        canvas[top : top + height, left : left + width] = pixels
        return canvas, placement

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Canvas:
        """Read what :meth:`to_dict` wrote.

        Raises
        ------
        UsageError
            For an unknown key, a missing size, or a value that the class refuses.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise UsageError(
                    f"Unknown canvas key {key!r}; known are {', '.join(known)}."
                    f"{did_you_mean(str(key), known)}"
                )
        for key in ("height_px", "width_px"):
            if key not in values:
                raise UsageError(f"The canvas lacks {key!r}; expected a length in pixels.")
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**fields)

    def _scaled_size(self, height_px: int, width_px: int) -> tuple[int, int]:
        if self.fit == "squash":
            return self.height_px, self.width_px
        scale = min(self.height_px / height_px, self.width_px / width_px)
        if not self.may_enlarge:
            scale = min(scale, 1.0)
        return max(1, int(height_px * scale + 0.5)), max(1, int(width_px * scale + 0.5))


def load_on_canvas(
    source: ImageSource,
    canvas: Canvas,
    limits: ImageLimits = DEFAULT_LIMITS,
    *,
    name: str | None = None,
) -> tuple[npt.NDArray[np.uint8], Placement]:
    """Decode one image and put it on the canvas: :func:`load_image`, :meth:`Canvas.prepare`.

    Raises
    ------
    ImageError
        As :func:`load_image`.
    """
    return canvas.prepare(load_image(source, limits, name=name))


def _colour(fill: object) -> tuple[int, int, int]:
    values = tuple(fill) if isinstance(fill, (tuple, list)) else ()
    whole = [int(v) for v in values if isinstance(v, int) and not isinstance(v, bool)]
    if len(values) != 3 or len(whole) != 3 or not all(0 <= v <= 255 for v in whole):
        raise UsageError(f"fill is {fill!r}; expected three whole numbers 0..255 for R, G, B.")
    return whole[0], whole[1], whole[2]
