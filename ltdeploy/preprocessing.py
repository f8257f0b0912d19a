"""What happens to a photograph before the graph sees it, as one value."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from .errors import UsageError, did_you_mean

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Interpolation", "Preprocessing", "ResizeMode"]

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
ResizeMode = Literal["shorter", "squash", "none"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_LARGEST_SIDE_PX = 8192


@dataclass(frozen=True)
class Preprocessing:
    """Size, resize rule and normalisation, as timm and torchvision evaluate.

    ``x = (crop(resize(image)) / 255 - mean) / std``. The resize and crop happen in
    :func:`ltdeploy.images.prepare`; the rest happens inside the exported graph.

    Parameters
    ----------
    height_px, width_px : what the graph sees.
    resize_mode : ``"shorter"`` scales with the aspect kept and cuts the centre; ``"squash"`` scales
        both sides, aspect lost, and cuts the centre; ``"none"`` only cuts the centre, or pads with
        black where the image is smaller.
    resize_px : what to scale to before the centre is cut. An int is the length of the shorter side
        (``"shorter"``, torchvision's ``Resize(int)``) or of both sides (``"squash"``). A pair
        (height, width) is the box to cover (``"shorter"``, timm's rule for graphs that are not
        square) or to fill (``"squash"``). None means exactly (height_px, width_px).
    interpolation : Pillow's filter, with antialiasing as Pillow always does.
    mean, std : per channel R, G, B, on values in 0..1.
    jpeg_scaling : decode JPEG files at 1/2, 1/4 or 1/8 of their size, as long as both sides stay at
        least as long as what they are resized to. Faster for large photographs, and other pixels:
        never part of a reference.

    Raises
    ------
    UsageError
        For sizes that are not positive whole numbers, unknown modes or filters, or a standard
        deviation that is not positive.

    Examples
    --------
    >>> Preprocessing.from_crop_pct(224, 224, crop_pct=0.875).resize_px
    256
    """

    height_px: int
    width_px: int
    resize_mode: ResizeMode = "shorter"
    resize_px: int | tuple[int, int] | None = None
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    jpeg_scaling: bool = False

    def __post_init__(self) -> None:
        _check_side("height_px", self.height_px)
        _check_side("width_px", self.width_px)
        _check_choice("resize mode", self.resize_mode, get_args(ResizeMode))
        _check_choice("interpolation", self.interpolation, get_args(Interpolation))
        if not isinstance(self.jpeg_scaling, bool):
            raise UsageError(f"jpeg_scaling is {self.jpeg_scaling!r}; expected true or false.")
        if self.jpeg_scaling and self.resize_mode == "none":
            raise UsageError(
                "jpeg_scaling has nothing to do where images are not resized (the resize mode is "
                "'none'); leave it out, or say to what they are resized: --resize PX."
            )
        if self.resize_px is not None:
            if self.resize_mode == "none":
                raise UsageError(
                    f"resize_px is {self.resize_px} but the resize mode is 'none', which never "
                    "scales; leave resize_px out, or use the mode 'shorter' or 'squash'."
                )
            pair = self.resize_px if isinstance(self.resize_px, tuple) else (self.resize_px,) * 2
            if len(pair) != 2:
                raise UsageError(
                    f"resize_px has {len(pair)} values, {self.resize_px}; expected one length or a "
                    "pair (height, width)."
                )
            for side in pair:
                _check_side("resize_px", side)
        object.__setattr__(self, "mean", _triple("mean", self.mean))
        object.__setattr__(self, "std", _triple("std", self.std))
        if min(self.std) <= 0:
            raise UsageError(
                f"std is {self.std}; expected three positive numbers, for values 0..1."
            )

    @property
    def resize_box_px(self) -> tuple[int, int]:
        """Height and width to scale to before the centre is cut."""
        if self.resize_px is None:
            return self.height_px, self.width_px
        if isinstance(self.resize_px, tuple):
            return self.resize_px
        return self.resize_px, self.resize_px

    @classmethod
    def from_crop_pct(
        cls,
        height_px: int,
        width_px: int,
        *,
        crop_pct: float = 0.875,
        crop_mode: str = "center",
        interpolation: Interpolation = "bicubic",
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> Preprocessing:
        """Build timm's evaluation transform from its ``crop_pct`` and ``crop_mode``.

        ``resize = floor(size / crop_pct)`` per side, as ``timm.data.create_transform`` has it.

        Parameters
        ----------
        crop_pct : share of the scaled image that the graph sees, above 0.
        crop_mode : ``"center"`` or ``"squash"``.

        Raises
        ------
        UsageError
            For timm's ``"border"`` mode, which pads with the mean colour and is not supported.
        """
        if not (math.isfinite(crop_pct) and crop_pct > 0):
            raise UsageError(f"crop_pct is {crop_pct}; expected a number above 0, like 0.875.")
        _check_choice("crop mode", crop_mode, ("center", "squash"))
        box = (math.floor(height_px / crop_pct), math.floor(width_px / crop_pct))
        resize_px: int | tuple[int, int] | None = box[0] if box[0] == box[1] else box
        if crop_mode == "squash" and box == (height_px, width_px):
            resize_px = None
        return cls(
            height_px=height_px,
            width_px=width_px,
            resize_mode="squash" if crop_mode == "squash" else "shorter",
            resize_px=resize_px,
            interpolation=interpolation,
            mean=mean,
            std=std,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values.

        ``jpeg_scaling`` stands there only where it is on: what knows nothing of it would otherwise
        refuse every bundle, and so refuses those alone that it would get wrong.
        """
        values = dataclasses.asdict(self)
        if not self.jpeg_scaling:
            del values["jpeg_scaling"]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Read what :meth:`to_dict` wrote.

        Raises
        ------
        UsageError
            For an unknown key, a missing size, or a value that the class refuses.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise UsageError(
                    f"Unknown preprocessing key {key!r}; known are {', '.join(known)}."
                    f"{did_you_mean(str(key), known)}"
                )
        for key in ("height_px", "width_px"):
            if key not in values:
                raise UsageError(f"The preprocessing lacks {key!r}; expected a length in pixels.")
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**fields)


def _check_side(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST_SIDE_PX:
        raise UsageError(
            f"{name} is {value!r}; expected a whole number of pixels from 1 to {_LARGEST_SIDE_PX}."
        )


def _check_choice(what: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(
            f"Unknown {what} {value!r}; known are {', '.join(known)}."
            f"{did_you_mean(str(value), known)}"
        )


def _triple(name: str, values: object) -> tuple[float, float, float]:
    text = f"{name} is {values!r}; expected three finite numbers for R, G, B on values in 0..1."
    if not isinstance(values, (tuple, list)) or len(values) != 3:
        raise UsageError(text)
    try:
        r, g, b = (float(v) for v in values)
    except (TypeError, ValueError):
        raise UsageError(text) from None
    if not all(math.isfinite(v) for v in (r, g, b)):
        raise UsageError(text)
    return r, g, b
