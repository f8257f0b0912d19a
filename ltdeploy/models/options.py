"""What a caller may say about a checkpoint where the file itself does not tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from ..classes import ClassTable
from ..errors import UsageError, did_you_mean
from ..preprocessing import Interpolation, Preprocessing

__all__ = ["LoadOptions", "adjust_preprocessing"]


@dataclass(frozen=True)
class LoadOptions:
    """Options of :func:`ltdeploy.models.classifier.load_checkpoint`; None leaves it to the file.

    Parameters
    ----------
    arch : ``"timm:NAME"``, ``"torchvision:NAME"``, ``"hf:FOLDER"`` or ``"cifar:resnet32"``.
    classes : names and training counts in label order.
    image_size : side in pixels of the square the network sees.
    resize : length in pixels of the shorter side before the crop, or ``"squash"`` to scale both
        sides to the image size, or ``"none"`` to scale nothing.
    crop_pct : image size over resized side, timm's way to say `resize`.
    interpolation : Pillow's filter.
    mean, std : three numbers each, R, G, B, on values in 0..1.
    preprocessing : all of the six above at once; then neither the file nor the architecture is
        asked.
    head_scale : the factor s of a cosine head; also says that a head without bias is a cosine head.
    trust_pickle : load objects that may run code. Only for files whose author you trust.

    Raises
    ------
    UsageError
        For a value of the wrong kind or out of range, or options that contradict each other.
    """

    arch: str | None = None
    classes: ClassTable | None = None
    image_size: int | None = None
    resize: int | str | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    preprocessing: Preprocessing | None = None
    head_scale: float | None = None
    trust_pickle: bool = False

    def __post_init__(self) -> None:
        single = ", ".join(self.preprocessing_changes())
        if self.preprocessing is not None and single:
            raise UsageError(
                f"A whole preprocessing is given and beside it {single}; leave these out, or give "
                "a preprocessing that has them."
            )
        if self.resize is not None and self.crop_pct is not None:
            raise UsageError(
                "--resize and --crop-pct say the same thing in two ways; give one of them."
            )
        if isinstance(self.resize, str) and self.resize not in ("squash", "none"):
            raise UsageError(
                f"--resize is {self.resize!r}; expected a length in pixels, 'squash' or 'none'."
                f"{did_you_mean(self.resize, ('squash', 'none'))}"
            )
        for option, size in (("--image-size", self.image_size), ("--resize", self.resize)):
            if isinstance(size, str) or size is None:
                continue
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise UsageError(f"{option} is {size!r}; expected a length in pixels, 1 or more.")
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise UsageError(
                f"--crop-pct is {self.crop_pct}; expected a share above 0 and up to 1, like 0.875."
            )
        known = get_args(Interpolation)
        if self.interpolation is not None and self.interpolation not in known:
            raise UsageError(
                f"--interpolation is {self.interpolation!r}; known are {', '.join(known)}."
                f"{did_you_mean(self.interpolation, known)}"
            )
        for option, values in (("--mean", self.mean), ("--std", self.std)):
            if values is not None and (len(values) != 3 or not all(map(math.isfinite, values))):
                raise UsageError(
                    f"{option} is {tuple(values)}; expected three numbers r,g,b on values in 0..1."
                )
        if self.std is not None and min(self.std) <= 0:
            raise UsageError(f"--std is {tuple(self.std)}; expected three positive numbers.")
        if self.head_scale is not None and not 0 < self.head_scale < math.inf:
            raise UsageError(
                f"--head-scale is {self.head_scale}; expected a positive number, like LDAM's 30."
            )

    @property
    def network_size_px(self) -> int | None:
        """Side of the images that the network is to be built for; None leaves it to the file."""
        told = self.preprocessing
        if told is None:
            return self.image_size
        return told.height_px if told.height_px == told.width_px else None

    def preprocessing_changes(self) -> dict[str, Any]:
        """Return the preprocessing options that were given, by their field names."""
        names = ("image_size", "resize", "crop_pct", "interpolation", "mean", "std")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def adjust_preprocessing(base: Preprocessing, changes: dict[str, Any]) -> Preprocessing:
    """Return `base` with some of `image_size, resize, crop_pct, interpolation, mean, std` changed.

    Changing only the image size keeps the share that the crop takes: 224 out of 256 becomes 192
    out of 219 (rounded down, as timm does).
    """
    fields: dict[str, Any] = {}
    size = changes.get("image_size")
    if size is not None:
        fields |= {"height_px": size, "width_px": size}
        if isinstance(base.resize_px, int):
            fields["resize_px"] = math.floor(size * base.resize_px / base.height_px)
        elif base.resize_px is not None:
            fields["resize_px"] = None
    resize, crop_pct = changes.get("resize"), changes.get("crop_pct")
    if resize in ("squash", "none"):
        fields |= {"resize_mode": resize, "resize_px": None}
    elif resize is not None:
        fields |= {"resize_mode": "shorter", "resize_px": resize}
    if crop_pct is not None:
        side = math.floor(fields.get("height_px", base.height_px) / crop_pct)
        mode = "squash" if base.resize_mode == "squash" else "shorter"
        fields |= {"resize_mode": mode, "resize_px": side}
    if "interpolation" in changes:
        fields["interpolation"] = changes["interpolation"]
    for name in ("mean", "std"):
        if name in changes:
            fields[name] = tuple(float(value) for value in changes[name])
    return replace(base, **fields)
