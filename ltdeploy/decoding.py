"""Anything a user may hand in to an RGB image: what is accepted, within which limits, and how.

========================  =====================================================================
format                    JPEG, PNG, WebP, BMP, GIF, TIFF, PPM, told by content, not by file name
EXIF orientation          applied
alpha, transparency       dropped; the stored colours stay, as timm and torchvision have it
palette, gray, bilevel    expanded to RGB
CMYK, YCbCr, HSV          converted by Pillow's plain formulas, colour profiles not applied
16-bit gray               ``round(v / 257)``, so that white stays white
animation, several pages  the first frame
32-bit int, float, LAB    refused: what their values mean is not known
========================  =====================================================================

Nothing global of Pillow is read or changed; in particular not ``MAX_IMAGE_PIXELS``.
"""

from __future__ import annotations

import functools
import importlib
import io
import os
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from .errors import ImageError, ImageTooLargeError, UnknownFormatError, UsageError

__all__ = ["DEFAULT_LIMITS", "ImageLimits", "ImageSource", "ResizedSize", "load_image"]

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | npt.NDArray[np.uint8] | Image.Image
ResizedSize: TypeAlias = Callable[[int, int], tuple[int, int]]  # of (height, width)


@dataclass(frozen=True)
class ImageLimits:
    """What an image may cost, checked before anything is decoded.

    Parameters
    ----------
    max_bytes : size of the encoded file, 64 MiB by default.
    max_pixels : width times height. Decoding takes 4 to 12 bytes of memory per pixel.
    max_side_px : width or height; what JPEG can hold by default. A row has a cost of its own.
    """

    max_bytes: int = 64 * 2**20
    max_pixels: int = 50_000_000
    max_side_px: int = 65_535

    def __post_init__(self) -> None:
        if min(self.max_bytes, self.max_pixels, self.max_side_px) < 1:
            raise UsageError(f"Image limits must be positive; got {self}.")


DEFAULT_LIMITS = ImageLimits()

# Signature -> Pillow's class. The classes are called directly: Image.open would try formats that
# are not on the list, and warn by Pillow's global pixel limit before ours is looked at.
_FORMATS: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "Jpeg"),
    (b"\x89PNG\r\n\x1a\n", "Png"),
    (b"GIF87a", "Gif"),
    (b"GIF89a", "Gif"),
    (b"BM", "Bmp"),
    (b"II*\0", "Tiff"),
    (b"MM\0*", "Tiff"),
    *((b"P%d" % kind, "Ppm") for kind in range(1, 7)),
)
_FORMAT_NAMES = "JPEG, PNG, WebP, BMP, GIF, TIFF or PPM"
_SIGNATURE_BYTES = 12

_ORIENTATION_TAG = 0x0112
_EXIF_SHORT = 3
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPED = (5, 6, 7, 8)  # width and height change places


def load_image(
    source: ImageSource,
    limits: ImageLimits = DEFAULT_LIMITS,
    *,
    name: str | None = None,
    resized: ResizedSize | None = None,
) -> Image.Image:
    """Decode one image to RGB with its EXIF orientation applied.

    Parameters
    ----------
    source : path, encoded bytes, PIL image of any mode, or array of shape (H, W, 3) RGB or (H, W)
        gray, uint8.
    limits : checked before decoding.
    name : what error texts call the image; by default its path, or what kind of source it is.
    resized : what height and width the image will be resized to, from its own; with it a JPEG is
        decoded at 1/2, 1/4 or 1/8 as long as neither side gets shorter than that. Other pixels
        than the full image resized. None decodes the full image, and PIL images always are full.

    Raises
    ------
    ImageError
        If the image cannot be read, is not of an allowed format, is damaged, or is too large.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, limits, name or "The array")
    if isinstance(source, Image.Image):
        return _decode(source, limits, name or "The PIL image", None)  # scaling would change it
    if isinstance(source, (str, os.PathLike)):
        name = name or os.fspath(source)
        source = _read(source, limits, name)
    elif not isinstance(source, bytes):
        raise ImageError(
            f"An image cannot be made from {type(source).__name__}; expected a path, bytes, a "
            "uint8 array of shape (H, W, 3), or a PIL image."
        )
    name = name or "The image"
    return _decode(_open(source, limits, name), limits, name, resized)


def _read(path: str | os.PathLike[str], limits: ImageLimits, name: str) -> bytes:
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(f"{name} is not a regular file; expected an image file.")
            if status.st_size > limits.max_bytes:
                raise _too_many_bytes(name, status.st_size, limits)
            return file.read(limits.max_bytes + 1)
    except IsADirectoryError:
        raise ImageError(f"{name} is a folder; expected an image file.") from None
    except FileNotFoundError:
        raise ImageError(f"{name} does not exist; expected an image file.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name} cannot be read: {reason}. Expected a readable file.") from error


def _open_without_waiting(path: str, flags: int) -> int:
    # Opening a named pipe for reading would wait for somebody to write to it.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _open(data: bytes, limits: ImageLimits, name: str) -> Image.Image:
    if len(data) > limits.max_bytes:
        raise _too_many_bytes(name, len(data), limits)
    if not data:
        raise ImageError(f"{name} is empty (0 bytes); expected a {_FORMAT_NAMES} image.")
    kind = _format_of(data[:_SIGNATURE_BYTES])
    if kind is None:
        raise UnknownFormatError(
            f"{name} is not an image of a known format: it begins with {data[:8]!r}. Expected "
            f"{_FORMAT_NAMES}."
        )
    try:
        return _image_class(kind)(io.BytesIO(data), name)
    except Exception as error:  # each decoder raises what it likes on damaged bytes
        raise _damaged(name, kind, error) from error


def _format_of(start: bytes) -> str | None:
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WebP"
    return next((kind for signature, kind in _FORMATS if start.startswith(signature)), None)


@functools.cache
def _image_class(kind: str) -> Callable[[io.BytesIO, str], Image.Image]:
    plugin = importlib.import_module(f"PIL.{kind}ImagePlugin")
    image_class: Callable[[io.BytesIO, str], Image.Image] = getattr(plugin, f"{kind}ImageFile")
    return image_class


def _decode(
    image: Image.Image, limits: ImageLimits, name: str, resized: ResizedSize | None
) -> Image.Image:
    width, height = image.size
    _check_size(width, height, limits, name)
    kind = image.format or "image"
    try:
        if resized is not None and kind == "JPEG":
            # Pillow chooses the scale by the file's sides, which the orientation may swap.
            swapped = _orientation(image.info.get("exif")) in _SWAPPED
            image.draft("RGB", resized(width, height) if swapped else resized(height, width)[::-1])
        image.load()
        orientation = _orientation(image.info.get("exif"))
        image = _to_rgb(image, name)
        if orientation in _TRANSPOSE:
            image = image.transpose(_TRANSPOSE[orientation])
    except ImageError:
        raise
    except Exception as error:  # each decoder raises what it likes on damaged bytes
        raise _damaged(name, kind, error) from error
    return image


def _from_array(array: npt.NDArray[np.uint8], limits: ImageLimits, name: str) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)):
        raise ImageError(
            f"{name} has shape {array.shape} and dtype {array.dtype}; expected uint8 of shape "
            "(H, W, 3), RGB, or (H, W), gray. Scale other values to 0..255 and give one image at a "
            "time."
        )
    _check_size(array.shape[1], array.shape[0], limits, name)
    return _to_rgb(Image.fromarray(array), name)


def _check_size(width: int, height: int, limits: ImageLimits, name: str) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{name} is {width} x {height} pixels; expected at least 1 x 1.")
    if max(width, height) > limits.max_side_px:
        raise ImageTooLargeError(
            f"{name} is {width} x {height} pixels; at most {limits.max_side_px:,} are accepted per "
            "side. Cut it; in Python, load_image takes ImageLimits(max_side_px=…) for images "
            "that are to be trusted."
        )
    if width * height > limits.max_pixels:
        raise ImageTooLargeError(
            f"{name} is {width} x {height} pixels, {width * height / 1e6:,.1f} million; at most "
            f"{limits.max_pixels / 1e6:,.1f} million are accepted. Scale it down; in Python, "
            "load_image takes ImageLimits(max_pixels=…) for an image that is to be trusted."
        )


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and _fits_16_bits(image)):
        return Image.fromarray(_sixteen_to_eight()[np.asarray(image)]).convert("RGB")
    if image.mode in ("I", "F", "LAB"):
        raise ImageError(
            f"{name} has the pixel mode {image.mode}, whose value range is not known; expected "
            "8-bit RGB or gray, or 16-bit gray. Convert it first."
        )
    if image.mode == "P" and "transparency" in image.info:
        # Straight to RGB gives the same colours, and a warning about the transparency.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _fits_16_bits(image: Image.Image) -> bool:
    low, high = image.getextrema()
    return isinstance(low, (int, float)) and low >= 0 and high <= 65535  # type: ignore[operator]


@functools.cache
def _sixteen_to_eight() -> npt.NDArray[np.uint8]:
    return ((np.arange(1 << 16, dtype=np.uint32) + 128) // 257).astype(np.uint8)


def _orientation(exif: object) -> int:
    """Return the EXIF orientation, 1 (upright) where the block is absent or damaged.

    Pillow's own reader warns on damaged blocks; a photograph is not worth less for one.
    """
    if not isinstance(exif, bytes):
        return 1
    body = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(body[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", body, 4)
        (entries,) = struct.unpack_from(order + "H", body, start)
        for entry in range(entries):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", body, start + 2 + 12 * entry)
            if tag == _ORIENTATION_TAG:
                return int(value) if kind == _EXIF_SHORT else 1
    except struct.error:
        pass
    return 1


def _too_many_bytes(name: str, size: int, limits: ImageLimits) -> ImageError:
    return ImageTooLargeError(
        f"{name} has {size:,} bytes; at most {limits.max_bytes:,} are accepted. Save it smaller, "
        "or raise ImageLimits.max_bytes if the image is to be trusted."
    )


def _damaged(name: str, kind: str, error: Exception) -> ImageError:
    reason = str(error) or type(error).__name__
    return ImageError(
        f"{name} cannot be decoded as {kind.upper()}: {reason.rstrip('.')}. Expected a complete, "
        "undamaged image file."
    )
